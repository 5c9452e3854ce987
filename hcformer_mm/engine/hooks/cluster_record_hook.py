"""ClusterRecordHook: add clusters to the predictions of validation and test."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from ...models.utils.cluster_recorder import record_clusters
from ...registry import HOOKS
from ..loops import built_loops


@HOOKS.register_module()
class ClusterRecordHook(Hook):
    """Add ``clusters`` to the predictions of the validation and test loops, for evaluators.

    See :class:`~hcformer_mm.models.utils.cluster_recorder.ClusterRecorder`. MMEngine does not
    notify hooks of errors, so this hook wraps the ``run`` of the loops, which also restores the
    model when a loop fails.
    """

    def before_run(self, runner: Runner) -> None:
        """Wrap the validation and test loops that are about to run."""
        for split, loop in built_loops(runner).items():
            # A loop that runs again is already wrapped.
            if split != "train" and "run" not in vars(loop):
                loop.run = _recording(loop)


def _recording(loop: BaseLoop) -> Callable[..., Any]:
    """Return the ``run`` of a loop such that clusters are recorded while it runs."""
    run = loop.run

    @wraps(run)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with record_clusters(loop.runner.model):
            return run(*args, **kwargs)

    return wrapped
