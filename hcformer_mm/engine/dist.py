"""Distributed training on machines without GPUs, and the units of sharded models."""

import os
import subprocess
from collections.abc import Collection
from datetime import timedelta

from mmengine.config import Config
from mmengine.device import get_device
from torch import distributed, nn

from ..utils.errors import InputError


def set_up_gloo(config: Config) -> None:
    """Initialize torchrun's process group with gloo if there is no GPU; otherwise do nothing.

    MMEngine would call ``torch.cuda.set_device``, and pass a GPU index to its DDP wrapper.

    Args:
        config: Config of a runner; its ``model_wrapper_cfg`` is set for the CPU.

    Raises:
        InputError: The launcher, or the backend in ``env_cfg.dist_cfg``, needs a GPU.
    """
    launcher = config.get("launcher", "none")
    if launcher == "none" or get_device() != "cpu":
        return
    options = dict(config.get("env_cfg", {}).get("dist_cfg", {}))
    backend = options.pop("backend", "nccl")
    if launcher != "pytorch" or backend != "gloo":
        raise InputError(
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


def join_processes(launcher: str) -> tuple[int, int]:
    """Join the processes of a job by gloo, on any device, and wait until all have.

    Args:
        launcher: ``'pytorch'`` for torchrun, ``'slurm'`` for srun, or ``'none'`` for one process.

    Returns:
        Rank of this process and number of processes; ``LOCAL_RANK`` is set in the environment.

    Raises:
        InputError: The launcher has not started this process.
    """
    if launcher == "none":
        return 0, 1
    try:
        if launcher == "slurm":
            names = dict(RANK="PROCID", WORLD_SIZE="NTASKS", LOCAL_RANK="LOCALID")
            os.environ.update({key: os.environ[f"SLURM_{name}"] for key, name in names.items()})
            os.environ.setdefault("MASTER_PORT", "29500")
            if "MASTER_ADDR" not in os.environ:
                nodes = ("scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"])
                os.environ["MASTER_ADDR"] = subprocess.check_output(nodes, text=True).split()[0]
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except KeyError as error:
        raise InputError(
            f"expected {error.args[0]} in the environment, as the launcher {launcher!r} sets it, "
            "got none; start with torchrun or srun, or use --launcher none"
        ) from None
    # Processes wait for the slowest, however long it takes.
    distributed.init_process_group("gloo", timeout=timedelta(days=365))
    distributed.barrier()
    return rank, world_size


def wrap_blocks(
    module: nn.Module, recurse: bool, nonwrapped_numel: int, *, types: Collection[str]
) -> bool:
    """FSDP's wrap policy for configs: each module of the named classes is a unit of its own.

    PyTorch's ``ModuleWrapPolicy`` takes classes, which a config cannot hold. A unit gathers its
    parameters only while it is called, so other modules may not read them; the clustering modules,
    whose scales :class:`~hcformer_mm.models.HCBackbone` reads, and heads, whose ``loss`` is called,
    are no units.

    Args:
        module: A module of the model.
        recurse: Whether FSDP asks for the children of ``module`` instead.
        nonwrapped_numel: Number of parameters that are not yet in a unit.
        types: Names of classes, such as ``"Bottleneck"``.

    Returns:
        Whether FSDP looks into the module, or makes it a unit.
    """
    return recurse or type(module).__name__ in types
