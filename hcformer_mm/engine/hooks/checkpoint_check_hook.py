"""CheckpointCheckHook: refuse checkpoints of another model, of other classes or optimizers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...checkpoints.fit import load_weights
from ...registry import HOOKS
from ...utils.config import build_without_weights
from ...utils.errors import InputError, some
from ..loops import built_loops

ALLOW_PARTIAL = "--allow-partial"
# Options that tell optimizers apart, whatever the version of PyTorch.
_OPTIMIZER_OPTIONS = {"alpha", "betas", "lambd", "momentum", "rho"}


@HOOKS.register_module()
class CheckpointCheckHook(Hook):
    """Check, before anything runs, that the runner's checkpoint belongs to what runs.

    MMEngine loads what fits, logs the rest and goes on. Here a test and a resumed training need
    every weight, and the dataset's class names in the checkpoint's order; upper and lower case are
    the same. A resumed training also needs the state of an optimizer like its own. A training that
    begins with ``load_from`` warns of what the model did not get, and is refused only if that is
    everything.

    The files of a sharded model that each hold a part of it are not checked.

    Args:
        allow_partial: Whether a test warns instead, unless nothing fits.
    """

    priority = "VERY_HIGH"

    def __init__(self, *, allow_partial: bool = False) -> None:
        self.allow_partial = allow_partial

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Check the content of a checkpoint.

        Raises:
            InputError: The checkpoint does not belong to what runs.
        """
        if any("flat_param" in str(name) for name in checkpoint.get("state_dict", ())):
            return
        file = runner._load_from or find_latest_checkpoint(runner.work_dir)
        loops = built_loops(runner)  # those that run
        split = next(split for split in ("train", "test", "val") if split in loops)
        loop, training = loops[split], split == "train"
        fit = load_weights(_whole_model(runner), checkpoint, file)
        resuming = training and runner._resume
        tuning = training and not resuming and fit.loaded > 0
        faults = []
        if weights := fit.faults():
            faults.append(weights + f"; {fit.advice()}" * (not tuning))
        metainfo = getattr(loop.dataloader.dataset, "metainfo", {})
        taken = "; labels would be taken for other classes" * (not tuning)
        faults += (classes + taken for classes in compare_classes(checkpoint, metainfo))
        if resuming:
            faults += _compare_state(checkpoint, runner.optim_wrapper)
        if not faults:
            return
        message = f"{file} does not fit {runner.cfg.filename}: {'; '.join(faults)}"
        if not fit.loaded or resuming or not (training or self.allow_partial):
            may = fit.loaded and not training
            raise InputError(message + f"; or go on with {ALLOW_PARTIAL}" * bool(may))
        runner.logger.warning(f"{message}; {fit.loaded} tensors are loaded")


def compare_classes(checkpoint: Mapping[str, Any], metainfo: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message if a checkpoint was trained on other classes, or in another order.

    Args:
        checkpoint: Content of a checkpoint; without names of classes in its ``meta`` it passes.
        metainfo: ``metainfo`` of a dataset, likewise.
    """
    meta = (checkpoint.get("meta") or {}).get("dataset_meta") or {}
    trained = _names(meta.get("classes", meta.get("CLASSES")))  # capitals before mmdet 3.0
    present = _names(metainfo.get("classes"))
    if not trained or not present or [*map(str.casefold, trained)] == [*map(str.casefold, present)]:
        return
    yield (
        f"it was trained on the classes {some(trained, 20)}, but the dataset has "
        f"{some(present, 20)}"
    )


def _names(classes: Any) -> Sequence[str]:
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else []


def _whole_model(runner: Runner) -> nn.Module:
    model = runner.model
    if is_model_wrapper(model) and not isinstance(model, DistributedDataParallel):
        model = build_without_weights(runner.cfg)  # no process holds all weights of a sharded one
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def _compare_state(checkpoint: Mapping[str, Any], optim_wrapper: Any) -> Iterator[str]:
    """Yield a message if a training cannot continue from the state in a checkpoint."""
    missing = [key for key in ("optimizer", "message_hub", "meta") if key not in checkpoint]
    if missing:
        yield (
            f"it lacks the state of a training ({', '.join(missing)}); begin a new training from "
            "it with load_from"
        )
        return
    saved = checkpoint["optimizer"].get("param_groups")
    own = getattr(getattr(optim_wrapper, "optimizer", None), "param_groups", None)
    if saved is None or own is None:
        return
    found, expected = map(_describe_groups, (saved, own))
    if found != expected:
        yield (
            f"it holds the state of an optimizer with {found}, but this training has one with "
            f"{expected}; resume with the optim_wrapper of the interrupted training"
        )


def _describe_groups(groups: list[dict[str, Any]]) -> str:
    """Describe the parameter groups of an optimizer, by what its state depends on."""
    sizes = [str(len(group["params"])) for group in groups]
    options = sorted(_OPTIMIZER_OPTIONS & groups[0].keys())
    return f"{some(sizes)} parameters in its groups and the options {some(options)}"
