"""Losses that decode only what they need, against mmdet's on fully decoded masks."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hcformer_mm.models.losses import mask_criterion
from tests.helpers.models import COCO_CONFIG, data_sample, detector, seg_sample, segmentor


@pytest.fixture
def same_points(monkeypatch):
    """Random points shared by all masks, which depend on their number alone."""

    def rand(*size: Any, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
        first, number, axes = size[0] if len(size) == 1 else size
        generator = torch.Generator().manual_seed(number)
        points = torch.empty(1, number, axes, dtype=dtype).uniform_(generator=generator)
        return points.expand(first, -1, -1).clone()

    monkeypatch.setattr(torch, "rand", rand)


def losses_and_gradients(model, features, samples):
    """Losses of a model, and the gradients of its parameters."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    losses = model.loss(features, samples)
    gradients = torch.autograd.grad(sum(losses.values()), list(parameters.values()))
    return losses, dict(zip(parameters, gradients, strict=True))


def check_equal(samples, build=detector, size=(64, 96), **options):
    torch.manual_seed(3)
    images = torch.randn(len(samples), 3, *size)
    head = "panoptic_head" if build is detector else "decode_head"
    results = []
    for matched_only in (True, False):
        model = build(**options, **{f"{head}.decode_matched_only": matched_only}).train()
        results.append(losses_and_gradients(model, images, samples))
    (losses, gradients), (expected, oracle) = results
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6, msg=name)
    # Gradients that are zero but for rounding (biases before a norm) are compared with the whole.
    whole = torch.stack([gradient.norm() for gradient in oracle.values()]).norm()
    assert whole > 0
    for name, gradient in oracle.items():
        difference = (gradients[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-6 * whole, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"panoptic_head.mask_space": "probability"},
        {"panoptic_head.decoder": "standard"},
        {"backbone.hierarchical_level": 1},
        {"backbone.hierarchical_level": 0},
        # More objects than queries: some objects stay unmatched.
        {"panoptic_head.num_queries": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("things", [(2, 2), (5, 0)])
def test_equal_to_mmdets_losses(same_points, options, things):
    check_equal([data_sample((64, 96), things=number) for number in things], **options)


def test_equal_with_an_odd_size(same_points):
    check_equal([data_sample((75, 109), things=3)], size=(75, 109))


def test_equal_in_a_segmentor(same_points):
    label_map = torch.arange(10).repeat_interleave(10).expand(64, -1)[:, :96].clone()
    label_map[:20] = 255
    check_equal([seg_sample(label_map), seg_sample(label_map.flip(1))], segmentor)


class Reads(TorchDispatchMode):
    """Names of the operators that make the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in {
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.equal,
            torch.ops.aten.masked_select,
            torch.ops.aten.nonzero,
            torch.ops.aten._unique2,
        }:
            self.found.append(func.overloadpacket)
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_back_but_for_the_matching(monkeypatch):
    """Besides the costs, mmdet's sampler looks up the matched and the other queries."""
    reads, criterion = Reads(), mask_criterion.MaskCriterion.__call__

    def watched(*args):
        with reads:
            return criterion(*args)

    monkeypatch.setattr(mask_criterion.MaskCriterion, "__call__", watched)
    samples = [data_sample((64, 96), things=number) for number in (2, 3)]
    detector().train().loss(torch.randn(2, 3, 64, 96), samples)
    # Four layers of two images, each with two lookups.
    assert reads.found == [torch.ops.aten.nonzero, torch.ops.aten._unique2] * 16


def test_only_matched_masks_are_decoded(monkeypatch):
    """Three segments per image, matched at each of four layers."""
    decoded = []

    def spy(logits, assignments, mask_space):
        decoded.append(tuple(logits.shape[:2]))
        return decode(logits, assignments, mask_space)

    decode = mask_criterion.decode_mask_logits
    monkeypatch.setattr(mask_criterion, "decode_mask_logits", spy)
    model = detector().train()  # the default
    assert detector(COCO_CONFIG).panoptic_head.decode_matched_only
    model.loss(torch.randn(2, 3, 64, 96), [data_sample((64, 96)) for _ in range(2)])
    assert decoded == [(1, 12), (1, 12)]
