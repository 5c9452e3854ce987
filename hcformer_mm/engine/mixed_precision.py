"""Mixed precision without a GPU, where MMEngine's wrapper of the optimizer refuses to run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import DefaultScope
from mmengine.runner.amp import autocast
from torch import nn

from ..registry import OPTIM_WRAPPERS
from ..utils.errors import InputError
from .run_checks.lookup import is_a


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Train under autocast in bfloat16, on a CPU or a GPU.

    bfloat16 has the exponents of float32, so losses need no scaling. MMEngine's ``AmpOptimWrapper``
    does the same on a GPU with ``dtype='bfloat16'``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute the forward pass and the losses of ``model`` under autocast."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def complete_optim_wrapper(config: Config) -> str | None:
    """Replace MMEngine's mixed precision in a config, in place, if this machine has only CPUs.

    Args:
        config: Full config of a runner.

    Returns:
        A sentence that tells the precision, for the log; None without mixed precision.

    Raises:
        InputError: The config asks for a dtype that CPUs do not train in.
    """
    wrapper, device = config.get("optim_wrapper"), get_device()
    with DefaultScope.overwrite_default_scope(config.get("default_scope")):
        if not is_a(MMENGINE_OPTIM_WRAPPERS, wrapper, AmpOptimWrapper, BFloat16OptimWrapper):
            return None
        if device == "cpu" and is_a(MMENGINE_OPTIM_WRAPPERS, wrapper, AmpOptimWrapper):
            if wrapper.get("dtype") not in (None, "bfloat16", torch.bfloat16):
                raise InputError(
                    "expected optim_wrapper.dtype 'bfloat16' for mixed precision on a CPU, got "
                    f"{wrapper.dtype!r}; leave it out, or set optim_wrapper.type=OptimWrapper"
                )
            for option in ("dtype", "loss_scale", "use_fsdp"):
                wrapper.pop(option, None)
            wrapper.type = "hcformer_mm.BFloat16OptimWrapper"
        scaled = is_a(MMENGINE_OPTIM_WRAPPERS, wrapper, AmpOptimWrapper)
    dtype = wrapper.get("dtype") or torch.get_autocast_dtype(device) if scaled else "bfloat16"
    scaling = "with" if scaled else "without"
    return f"Mixed precision: {str(dtype).rpartition('.')[2]} on {device}, {scaling} loss scaling"
