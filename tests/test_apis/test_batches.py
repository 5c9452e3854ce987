"""Detectors pad a batch to its largest image: what that changes, against one image at a time."""

import numpy as np

from hcformer_mm.apis import HCFormerInferencer
from tests.helpers.predictions import scene


def varied_images(seed, number=4):
    """Images of other sizes and aspect ratios, ``(H, W, 3)`` uint8, BGR."""
    random = np.random.default_rng(seed)
    for index in range(number):
        height, width = random.integers(48, 128), random.integers(48, 170)
        whole = scene(100 * seed + index, (140, 190))
        yield np.ascontiguousarray(whole[:height, :width])


def classes(sample):
    """Class of each pixel, ``(H, W)``."""
    return sample.pred_panoptic_seg.sem_seg[0] % 1000


def test_padding_changes_few_pixels_and_scores(model_files):
    """And none of an image that is as large as the batch."""
    inferencer = HCFormerInferencer(*model_files(), "cpu", fast=False)
    sizes, shares, changes = [], [], []
    inferencer.model.backbone.register_forward_pre_hook(
        lambda module, args: sizes.append(tuple(args[0].shape[-2:]))
    )
    for seed in range(3):
        images = list(varied_images(seed))
        singles, batch = inferencer(images), inferencer(images, batch_size=len(images))
        *own, padded = sizes
        sizes.clear()
        for one, other, size in zip(singles, batch, own, strict=True):
            share = float((classes(one) != classes(other)).float().mean())
            scores, others = (x.pred_instances.scores.sort().values[-10:] for x in (one, other))
            change = float((scores - others).abs().max())
            if size == padded:
                assert share < 1e-3 and change < 1e-3
            else:
                shares.append(share)
                changes.append(change)
    # The tolerance that docs/inference.md gives.
    assert np.median(shares) < 0.05 and max(shares) < 0.2
    assert np.median(changes) < 0.05 and max(changes) < 0.5
