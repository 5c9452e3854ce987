"""FiniteAssigner: matching that NaN and Inf do not stop."""

import warnings
from copy import copy
from functools import partial
from typing import Any

from mmdet.models.task_modules.assigners import AssignResult, BaseAssigner, HungarianAssigner
from mmengine.structures import InstanceData
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
        one_to_one: Whether every object gets a query of its own, as far as there are any.
    """

    def __init__(self, assigner: BaseAssigner) -> None:
        self._assigner = assigner
        self._lenient: Any = copy(assigner)
        costs = getattr(assigner, "match_costs", [])
        self._lenient.match_costs = [partial(_finite, cost) for cost in costs]
        self.one_to_one = isinstance(assigner, HungarianAssigner)

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
        warnings.warn(
            "expected finite costs to match queries with objects, got NaN or Inf; these pairs are "
            "matched last. If the losses are not finite either, look at the images of this "
            "iteration and lower the learning rate",
            stacklevel=2,
        )
        return result


def _finite(cost: Any, **options: Any) -> Tensor:
    costs: Tensor = cost(**options)
    return costs.where(costs.isfinite(), LARGEST_COST)
