"""ClusterRecordHook: predictions of validation and test carry their clusters."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from ...models.utils.cluster_recorder import record_clusters
from ...registry import HOOKS


@HOOKS.register_module()
class ClusterRecordHook(Hook):
    """Leave ``clusters`` in the predictions of the validation and test loops, for their evaluators.

    See :class:`~hcformer_mm.models.utils.cluster_recorder.ClusterRecorder`. The model is left as it was
    when the loop ends, by an error too: hooks of MMEngine are not told of errors, so that this one
    goes around the whole loop.
    """

    def before_run(self, runner: Runner) -> None:
        """Prepare the loops that are about to run.

        Args:
            runner: The runner, its loops built as far as they are needed.
        """
        for split in ("val", "test"):
            # As an attribute without underscore, a loop would be built for the occasion.
            loop = getattr(runner, f"_{split}_loop")
            # A runner runs its loops again; they are prepared once.
            if isinstance(loop, BaseLoop) and "run" not in vars(loop):
                loop.run = _recording(loop)


def _recording(loop: BaseLoop) -> Callable[..., Any]:
    """The ``run`` of a loop, with the clusters recorded meanwhile."""
    run = loop.run

    @wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with record_clusters(loop.runner.model):
            return run(*args, **kwargs)

    return wrapped
