"""DataCheckHook: refuse a run whose config, classes and data do not fit each other."""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...registry import HOOKS
from ..loops import built_loops
from ..run_checks import Findings, check_run
from ..run_checks.annotations import release_annotations
from ..run_checks.classes import class_faults, heads_of


@HOOKS.register_module(name=["DataCheckHook", "ClassCheckHook"])
class DataCheckHook(Hook):
    """Check config, classes, annotation files and first images before anything runs.

    Refused are, among others, numbers or orders of classes that differ between model, ``metainfo``
    and annotation files, evaluators that read the annotations of other images, epochs that do not
    end, files that do not exist, and what the tools ``check_panoptic``, ``check_instances`` and
    ``check_semantic`` call errors; :mod:`hcformer_mm.engine.run_checks` has all rules. Models,
    datasets and metrics that it does not know are not checked.

    ``tools/train.py`` and ``tools/test.py`` check before datasets are built, also without this
    hook. Other tools need it, and then datasets are built first: mmdet stops with ``KeyError`` for
    some of these faults. In distributed runs the main process reads the files, and all stop.

    ``ClassCheckHook`` is another name of it.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._checked = False

    def check(self, runner: Runner, splits: Sequence[str], *, hand_over: bool = False) -> None:
        """Check what a runner is about to run.

        Args:
            runner: The runner, which may have built nothing yet.
            splits: The loops that will run, of ``'train'``, ``'val'`` and ``'test'``.
            hand_over: Whether datasets are built after this, and get the annotations that are
                parsed.

        Raises:
            InputError: The run would fail, or its results would be wrong; all faults are listed.
        """
        found = [Findings()]
        if is_main_process():
            found = [check_run(runner.cfg, runner.model, splits, hand_over=hand_over)]
        broadcast_object_list(found)
        for warning in found[0].warnings:
            runner.logger.warning(warning)
        found[0].refuse()
        self._checked = True

    def before_run(self, runner: Runner) -> None:
        """Check the loops that are about to run, and the datasets as they were built.

        What the checks have read of annotation files is released.

        Raises:
            InputError: As in :meth:`check`.
        """
        loops = built_loops(runner)
        if not self._checked:
            self.check(runner, tuple(loops))
        found = Findings()
        for split, loop in loops.items():
            for dataset in _unwrap(loop.dataloader.dataset):
                key = f"{split}_dataloader.dataset"
                name = f"{type(dataset).__name__} ({key})"
                found.faults += class_faults(heads_of(runner.model), dataset, name, key)
        found.refuse()
        release_annotations()


def _unwrap(dataset: Any) -> Iterator[Any]:
    """Yield the datasets inside MMEngine's wrappers, which repeat, concatenate or balance them."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from _unwrap(part)
    elif hasattr(dataset, "dataset"):
        yield from _unwrap(dataset.dataset)
    else:
        yield dataset
