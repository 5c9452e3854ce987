"""FastTrainingHook: training with frozen BatchNorm fused and channels-last memory."""

from contextlib import ExitStack

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.nn.parallel import DistributedDataParallel

from ...acceleration.training import prepare_for_training
from ...registry import HOOKS
from .fast_inference_hook import innermost


@HOOKS.register_module()
class FastTrainingHook(Hook):
    """Make the training loop faster, and let it keep less for the backward pass.

    The model is prepared before the first iteration, and put back as it was after the last; after
    an error, when the runner runs the next time. Validation in between runs on the prepared model.
    See :func:`~hcformer_mm.acceleration.training.prepare_for_training`; measured on CPUs.

    Raises:
        ValueError: The model is sharded (FSDP, DeepSpeed): a convolution cannot read the weights of
            a BatchNorm that another part holds.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._undo = ExitStack()

    def before_run(self, runner: Runner) -> None:
        """Put back what a training that failed has left, as hooks are not told of errors."""
        self._undo.close()

    def before_train(self, runner: Runner) -> None:
        """Prepare the model, whose checkpoint was loaded."""
        if is_model_wrapper(runner.model) and not isinstance(runner.model, DistributedDataParallel):
            raise ValueError(
                "expected a model that each process holds as a whole for fast training, got "
                f"{type(runner.model).__name__}; leave FastTrainingHook (--fast) out"
            )
        self._undo.callback(prepare_for_training(innermost(runner.model)))

    def after_train(self, runner: Runner) -> None:
        """Put the model back as it was."""
        self._undo.close()
