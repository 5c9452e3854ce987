"""Losses that decode only what they need, against mmdet's on fully decoded masks."""

from copy import copy
from dataclasses import fields, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import Mask2FormerHead, mask2former_head
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner, HungarianAssigner
from mmengine.structures import InstanceData
from torch.nn import functional as F

from benchmarks.device_costs import pretend_gpu
from hcformer_mm.models.losses import mask_criterion
from hcformer_mm.models.losses.finite_assigner import FiniteAssigner
from hcformer_mm.models.losses.mask_criterion import MaskCriterion
from hcformer_mm.models.utils.mask_decoding import decode_mask_logits
from hcformer_mm.ops import soft_assign
from tests.helpers.devices import at_least, on_each_device
from tests.helpers.models import COCO_CONFIG, data_sample, detector, seg_sample, segmentor

QUERIES = 6


@pytest.fixture
def same_points(monkeypatch):
    """Random points shared by all masks, which depend on their number alone."""

    def rand(*size: Any, dtype: torch.dtype | None = None, **options: Any) -> torch.Tensor:
        first, number, axes = size[0] if len(size) == 1 else size
        generator = torch.Generator().manual_seed(number)
        points = torch.empty(1, number, axes, dtype=dtype).uniform_(generator=generator)
        return points.expand(first, -1, -1).clone()

    monkeypatch.setattr(torch, "rand", rand)


