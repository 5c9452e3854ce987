"""Loop, sampler, schedules and checkpoints: epochs or iterations; and the optimizer's precision."""

from collections.abc import Iterator
from typing import Any

from mmdet.datasets.samplers import GroupMultiSourceSampler, MultiSourceSampler
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import DATA_SAMPLERS, LOOPS, OPTIM_WRAPPERS, PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn, zeros
from torch.optim import SGD

from .lookup import class_of, is_a

_ENDLESS = (InfiniteSampler, MultiSourceSampler, GroupMultiSourceSampler)


def schedule_faults(config: Config) -> Iterator[str]:
    """Yield a sentence for every setting by which training does not start, end or step."""
    loader = config.get("train_dataloader") or {}
    sampler = class_of(DATA_SAMPLERS, loader.get("sampler"))
    if sampler and _counts(config, EpochBasedTrainLoop) and sampler in _ENDLESS:
        yield (
            "expected a sampler that ends an epoch in train_dataloader for the "
            f"EpochBasedTrainLoop of train_cfg, got {sampler.__name__}; set "
            "train_dataloader.sampler.type='DefaultSampler', or count iterations: "
            "train_cfg.type='IterBasedTrainLoop' with max_iters"
        )
    yield from _length_faults(config)
    wrapper = config.get("optim_wrapper")
    # MMEngine asserts the same when it builds the wrapper, and names neither key nor remedy.
    if get_device() == "mps" and is_a(OPTIM_WRAPPERS, wrapper, AmpOptimWrapper):
        yield (
            "expected a CPU or a CUDA device for the mixed precision of optim_wrapper, got mps; "
            "set optim_wrapper.type=OptimWrapper, and leave out --amp"
        )
    if _counts(config, IterBasedTrainLoop):
        for key, scheduler in schedulers_in(config.get("param_scheduler"), "param_scheduler"):
            if _steps_by_epoch(scheduler):
                yield (
                    f"expected {key}.by_epoch=False for the IterBasedTrainLoop of train_cfg, which "
                    "has no epochs, got a schedule by epochs, which would never change the "
                    f"learning rate; set {key}.by_epoch=False, and its begin, end and milestones "
                    "in iterations"
                )


def _length_faults(config: Config) -> Iterator[str]:
    """Yield a sentence for every number of MMEngine's loops by which they train nothing or stop."""
    if not (_counts(config, EpochBasedTrainLoop) or _counts(config, IterBasedTrainLoop)):
        return
    for name in ("max_epochs", "max_iters"):
        length = config.train_cfg.get(name, 1)
        if not isinstance(length, int | float) or length < 1 or not float(length).is_integer():
            yield f"expected a whole number from 1 on as train_cfg.{name}, got {length!r}; set it"
    # MMEngine divides by it, after the first epoch or iteration.
    if config.get("val_cfg") is not None and config.train_cfg.get("val_interval") == 0:
        yield (
            "expected train_cfg.val_interval of at least 1, got 0; set it, or set val_cfg, "
            "val_dataloader and val_evaluator to None to train without validation"
        )


def schedule_warnings(config: Config) -> Iterator[str]:
    """Yield a sentence if an interruption would lose the whole training."""
    hook = (config.get("default_hooks") or {}).get("checkpoint", {})
    if (
        _counts(config, IterBasedTrainLoop)
        and isinstance(hook, dict)
        and hook.get("by_epoch", True)
    ):
        yield (
            "default_hooks.checkpoint counts epochs, and the IterBasedTrainLoop of train_cfg has "
            "none: no checkpoint is saved before the end; set default_hooks.checkpoint.by_epoch="
            "False and its interval in iterations"
        )


def _counts(config: Config, kind: type) -> bool:
    """Whether the training loop is of a kind; classes derived from one may count otherwise."""
    loop = config.get("train_cfg")
    if isinstance(loop, dict) and "by_epoch" in loop:
        return kind is (EpochBasedTrainLoop if loop["by_epoch"] else IterBasedTrainLoop)
    return class_of(LOOPS, loop) is kind


def schedulers_in(config: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the configs of schedulers, which several optimizers have in a dict, by their keys."""
    if isinstance(config, list | tuple):
        for index, one in enumerate(config):
            yield from schedulers_in(one, f"{key}[{index}]")
    elif isinstance(config, dict) and "type" in config:
        yield key, config
    elif isinstance(config, dict):
        for name, part in config.items():
            yield from schedulers_in(part, f"{key}.{name}")


def optimizer_of_trial() -> SGD:
    """Return an optimizer with which a scheduler can be built before the model is."""
    return SGD([nn.Parameter(zeros(1))], lr=1.0, momentum=0.9)


def _steps_by_epoch(settings: dict[str, Any]) -> bool:
    if settings.get("convert_to_iter_based", False):
        return False
    try:
        scheduler = PARAM_SCHEDULERS.build({**settings, "optimizer": optimizer_of_trial()})
    except Exception:  # of any scheduler of any package; the runner tells
        return False
    # Schedulers that wait for a plateau step after each validation, in any loop.
    return scheduler.by_epoch and not getattr(scheduler, "need_val_args", False)
