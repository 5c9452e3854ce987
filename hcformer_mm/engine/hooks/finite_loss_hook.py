"""FiniteLossHook: stop training at the first loss that is NaN or infinite."""

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...registry import HOOKS
from ...utils.errors import InputError, some


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop at the iteration whose losses are NaN or infinite, before a checkpoint is saved.

    The losses are read where MMEngine's ``RuntimeInfoHook`` has already copied them to the CPU. A
    step that mixed precision skips, because gradients overflow in float16, has finite losses.
    mmdet's ``CheckInvalidLossHook`` looks at every 50th iteration only, and names neither losses
    nor images.

    Raises:
        InputError: A loss is not finite; the message names losses, images and the last checkpoint.
    """

    # After RuntimeInfoHook, and before hooks that average, log or save.
    priority = "HIGH"

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Check the losses of an iteration."""
        hub = runner.message_hub.log_scalars
        losses = {}
        for name, value in (outputs or {}).items():
            if "loss" in name:
                logged = hub.get(f"train/{name}")
                losses[name] = float(value) if logged is None else logged.current()
        bad = [f"{name} = {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
        if bad:
            samples = data_batch.get("data_samples") if isinstance(data_batch, dict) else None
            images = [
                str(getattr(sample, "img_path", "without a name")) for sample in samples or ()
            ]
            raise diverged(runner, f"{some(bad)} (images: {some(images, 16)})")


def diverged(runner: Runner, found: str) -> InputError:
    """Return the error that tells what to do when losses or weights are not finite."""
    last = runner.message_hub.get_info("last_ckpt")
    start = f"from the last checkpoint: --cfg-options load_from={last}" if last else "again"
    return InputError(
        f"expected finite losses and weights, got {found} at iteration {runner.iter + 1}; lower "
        "optim_wrapper.optimizer.lr or set optim_wrapper.clip_grad.max_norm, and start "
        f"{start}"
    )