@pytest.fixture
def double(monkeypatch):
    """Let mmdet compute in float64, though its losses convert to float32."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["CPU", "device"])
def path(request, monkeypatch):
    """Both orders of the computation: layer by layer, or all layers together."""
    if request.param == "device":
        monkeypatch.setattr(mask_criterion, "is_eager_cpu", lambda x: False)


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
    rtol = at_least(1e-5)
    assert list(losses) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value.sum(), rtol=rtol, atol=1e-6, msg=name)
    # Gradients that are zero but for rounding (biases before a norm) are compared with the whole.
    whole = torch.stack([gradient.norm() for gradient in oracle.values()]).norm()
    assert whole > 0
    for name, gradient in oracle.items():
        difference = (gradients[name] - gradient).norm()
        assert difference <= rtol * gradient.norm() + rtol / 10 * whole, name


@on_each_device
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"panoptic_head.mask_space": "probability"},
        {"panoptic_head.decoder": "standard"},
        {"backbone.hierarchical_level": 1},
        {"backbone.hierarchical_level": 0},
        {"backbone.hierarchical_level": 5},
        # More objects than queries: some objects stay unmatched.
        {"panoptic_head.num_queries": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("things", [(2, 2), (5, 0)])
def test_equal_to_mmdets_losses(same_points, options, things):
    check_equal([data_sample((64, 96), things=number) for number in things], **options)


@on_each_device
def test_equal_with_an_odd_size(same_points):
    check_equal([data_sample((75, 109), things=3)], size=(75, 109))


def test_layers_that_are_decoded_alone(monkeypatch):
    """Large maps change neither losses nor gradients, with the same random points."""
    model = detector(**{"backbone.hierarchical_level": 5, "train_cfg.num_points": 64}).train()
    images = torch.randn(2, 3, 64, 96)
    results = []
    for limit in (mask_criterion.DECODED_NUMEL, 0):
        monkeypatch.setattr(mask_criterion, "DECODED_NUMEL", limit)
        torch.manual_seed(1)
        samples = [data_sample((64, 96), things=things) for things in (2, 0)]
        results.append(losses_and_gradients(model, images, samples))
    (expected, oracle), (losses, gradients) = results
    torch.testing.assert_close(losses, expected)
    whole = torch.stack([gradient.norm() for gradient in oracle.values()]).norm()
    for name, gradient in oracle.items():
        assert (gradients[name] - gradient).norm() <= 1e-5 * whole, name


@on_each_device
def test_equal_in_a_segmentor(same_points):
    label_map = torch.arange(10).repeat_interleave(10).expand(64, -1)[:, :96].clone()
    label_map[:20] = 255
    check_equal([seg_sample(label_map), seg_sample(label_map.flip(1))], segmentor)


@cache
def built_head(device):
    weights = [0.3 + 0.1 * k for k in range(11)]
    options = {"num_queries": QUERIES, "loss_cls.class_weight": weights}
    head = detector(**{f"panoptic_head.{key}": value for key, value in options.items()})
    return head.panoptic_head.to(device)


def tiny_head():
    """A head of six queries and ten classes, all of other weight, and of few points."""
    head = copy(built_head(torch.get_default_device()))
    head.num_points = 37
    return head


def criterion_of(head, **options):
    return MaskCriterion(**{f.name: getattr(head, f.name) for f in fields(MaskCriterion)} | options)


def problem(objects, *, layers=3, size=(13, 10), queries=QUERIES):
    """Logits and assignments, which need gradients, and objects at another size."""
    random = torch.Generator().manual_seed(len(objects) + sum(objects))

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.get_default_dtype())

    batch, sizes = len(objects), [size]
    for _ in range(2):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    maps = [F.normalize(normal(batch, 5, *s), dim=1) for s in sizes]
    assignments = [soft_assign(fine, coarse, torch.tensor(0.2)) for fine, coarse in pairwise(maps)]
    classes = [normal(batch, queries, 11) for _ in range(layers)]
    masks = [3 * normal(batch, queries, *sizes[-1]) for _ in range(layers)]
    for x in (*classes, *masks, *assignments):
        x.requires_grad_()
    truth = [
        InstanceData(
            labels=torch.randint(10, (number,), generator=random),
            masks=(normal(number, 21, 17) > 0).long(),
        )
        for number in objects
    ]
    return classes, masks, assignments, truth


def check_against_mmdet(head, objects, criterion=None, tolerance=1e-9):
    """Compare losses and gradients with mmdet's on decoded masks."""
    classes, masks, assignments, truth = problem(objects)
    metas = [{} for _ in objects]
    criterion = criterion or criterion_of(head)
    losses = criterion(classes, masks, assignments, truth, metas)
    decoded = [decode_mask_logits(x, assignments, criterion.mask_space) for x in masks]
    expected = head.loss_by_feat(classes, decoded, truth, metas)
    assert list(losses) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            losses[name], value.sum(), rtol=tolerance, atol=tolerance, msg=name
        )
    inputs = [*classes, *masks, *assignments]
    gradients, oracle = (
        # Weights tell the losses apart.
        torch.autograd.grad(
            sum((i + 1) * x.sum() for i, x in enumerate(named.values())), inputs, allow_unused=True
        )
        for named in (losses, expected)
    )
    for ours, theirs in zip(gradients, oracle, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


OBJECTS = [(2, 5), (0, 0), (0, 3, 1), (6,), (9, 4), (7, 30)]


@on_each_device
@pytest.mark.parametrize("objects", OBJECTS, ids=str)
@pytest.mark.parametrize("mask_space", ["logit", "probability"])
def test_equal_in_float64(same_points, double, path, objects, mask_space):
    """No object, as many as queries, and more of them."""
    head = tiny_head()
    check_against_mmdet(head, objects, criterion_of(head, mask_space=mask_space))


@on_each_device
@pytest.mark.parametrize("objects", [(1,), (2, 5)], ids=str)
def test_losses_are_averaged_over_processes(same_points, double, monkeypatch, objects):
    """By a number of masks of at least one."""
    for module in (mask_criterion, mask2former_head):
        monkeypatch.setattr(module, "reduce_mean", lambda number: number / 3)
    check_against_mmdet(tiny_head(), objects)


class OtherHungarian(HungarianAssigner):
    """May assign in another way, so its steps are not taken apart."""


class ManyToOne(BaseAssigner):
    """Assigns several queries to an object, and none to some objects."""

    def assign(self, pred_instances, gt_instances, img_meta=None, **_):
        number, labels = len(gt_instances), gt_instances.labels
        objects = (3 * torch.arange(len(pred_instances)) + 1) % (number + 1)
        found = torch.cat((labels.new_full((1,), -1), labels))[objects]
        return AssignResult(number, objects, None, labels=found)


@on_each_device
@pytest.mark.parametrize("objects", OBJECTS, ids=str)
def test_another_assigner(same_points, double, path, objects):
    head = tiny_head()
    head.assigner = FiniteAssigner(ManyToOne())
    check_against_mmdet(head, objects)


@on_each_device
@pytest.mark.parametrize(
    ("objects", "counted_by_mmdet"),
    [((2, 5), 7), ((8, 0), 7), ((0, 0), 2), ((9, 4), 10)],
    ids=str,
)
def test_losses_are_averaged_over_all_objects(same_points, double, objects, counted_by_mmdet):
    """Of six queries. mmdet counts an image without objects as one, and matched objects only."""
    head = tiny_head()
    classes, masks, assignments, truth = problem(objects)
    losses = criterion_of(head)(classes, masks, assignments, truth, [{}, {}])
    head.get_targets = partial(Mask2FormerHead.get_targets, head)
    decoded = [decode_mask_logits(x, assignments) for x in masks]
    of_mmdet = head.loss_by_feat(classes, decoded, truth, [{}, {}])
    factor = counted_by_mmdet / max(sum(objects), 1)
    for name, value in of_mmdet.items():
        expected = value.sum() * (1 if "loss_cls" in name else factor)
        torch.testing.assert_close(losses[name], expected, rtol=1e-7, atol=1e-9, msg=name)


@on_each_device
@pytest.mark.parametrize("objects", OBJECTS, ids=str)
def test_a_subclass_of_the_assigner(same_points, objects):
    """It is asked image by image, with the same matches."""
    head = tiny_head()
    costs = head.train_cfg.assigner.match_costs
    other = OtherHungarian(costs)
    asked = []
    other.assign = lambda *args: asked.append(args[2]) or HungarianAssigner.assign(other, *args)
    inputs, metas = problem(objects), [dict(number=i) for i in range(len(objects))]
    criterion = criterion_of(head)
    expected = criterion(*inputs, metas)
    losses = replace(criterion, assigner=FiniteAssigner(other))(*inputs, metas)
    assert asked == [meta for meta in metas for _ in range(3)]
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, msg=name)


