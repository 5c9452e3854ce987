"""Tiles of large images: a model of single pixels gives the same whole and in tiles."""

import itertools

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from pycocotools import mask as mask_util
from skimage.draw import disk
from skimage.measure import label

from hcformer_mm.apis.inputs import InputImage
from hcformer_mm.apis.tiling import Tiling, predict_tiled, spans

THINGS, CLASSES = 3, 5
"""Of the model of single pixels: classes 0 to 2 are things, 3 and 4 stuff, and 5 is void."""
SIZES = [(64, 64), (97, 65), (33, 200), (128, 31), (70, 150)]


def picture(size, seed=0):
    """Pixels ``(H, W, 3)``: class, number of the object, and confidence."""
    generator = np.random.default_rng(seed)
    pixels = np.empty((*size, 3), np.uint8)
    pixels[..., 0] = 3 + (np.indices(size).sum(0) // 40) % 3  # stripes of stuff and void
    pixels[..., 1] = 0
    pixels[..., 2] = 200
    for number in range(1, 13):
        center, radius = generator.uniform((0, 0), size), generator.uniform(3, 40)
        rows, columns = disk(center, radius, shape=size)
        pixels[rows, columns, 0] = number % THINGS
        pixels[rows, columns, 1] = number
        pixels[rows, columns, 2] = 100 + 10 * number
    pixels[..., 1] = label(pixels[..., 1], connectivity=1)  # what others cut in two is two objects
    return pixels


def panoptic_of(pixels):
    """Prediction of a model that reads class, object and confidence off each pixel."""
    classes, number, confidence = torch.from_numpy(pixels.astype(np.int32)).unbind(-1)
    numbers, order = number.unique(return_inverse=True)
    order = order + (numbers[0] > 0)  # objects are numbered from 1 in each image
    sample = DetDataSample(metainfo=dict(ori_shape=pixels.shape[:2]))
    segments = classes + 1000 * order.int()
    sample.pred_panoptic_seg = PixelData(sem_seg=segments[None])
    sample.pred_sem_seg = PixelData(sem_seg=classes.long()[None])
    sample.pred_confidence = PixelData(data=confidence.float()[None] / 255)
    ids = segments[classes != CLASSES].unique()
    sample.pred_segments = InstanceData(
        ids=ids.long(),
        labels=ids.long() % 1000,
        scores=torch.stack([confidence[segments == i].double().mean() / 255 for i in ids]).float(),
    )
    things = ids[ids >= 1000]
    masks = segments == things[:, None, None]
    found = torch.isin(sample.pred_segments.ids, things)
    sample.pred_instances = InstanceData(
        masks=masks,
        labels=things.long() % 1000,
        scores=sample.pred_segments.scores[found],
        bboxes=torch.zeros(len(things), 4),
    )
    return sample


def semantic_of(pixels, channels=CLASSES):
    """Logits that are functions of single pixels."""
    values = torch.from_numpy(pixels.astype(np.float32))
    logits = torch.stack([(values * (k + 1)).sin().sum(-1) for k in range(channels)])
    sample = SegDataSample(metainfo=dict(ori_shape=pixels.shape[:2]))
    sample.seg_logits = PixelData(data=logits)
    labels = logits.argmax(0) if channels > 1 else logits[0] > 0.3
    sample.pred_sem_seg = PixelData(data=labels.int()[None])
    return sample


def tiled(pixels, model, tiling, **options):
    def predict(images):
        return ((image, model(image.read())) for image in images)

    return predict_tiled(InputImage("0", 0, array=pixels), tiling, predict, **options)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 50, 64, 100, 257])
@pytest.mark.parametrize("overlap", [1, 7, 8, 16, 31])
def test_spans(length, overlap):
    found = spans(length, 32, overlap)
    sizes = {span.whole.stop - span.whole.start for span in found}
    assert sizes == {min(32, length)}
    covered = np.concatenate([np.arange(span.owned.start, span.owned.stop) for span in found])
    assert np.array_equal(covered, np.arange(length))
    assert len(found) == 1 + max(0, -(-(length - 32) // (32 - overlap)))  # the fewest
    weights = torch.zeros(length)
    for span in found:
        assert span.whole.start <= span.used.start <= span.owned.start
        assert span.owned.stop <= span.used.stop <= span.whole.stop
        weights[span.used] += span.weights()
    torch.testing.assert_close(weights, torch.ones(length))
    for one, other in itertools.pairwise(found):
        assert other.whole.start + overlap <= one.whole.stop
        assert one.after == other.before
        width = one.after.stop - one.after.start
        assert width == overlap or (0 < width < overlap and overlap > 32 / 3)
        assert abs(one.after.stop + one.after.start - 2 * one.owned.stop) <= 1  # in the middle


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiling", [Tiling((48, 32), 9), Tiling(32, 20), Tiling((33, 64), 4)])
def test_a_model_of_single_pixels_gives_the_same_in_tiles(size, tiling):
    pixels = picture(size)
    whole, joined = panoptic_of(pixels), tiled(pixels, panoptic_of, tiling)
    assert joined.ori_shape == size
    for field in ("pred_sem_seg", "pred_confidence"):
        for key, value in whole.get(field).items():
            assert np.array_equal(joined.get(field).get(key), value)
    ours, expected = joined.pred_panoptic_seg.sem_seg[0], whole.pred_panoptic_seg.sem_seg[0]
    assert ours.dtype == torch.int32
    pairs = torch.stack([ours, expected]).flatten(1).unique(dim=1)
    # Segments differ in their numbers alone.
    assert (pairs % 1000).diff(dim=0).eq(0).all()
    assert all(len(side.unique()) == pairs.shape[1] for side in pairs)
    names = dict(pairs.flip(0).T.tolist())
    found = joined.pred_segments
    scores = dict(zip(found.ids.tolist(), found.scores.tolist(), strict=True))
    assert list(scores) == sorted(names[i] for i in whole.pred_segments.ids.tolist())
    assert torch.equal(joined.pred_segments.labels, joined.pred_segments.ids % 1000)
    for i, score in zip(*(whole.pred_segments[key] for key in ("ids", "scores")), strict=True):
        assert scores[names[i.item()]] == pytest.approx(score.item(), abs=1e-6)
    found = joined.pred_instances
    assert len(found) == len(whole.pred_instances)
    masks = torch.from_numpy(mask_util.decode(found.masks)).permute(2, 0, 1).bool()
    for i in range(len(found)):
        (j,) = (whole.pred_instances.masks == masks[i]).flatten(1).all(1).nonzero()[:, 0]
        assert found.labels[i] == whole.pred_instances.labels[j]
        assert found.scores[i] == pytest.approx(whole.pred_instances.scores[j].item(), abs=1e-6)
        y, x = masks[i].nonzero().unbind(1)
        assert found.bboxes[i].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, CLASSES])
def test_logits_of_single_pixels_give_the_same_in_tiles(size, channels):
    pixels = picture(size)
    for tiling in (Tiling((48, 32), 9), Tiling(32, 20)):
        joined = tiled(pixels, lambda x: semantic_of(x, channels), tiling, threshold=0.3)
        assert torch.equal(
            joined.pred_sem_seg.data, semantic_of(pixels, channels).pred_sem_seg.data
        )
        assert "seg_logits" not in joined
