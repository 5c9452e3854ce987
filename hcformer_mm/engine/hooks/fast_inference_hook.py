"""FastInferenceHook: tests with fused BatchNorm, channels-last memory and lower precision."""

from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ...acceleration.inference import Step, autocast_test_step, check_dtype, prepare_for_inference
from ...registry import HOOKS


@HOOKS.register_module()
class FastInferenceHook(Hook):
    """Make the test loop faster; training and validation are left alone.

    The model is prepared after its checkpoint was loaded, and after other hooks such as MMEngine's
    ``EMAHook`` exchanged its weights. It is put back as it was after the last image, before they
    exchange them again; after an error, when the runner runs the next time. Meanwhile the weights
    of convolutions are there twice.

    Args:
        fast: Whether BatchNorm is fused and memory is channels-last; see
            :func:`~hcformer_mm.acceleration.inference.prepare_for_inference`.
        dtype: ``'float32'``, or the type of autocast: ``'bfloat16'`` or ``'float16'``. Metrics get
            float32.

    Raises:
        ValueError: Another ``dtype``.
    """

    # Before hooks that record what the model does, and before those that exchange weights back.
    priority = "VERY_HIGH"

    def __init__(self, *, fast: bool = True, dtype: str = "float32") -> None:
        self.fast = fast
        self.dtype = check_dtype(dtype)
        self._undo = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Put back what a test that failed has left, as hooks are not told of errors."""
        self._undo.close()

    def before_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Prepare the model before the first image, when all hooks are done with its weights."""
        if batch_idx > 0:
            return
        model = innermost(runner.model)
        if self.fast:
            self._undo.callback(prepare_for_inference(model))
        own: Step | None = vars(model).get("test_step")  # compiled, perhaps
        model.test_step = autocast_test_step(model, self.dtype)
        if own is None:
            self._undo.callback(delattr, model, "test_step")
        else:
            self._undo.callback(setattr, model, "test_step", own)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the model back as it was."""
        self._undo.close()


def innermost(model: nn.Module) -> Any:
    """The model itself: wrappers of distributed training and test-time augmentation hold it."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model
