"""Matching with NaN and Inf among the costs, which SciPy refuses."""

import warnings

import pytest
import torch
from mmdet.models.task_modules.assigners import (
    BaseAssigner,
    HungarianAssigner,
    hungarian_assigner,
)
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

from hcformer_mm.models.losses.finite_assigner import FiniteAssigner
from tests.helpers.devices import on_each_device
from tests.helpers.models import data_sample, detector, model_config

MESSAGE = "expected finite costs to match queries with objects, got NaN or Inf"


def assigners():
    """An assigner that forgives, and mmdet's, which does not."""
    strict = TASK_UTILS.build(model_config().train_cfg.assigner)
    assert isinstance(strict, HungarianAssigner)
    return FiniteAssigner(strict), strict


def instances(queries=6, objects=3):
    random = torch.Generator().manual_seed(queries)
    predicted = InstanceData(
        scores=torch.randn(queries, 11, generator=random),
        masks=5 * torch.randn(queries, 40, generator=random),
    )
    masks = torch.rand(objects, 40, generator=random) > 0.5
    return predicted, InstanceData(labels=torch.arange(objects) % 10, masks=masks.long())


@on_each_device
@pytest.mark.parametrize(("queries", "objects"), [(6, 3), (3, 6), (5, 0), (300, 20), (20, 300)])
def test_finite_costs_are_mmdets(queries, objects):
    forgiving, strict = assigners()
    assert forgiving.hungarian
    pair = instances(queries, objects)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = (assigner.assign(*pair, {}) for assigner in (forgiving, strict))
    assert torch.equal(found.gt_inds, expected.gt_inds)
    assert torch.equal(found.labels, expected.labels)


def test_a_subclass_may_assign_in_another_way():
    class Other(HungarianAssigner):
        pass

    assert not FiniteAssigner(Other(model_config().train_cfg.assigner.match_costs)).hungarian


@on_each_device
@pytest.mark.parametrize(("queries", "objects"), [(6, 3), (3, 6), (5, 0), (300, 20)])
def test_costs_are_mmdets(monkeypatch, queries, objects):
    forgiving, strict = assigners()
    pair, matched = instances(queries, objects), []
    solve = hungarian_assigner.linear_sum_assignment
    monkeypatch.setattr(
        hungarian_assigner, "linear_sum_assignment", lambda c: matched.append(c) or solve(c)
    )
    strict.assign(*pair, {})
    costs = forgiving.costs(*pair, {})
    assert costs.shape == (queries, objects)
    for expected in matched:
        assert torch.equal(costs.cpu(), torch.as_tensor(expected, device="cpu"))
    assert len(matched) == (objects > 0)


def test_matrices_are_matched_one_by_one():
    """Of any shapes, and with ties."""
    forgiving, strict = assigners()
    random = torch.Generator().manual_seed(0)
    shapes = [(6, 3), (3, 6), (5, 0), (1, 1), (40, 40), (100, 7)]
    matrices = [torch.randint(5, shape, generator=random).float() for shape in shapes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = forgiving.match(matrices)
    assert len(pairs) == len(matrices)
    for costs, (queries, objects) in zip(matrices, pairs, strict=True):
        number = min(costs.shape)
        assert queries.dtype == objects.dtype == torch.int64
        assert len(queries) == len(objects) == len(set(queries.tolist())) == number
        assert objects.tolist() == sorted(set(objects.tolist()))
        if number:
            strict.match_costs = [lambda costs=costs, **_: costs]
            expected = strict.assign(*instances(*costs.shape), {}).gt_inds
            assert torch.equal(expected[queries], objects + 1)
            assert (expected > 0).sum() == number


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_matrices_that_are_not_finite(value):
    """The pair is matched last, behind any finite cost; other matrices are as without it."""
    forgiving, _ = assigners()
    finite = torch.tensor([[1.0, 5.0], [2.0, 9.0]])
    with pytest.warns(UserWarning, match=MESSAGE) as warned:
        pairs = forgiving.match([finite, torch.tensor([[value], [value]]), finite])
    assert len(warned) == 1
    assert pairs[1][1].tolist() == [0]
    for queries, objects in (pairs[0], pairs[2]):
        assert (queries.tolist(), objects.tolist()) == ([1, 0], [0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ((queries, objects),) = forgiving.match([torch.tensor([[value], [9e9], [value]])])
    assert (queries.tolist(), objects.tolist()) == ([1], [0])


@on_each_device
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("field", ["scores", "masks"])
def test_queries_that_are_not_finite_are_matched_last(field, value):
    forgiving, strict = assigners()
    predicted, truth = instances()
    others = predicted[torch.tensor([0, 2, 3, 5])]
    expected = strict.assign(others, truth, {}).gt_inds
    predicted[field][[1, 4]] = value
    with pytest.raises(ValueError, match=r"numeric entries|infeasible"):
        strict.assign(predicted, truth, {})
    with pytest.warns(UserWarning, match=MESSAGE):
        found = forgiving.assign(predicted, truth, {})
    assert found.gt_inds[[0, 2, 3, 5]].tolist() == expected.tolist()
    assert found.gt_inds[[1, 4]].tolist() == [0, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_pairs_that_are_not_finite_are_matched_last(value):
    """A cost alone, as after an overflow; -inf would be the best of all."""

    def cost(**_):
        return torch.tensor([[value, 3.0], [1.0, 2.0], [value, 9.0]])

    strict = HungarianAssigner([model_config().train_cfg.assigner.match_costs[0]] * 2)
    strict.match_costs = [cost, cost]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = FiniteAssigner(strict).assign(*instances(3, 2))
    assert found.gt_inds.tolist() == [2, 1, 0]


@on_each_device
def test_every_object_is_matched_though_nothing_is_finite():
    """Else the loss would be finite, and training would go on."""
    forgiving, _ = assigners()
    predicted, truth = instances()
    predicted.masks.fill_(torch.nan)
    with pytest.warns(UserWarning, match=MESSAGE):
        found = forgiving.assign(predicted, truth, {})
    assert sorted(found.gt_inds[found.gt_inds > 0].tolist()) == [1, 2, 3]


def test_other_errors_pass():
    class Failing(BaseAssigner):
        def assign(self, *args, **kwargs):
            raise ValueError("another reason")

    forgiving = FiniteAssigner(Failing())
    assert not forgiving.hungarian
    with warnings.catch_warnings(), pytest.raises(ValueError, match="another reason"):
        warnings.simplefilter("error")
        forgiving.assign(*instances())


@on_each_device
@pytest.mark.parametrize("matched_only", [True, False])
def test_an_image_that_is_not_finite(matched_only):
    """Its loss is NaN, which MMEngine's loop can report; SciPy's error would name no cause."""
    model = detector(**{"panoptic_head.decode_matched_only": matched_only}).train()
    image = torch.full((1, 3, 32, 48), torch.nan)
    with pytest.warns(UserWarning, match=MESSAGE):
        losses = model.loss(image, [data_sample((32, 48))])
    assert losses["loss_cls"].isnan() and losses["loss_mask"].isnan()
