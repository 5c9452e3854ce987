"""Matching with NaN and Inf among the costs, which SciPy refuses."""

import warnings

import pytest
import torch
from mmdet.models.task_modules.assigners import BaseAssigner, HungarianAssigner
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

from hcformer_mm.models.losses.finite_assigner import FiniteAssigner
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


@pytest.mark.parametrize(("queries", "objects"), [(6, 3), (3, 6), (5, 0), (300, 20), (20, 300)])
def test_finite_costs_are_mmdets(queries, objects):
    forgiving, strict = assigners()
    assert forgiving.one_to_one
    pair = instances(queries, objects)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = (assigner.assign(*pair, {}) for assigner in (forgiving, strict))
    assert torch.equal(found.gt_inds, expected.gt_inds)
    assert torch.equal(found.labels, expected.labels)


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
    assert not forgiving.one_to_one
    with warnings.catch_warnings(), pytest.raises(ValueError, match="another reason"):
        warnings.simplefilter("error")
        forgiving.assign(*instances())


@pytest.mark.parametrize("matched_only", [True, False])
def test_an_image_that_is_not_finite(matched_only):
    """Its loss is NaN, which MMEngine's loop can report; SciPy's error would name no cause."""
    model = detector(**{"panoptic_head.decode_matched_only": matched_only}).train()
    image = torch.full((1, 3, 32, 48), torch.nan)
    with pytest.warns(UserWarning, match=MESSAGE):
        losses = model.loss(image, [data_sample((32, 48))])
    assert losses["loss_cls"].isnan() and losses["loss_mask"].isnan()