class WithMetainfo:
    """A cost that shows which metainfo it gets."""

    def __init__(self):
        self.seen = []

    def __call__(self, pred_instances, gt_instances, img_meta):
        self.seen.append(img_meta)
        return torch.zeros(len(pred_instances), len(gt_instances))


def test_costs_get_the_metainfo_of_their_image():
    head, cost = tiny_head(), WithMetainfo()
    assigner = HungarianAssigner(head.train_cfg.assigner.match_costs)
    assigner.match_costs = [cost]
    metas = [dict(number=i) for i in range(2)]
    criterion_of(head, assigner=FiniteAssigner(assigner))(*problem((2, 5)), metas)
    assert cost.seen == [meta for meta in metas for _ in range(3)]


@on_each_device
@pytest.mark.parametrize("objects", [(2, 5), (6,), (9, 4)], ids=str)
def test_all_matched_masks_of_objects_are_not_copied(monkeypatch, objects):
    """They are as large as the image."""
    sampled, sample = [], mask_criterion.point_sample
    monkeypatch.setattr(
        mask_criterion, "point_sample", lambda x, at: sampled.append(x) or sample(x, at)
    )
    *inputs, truth = problem(objects)
    for gt in truth:
        gt.masks = gt.masks.float()
    criterion_of(tiny_head())(*inputs, truth, [{} for _ in objects])
    for gt in truth:
        read = [x for x in sampled if x.shape[-2:] == gt.masks.shape[-2:]]
        same = [x for x in read if x.data_ptr() == gt.masks.data_ptr()]
        # Once for every layer to match, and once for all losses.
        assert len(same) == 3 + (len(gt.masks) <= QUERIES)


def points_drawn(monkeypatch, dtype=torch.float32):
    """Points of matching and of losses, and the masks that the latter belong to."""
    matching, losses = [], []
    at, sample = mask_criterion.mask_logits_at, mask_criterion.point_sample

    def watched_at(logits, assignments, points, space):
        matching.append(points)
        return at(logits, assignments, points, space)

    def watched_sample(x, points):
        losses.append((x, points))
        return sample(x, points)

    monkeypatch.setattr(mask_criterion, "mask_logits_at", watched_at)
    monkeypatch.setattr(mask_criterion, "point_sample", watched_sample)
    torch.manual_seed(0)
    classes, masks, assignments, truth = problem((2, 3))
    classes, masks, assignments = (
        [x.detach().to(dtype) for x in xs] for xs in (classes, masks, assignments)
    )
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = criterion_of(tiny_head())(classes, masks, assignments, truth, [{}, {}])
    assert all(loss.dtype == torch.float32 for loss in found.values())
    return torch.cat(matching), losses


def test_points_are_random_for_every_layer_image_and_mask(path, monkeypatch):
    matching, losses = points_drawn(monkeypatch)
    assert matching.shape == (6, 37, 2)  # three layers of two images
    masks = [x for x, _ in losses if x.shape[-2:] == (13, 10)]
    assert all(x.is_contiguous() for x in masks)  # else points read far apart in memory
    of_masks = [points for x, points in losses if x.shape[-2:] == (13, 10)]
    assert [tuple(points.shape) for points in of_masks] == [(6, 37, 2), (9, 37, 2)]
    for points in (matching, *of_masks):
        assert (points >= 0).all() and (points < 1).all()
        assert len({tuple(of_mask.flatten().tolist()) for of_mask in points}) == len(points)
        assert points.std() > 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_points_are_in_full_precision(path, monkeypatch, dtype):
    """In bfloat16 they would be multiples of 1/256."""
    matching, losses = points_drawn(monkeypatch, dtype)
    for x, points in losses:
        assert x.dtype == points.dtype == torch.float32
    assert matching.dtype == torch.float32
    for points in (matching, *(points for _, points in losses)):
        assert ((256 * points) % 1 != 0).double().mean() > 0.9


@pytest.mark.parametrize(
    ("cpu", "mask_space", "together"),
    [(True, "logit", 1), (False, "logit", 3), (False, "probability", 1)],
)
def test_layers_that_are_sampled_together(monkeypatch, cpu, mask_space, together):
    """All three off the CPU, unless their masks are decoded in full."""
    calls, at = [], mask_criterion.mask_logits_at
    monkeypatch.setattr(mask_criterion, "is_eager_cpu", lambda x: cpu)
    monkeypatch.setattr(
        mask_criterion, "mask_logits_at", lambda *args: calls.append(len(args[0])) or at(*args)
    )
    draws, draw = [], mask_criterion.get_uncertain_point_coords_with_randomness
    monkeypatch.setattr(
        mask_criterion,
        "get_uncertain_point_coords_with_randomness",
        lambda *args: draws.append(len(args[0])) or draw(*args),
    )
    criterion_of(tiny_head(), mask_space=mask_space)(*problem((2, 3)), [{}, {}])
    assert calls == [together] * (6 // together)
    assert draws == ([2, 2, 2, 3, 3, 3] if cpu else [6, 9])


@pytest.mark.parametrize("objects", [(3,), (2, 3, 0, 40)], ids=str)
def test_costs_on_a_gpu(objects):
    """Few launches beside mmdet's losses on decoded masks, and one wait: for matching's costs."""
    head, costs = tiny_head(), []
    *inputs, truth = problem(objects, layers=10)
    for ours in (True, False):
        with pretend_gpu(backward=True) as gpu:
            classes, masks, assignments = (
                [x.detach().to(gpu.device).requires_grad_() for x in xs] for xs in inputs
            )
            moved = [
                InstanceData(labels=gt.labels.to(gpu.device), masks=gt.masks.to(gpu.device))
                for gt in truth
            ]
            metas = [{} for _ in objects]
            with gpu.count() as forward:
                if ours:
                    losses = criterion_of(head)(classes, masks, assignments, moved, metas)
                else:
                    # As large as decoded ones.
                    masks = [x.new_zeros(*x.shape[:2], 13, 10).requires_grad_() for x in masks]
                    losses = head.loss_by_feat(classes, masks, moved, metas)
            leaves = [*classes, *masks, *(assignments if ours else [])]
            with gpu.count() as backward:
                torch.autograd.grad(sum(loss.sum() for loss in losses.values()), leaves)
        costs.append((forward, backward))
    (forward, backward), (their_forward, _) = costs
    assert forward.syncs == 1 and backward.syncs == 0
    # Matched pairs, our class weights and numbers of masks, and class weights of mmdet's loss.
    assert forward.uploads == 3 and backward.uploads == 0
    assert their_forward.syncs > 50 * len(objects)
    launches, theirs = (x.launches + y.launches for x, y in costs)
    assert launches < 0.65 * theirs


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
