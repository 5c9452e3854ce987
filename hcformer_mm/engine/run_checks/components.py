"""Components of a run: whether their types exist, and have the settings that the config gives."""

import warnings
from collections.abc import Collection, Iterator, Sequence
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    HOOKS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    DefaultScope,
    Registry,
)
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from mmseg.evaluation import IoUMetric
from torch import ones
from torch.utils.data import DataLoader

from ...utils.components import (
    build_fault,
    setting_faults,
    type_fault,
    unexpected_argument,
    unknown_setting,
)
from ...utils.errors import cut
from .lookup import class_of, metrics_in
from .schedule import optimizer_of_trial, schedulers_in

_OWN_OF_LOADER = {
    "batch_sampler",
    "collate_fn",
    "dataset",
    "disable_subprocess_warning",
    "num_batch_per_epoch",
    "sampler",
    "worker_init_fn",
}
"""Settings of a data loader that MMEngine does not pass on to torch."""


def component_faults(config: Config, splits: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for every type that does not exist and every setting that its class lacks.

    MMEngine builds most components only after it has read the data of others. Nothing is read here.

    Args:
        config: Config of a runner.
        splits: The loops that will run, of ``'train'``, ``'val'`` and ``'test'``.
    """
    with DefaultScope.overwrite_default_scope(config.get("default_scope")):
        for split in splits:
            if isinstance(config.get(f"{split}_cfg"), dict):
                yield from _loop_faults(config[f"{split}_cfg"], split)
                yield from _loader_faults(config.get(f"{split}_dataloader"), f"{split}_dataloader")
                yield from _evaluator_faults(config, split)
        if "train" in splits:
            yield from _optimizer_faults(config.get("optim_wrapper"), "optim_wrapper")
            for key, scheduler in schedulers_in(config.get("param_scheduler"), "param_scheduler"):
                yield from _faults(
                    scheduler,
                    PARAM_SCHEDULERS,
                    key,
                    given=("optimizer",),
                    apart=("convert_to_iter_based", "epoch_length"),
                    trial=dict(optimizer=optimizer_of_trial(), epoch_length=1),
                )
        default, custom = config.get("default_hooks") or {}, config.get("custom_hooks") or ()
        for name, hook in default.items():
            yield from _faults(hook, HOOKS, f"default_hooks.{name}", apart={"priority"})
        for index, hook in enumerate(custom):
            yield from _faults(hook, HOOKS, f"custom_hooks[{index}]", apart={"priority"})


def _faults(
    settings: Any,
    registry: Registry,
    key: str,
    *,
    given: Collection[str] = (),
    apart: Collection[str] = (),
    trial: dict[str, Any] | None = None,
) -> Iterator[str]:
    """Yield the faults of a component.

    Its class shows them without being built, except for settings that it passes on by ``**kwargs``.

    Args:
        settings: Its config; a component that is already built has none.
        registry: The registry of its class.
        key: Its key in the config.
        given: Arguments that MMEngine adds.
        apart: Settings that MMEngine takes out before.
        trial: Arguments with which the class can be built and reads nothing; None to not build it.
    """
    if not isinstance(settings, dict):
        return
    if "type" not in settings:
        yield f"expected a dict with type as {key}, got {cut(dict(settings), 60)}; add its type"
        return
    with registry.switch_scope_and_registry(settings.get("_scope_")) as scoped:
        build = settings["type"]
        if isinstance(build, str) and (build := scoped.get(build)) is None:
            yield type_fault(settings["type"], scoped, key)
        elif callable(build):
            own = [name for name in settings if name not in {"type", "_scope_", *apart}]
            faults = list(setting_faults(build, own, given, key))
            if trial is not None and not faults:
                # Other errors may come from the arguments of the trial.
                name = unexpected_argument(_trial_error({**settings, **trial}, registry))
                if name in settings:
                    faults = [unknown_setting(build, name, key)]
            yield from faults


def _trial_error(settings: dict[str, Any], registry: Registry) -> Exception | None:
    """Build a component and return its error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns again when it is built for the run
            registry.build(deepcopy(settings))
    except Exception as error:  # of any component of any package
        return error
    return None


def _loop_faults(loop: dict[str, Any], split: str) -> Iterator[str]:
    key, given = f"{split}_cfg", ["runner", "dataloader"]
    default: Any = dict(val=ValLoop, test=TestLoop).get(split)
    if split != "train":
        given.append("evaluator")
    elif "by_epoch" in loop:
        default = EpochBasedTrainLoop if loop["by_epoch"] else IterBasedTrainLoop
    if "type" not in loop and default is not None:
        loop = {**loop, "type": default}
    yield from _faults(loop, LOOPS, key, given=given, apart={"by_epoch"})


def _loader_faults(loader: Any, key: str) -> Iterator[str]:
    if not isinstance(loader, dict):
        return
    yield from _dataset_faults(loader.get("dataset"), f"{key}.dataset")
    if "batch_sampler" in loader:
        given = ("sampler", "batch_size")
        yield from _faults(
            loader["batch_sampler"], DATA_SAMPLERS, f"{key}.batch_sampler", given=given
        )
    yield from _faults(
        loader.get("sampler"), DATA_SAMPLERS, f"{key}.sampler", given=("dataset", "seed")
    )
    for name in ("dataset", "sampler"):
        if loader.get(name) is None:
            yield f"expected a dict with type as {key}.{name}, got none; add it"
    own = {name: value for name, value in loader.items() if name not in _OWN_OF_LOADER}
    faults = list(setting_faults(DataLoader, own, ("dataset",), key))
    yield from faults
    if not faults:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of more workers than cores, as in the run
                DataLoader([0], sampler=[0], **own)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            yield build_fault(error, own, key)


def _dataset_faults(dataset: Any, key: str) -> Iterator[str]:
    """Yield the faults of a dataset, of those that it wraps, and of their pipelines."""
    if not isinstance(dataset, dict):
        return
    wrapped = {f"{key}.dataset": dataset["dataset"]} if "dataset" in dataset else {}
    if isinstance(dataset.get("datasets"), list | tuple):
        wrapped |= {f"{key}.datasets[{i}]": one for i, one in enumerate(dataset["datasets"])}
    trial = None if wrapped else dict(lazy_init=True, pipeline=[])
    yield from _faults(dataset, DATASETS, key, trial=trial)
    with DefaultScope.overwrite_default_scope(dataset.get("_scope_")):
        for place, part in wrapped.items():
            if isinstance(part, dict) and "type" in part:  # else settings of that name
                yield from _dataset_faults(part, place)
        for index, step in enumerate(dataset.get("pipeline") or ()):
            yield from _step_faults(step, f"{key}.pipeline[{index}]")


def _step_faults(step: Any, key: str) -> Iterator[str]:
    faults = list(_faults(step, TRANSFORMS, key))
    yield from faults
    if isinstance(step, dict) and not faults:
        error = _trial_error(step, TRANSFORMS)
        if isinstance(error, KeyError | TypeError | ValueError | AssertionError):
            yield build_fault(error, step, key)


def _evaluator_faults(config: Config, split: str) -> Iterator[str]:
    key = f"{split}_evaluator"
    evaluator = config.get(key)
    if isinstance(evaluator, dict) and "metrics" in evaluator:
        evaluator = {"type": "Evaluator", **evaluator}
        yield from _faults(evaluator, EVALUATOR, key)
    for place, metric in metrics_in(config, split):
        yield from _faults(metric, METRICS, place)
        kind: Any = class_of(METRICS, metric)
        if kind is IoUMetric:  # which looks at them after a validation
            names = metric.get("iou_metrics", ["mIoU"])
            try:
                kind.total_area_to_metrics(*4 * [ones(1)], names)
            except KeyError:
                yield (
                    f"expected scores of IoUMetric as {place}.iou_metrics, such as 'mIoU', 'mDice' "
                    f"and 'mFscore', got {names!r}; correct them"
                )


def _optimizer_faults(wrapper: Any, key: str) -> Iterator[str]:
    if not isinstance(wrapper, dict):
        return
    constructor = dict(type=wrapper.get("constructor", DefaultOptimWrapperConstructor))
    given = ("optim_wrapper_cfg", "paramwise_cfg")
    yield from _faults(constructor, OPTIM_WRAPPER_CONSTRUCTORS, f"{key}.constructor", given=given)
    kind: Any = class_of(OPTIM_WRAPPER_CONSTRUCTORS, constructor)
    # Others may build several optimizers, or take settings of their own from this config.
    default = DefaultOptimWrapperConstructor
    if all(getattr(kind, one, None) is getattr(default, one) for one in ("__init__", "__call__")):
        own = {"type": "OptimWrapper", **wrapper}
        yield from _faults(own, OPTIM_WRAPPERS, key, apart={"constructor", "paramwise_cfg"})
        optimizer = wrapper.get("optimizer")
        yield from _faults(optimizer, OPTIMIZERS, f"{key}.optimizer", given=("params",))
