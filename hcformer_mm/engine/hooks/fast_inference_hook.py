"""FastInferenceHook: tests with fused BatchNorm, channels-last memory and lower precision."""

from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...acceleration.inference import autocast_test_step, check_dtype, prepare_for_inference
from ...registry import HOOKS


@HOOKS.register_module()
class FastInferenceHook(Hook):
    """Make the test loop faster; training and validation stay as they are.

    The model is prepared after its checkpoint was loaded and after other hooks, such as MMEngine's
    ``EMAHook``, exchanged its weights. After the last image, and before they exchange them again,
    it is put back as it was; after an error, when the runner runs next. Meanwhile the weights of
    convolutions are in memory twice.

    Args:
        fast: Whether BatchNorm is fused and memory is channels-last; see
            :func:`~hcformer_mm.acceleration.inference.prepare_for_inference`.
        dtype: ``'float32'``, or ``'bfloat16'`` or ``'float16'`` for autocast. Metrics get float32.

    Raises:
        ValueError: There is no such ``dtype``; or, before the test, the model is sharded (FSDP,
            DeepSpeed), so that no process holds all weights of a layer.
    """

    # Before hooks that record what the model does, and before those that exchange weights back.
    priority = "VERY_HIGH"

    def __init__(self, *, fast: bool = True, dtype: str = "float32") -> None:
        self.fast = fast
        self.dtype = check_dtype(dtype)
        self._undo = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Undo what a failed test has left behind; MMEngine does not tell hooks of errors."""
        self._undo.close()

    def before_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Prepare the model before the first image, when no other hook changes its weights."""
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
        """Put the model back as it was."""
        self._undo.close()


def unwrap(model: nn.Module, option: str) -> Any:
    """The model inside the wrappers of distributed training and test-time augmentation.

    Args:
        model: The model of a runner.
        option: What an error tells the user to leave out.

    Raises:
        ValueError: The model is sharded.
    """
    if is_model_wrapper(model) and not isinstance(model, DistributedDataParallel):
        raise ValueError(
            "expected a model that every process holds as a whole, got "
            f"{type(model).__name__}; leave {option} out"
        )
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model
