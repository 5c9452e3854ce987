"""Distributed training on machines without GPUs."""

from datetime import timedelta

from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed


def set_up_gloo(config: Config) -> None:
    """Initialize torchrun's process group with gloo if there is no GPU; otherwise do nothing.

    MMEngine would call ``torch.cuda.set_device``, and pass a GPU index to its DDP wrapper.

    Args:
        config: Config of a runner; its ``model_wrapper_cfg`` is set for the CPU.

    Raises:
        ValueError: The launcher, or the backend in ``env_cfg.dist_cfg``, needs a GPU.
    """
    launcher = config.get("launcher", "none")
    if launcher == "none" or get_device() != "cpu":
        return
    options = dict(config.get("env_cfg", {}).get("dist_cfg", {}))
    backend = options.pop("backend", "nccl")
    if launcher != "pytorch" or backend != "gloo":
        raise ValueError(
            "expected launcher 'pytorch' and backend 'gloo' on a machine without GPUs, got "
            f"{launcher!r} and {backend!r}; start with tools/dist_train.sh or tools/dist_test.sh, "
            "and add --cfg-options env_cfg.dist_cfg.backend=gloo"
        )
    if "timeout" in options:
        options["timeout"] = timedelta(seconds=options["timeout"])
    if not distributed.is_initialized():
        distributed.init_process_group(backend, **options)
    if "runner_type" not in config:
        config.model_wrapper_cfg = {
            "broadcast_buffers": False,
            "find_unused_parameters": config.get("find_unused_parameters", False),
            **config.get("model_wrapper_cfg", {}),
            "device_ids": None,
        }
