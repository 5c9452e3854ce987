"""FastTrainingHook: train with fused frozen BatchNorm and channels-last memory."""

from contextlib import ExitStack

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...acceleration.training import prepare_for_training
from ...registry import HOOKS
from .fast_inference_hook import unwrap


@HOOKS.register_module()
class FastTrainingHook(Hook):
    """Make the training loop faster and its backward pass need less memory.

    The model is prepared before the first iteration by
    :func:`~hcformer_mm.acceleration.training.prepare_for_training`, and validated in that form. It
    is restored after the last iteration or, if training fails, when the runner runs next. The gains
    were measured on CPUs.

    Raises:
        ValueError: Before training, if the model is sharded (FSDP, DeepSpeed): a convolution cannot
            read the weights of a BatchNorm that another shard holds.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._undo = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Restore the model after a failed run, since MMEngine does not notify hooks of errors."""
        self._undo.close()

    def before_train(self, runner: Runner) -> None:
        """Prepare the model after its checkpoint was loaded."""
        model = unwrap(runner.model, "FastTrainingHook (--fast)")
        self._undo.callback(prepare_for_training(model))

    def after_train(self, runner: Runner) -> None:
        """Restore the model."""
        self._undo.close()
