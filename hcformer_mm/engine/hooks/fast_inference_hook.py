"""FastInferenceHook: test with fused BatchNorm, channels-last memory and lower precision."""

from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ...acceleration.inference import autocast_test_step, check_dtype, prepare_for_inference
from ...registry import HOOKS
from ...utils.errors import InputError


@HOOKS.register_module()
class FastInferenceHook(Hook):
    """Make the test loop faster; training and validation stay as they are.

    The model is prepared after its checkpoint was loaded and after other hooks, such as MMEngine's
    ``EMAHook``, swapped its weights. It is restored after the last image, before those hooks swap
    the weights back; if the test fails, it is restored when the runner runs next. While it is
    prepared, the weights of convolutions are in memory twice.

    Args:
        fast: Whether BatchNorm is fused and memory is channels-last; see
            :func:`~hcformer_mm.acceleration.inference.prepare_for_inference`.
        dtype: ``'float32'``, or ``'bfloat16'`` or ``'float16'`` for autocast. Metrics get float32.

    Raises:
        ValueError: ``dtype`` is unknown; or, before the test, the model is sharded (FSDP,
            DeepSpeed), so that no process holds all weights of a layer.
    """

    # Run before hooks that record the model's outputs, and before those that swap weights back.
    priority = "VERY_HIGH"

    def __init__(self, *, fast: bool = True, dtype: str = "float32") -> None:
        self.fast = fast
        self.dtype = check_dtype(dtype)
        self._undo = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Restore the model after a failed test, since MMEngine does not notify hooks of errors."""
        self._undo.close()

    def before_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Prepare the model before the first image, when no other hook will change its weights."""
        if batch_idx > 0:
            return
        model = unwrap(runner.model, "FastInferenceHook (--fast, --dtype)")
        if self.fast:
            self._undo.callback(prepare_for_inference(model))
        own = vars(model).get("test_step")  # perhaps a compiled one
        model.test_step = autocast_test_step(model, self.dtype)
        if own is None:
            self._undo.callback(delattr, model, "test_step")
        else:
            self._undo.callback(setattr, model, "test_step", own)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Restore the model."""
        self._undo.close()


def unwrap(model: nn.Module, option: str) -> Any:
    """Return the model inside the wrappers of distributed training and test-time augmentation.

    Args:
        model: The model of a runner.
        option: The option that the error message advises not to use.

    Raises:
        InputError: The model is sharded.
    """
    wrapped = is_model_wrapper(model) and not isinstance(model, DistributedDataParallel)
    # DeepSpeed's wrapper is no module.
    if wrapped or _is_sharded(model):
        raise InputError(
            "expected a model that every process holds as a whole, got "
            f"{type(model).__name__}; do not use {option}"
        )
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def _is_sharded(model: nn.Module) -> bool:
    """Whether PyTorch shards a part: FSDP1 wraps modules, FSDP2 replaces parameters."""
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )
