"""FiniteAssigner: matching that NaN and Inf do not stop, of many images with one transfer."""

import warnings
from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner, HungarianAssigner
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

LARGEST_COST = 1e10
"""Cost in place of NaN and Inf, far above the cost of any mask."""


class FiniteAssigner(BaseAssigner):
    """An assigner that matches pairs whose cost is NaN or Inf last, with a warning.

    SciPy refuses such costs. Only then are they replaced, so finite costs are not touched, and
    nothing but the matching's own transfer is read back from a GPU. The losses of a query that is
    not finite stay so.

    Args:
        assigner: An assigner of mmdet.

    Attributes:
        hungarian: Whether the assigner is mmdet's ``HungarianAssigner``, whose steps :meth:`costs`
            and :meth:`match` can be called one by one. A subclass may assign in another way.
    """

    def __init__(self, assigner: BaseAssigner) -> None:
        self._assigner: Any = assigner
        self._lenient: Any = copy(assigner)
        costs = getattr(assigner, "match_costs", [])
        self._lenient.match_costs = [partial(_finite_cost, cost) for cost in costs]
        self.hungarian = type(assigner) is HungarianAssigner

    def assign(
        self,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        img_meta: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> AssignResult:
        """Assign queries to objects; see ``HungarianAssigner.assign`` of mmdet."""
        arguments = pred_instances, gt_instances, img_meta
        try:
            return self._assigner.assign(*arguments, **kwargs)
        except ValueError:
            result = self._lenient.assign(*arguments, **kwargs)
        _warn()
        return result

    def costs(
        self, pred_instances: InstanceData, gt_instances: InstanceData, img_meta: dict[str, Any]
    ) -> Tensor:
        """Return the costs ``(Q, N)`` by which :meth:`assign` matches Q queries and N objects."""
        options = dict(pred_instances=pred_instances, gt_instances=gt_instances, img_meta=img_meta)
        return torch.stack([cost(**options) for cost in self._assigner.match_costs]).sum(dim=0)

    @torch.compiler.disable
    def match(self, costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Match queries and objects of many images and decoder layers, each as :meth:`assign` does.

        Args:
            costs: Matrices of costs ``(Q, N)``; see :meth:`costs`.

        Returns:
            The min(Q, N) matched queries and their objects for every matrix, int64, ascending
            by object, on the CPU, where SciPy matches. The costs come there in a single transfer.
        """
        matrices = torch.cat([cost.flatten() for cost in costs]).cpu()
        of_each = matrices.split([cost.numel() for cost in costs])
        return [_match(flat.view(cost.shape)) for flat, cost in zip(of_each, costs, strict=True)]


def _match(costs: Tensor) -> tuple[Tensor, Tensor]:
    try:
        pairs = linear_sum_assignment(costs)
    except ValueError:
        pairs = linear_sum_assignment(_finite(costs))
        _warn()
    queries, objects = (torch.from_numpy(index) for index in pairs)
    order = objects.argsort()
    return queries[order], objects[order]


def _finite_cost(cost: Any, **options: Any) -> Tensor:
    return _finite(cost(**options))


def _finite(costs: Tensor) -> Tensor:
    return costs.where(costs.isfinite(), LARGEST_COST)


def _warn() -> None:
    warnings.warn(
        "expected finite costs to match queries with objects, got NaN or Inf; these pairs are "
        "matched last. If the losses are not finite either, look at the images of this "
        "iteration and lower the learning rate",
        stacklevel=3,
    )
