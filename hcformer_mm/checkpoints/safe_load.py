"""Checkpoints as data: files from strangers are read without running code of theirs."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint


def _buffer_method(owner: Any, name: str) -> Any:
    """What ``getattr`` stands for in a checkpoint: a statistic of a training curve.

    ``getattr`` itself would open everything: from any function one gets at its module's globals.
    """
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise pickle.UnpicklingError(f"getattr of {owner!r} and {name!r} is no part of a log")
    return getattr(owner, name)


def _logs() -> list[Any]:
    """What a checkpoint of MMEngine holds beside weights: the curves of its training."""
    array = np.zeros(1)
    reconstruct, scalar = array.__reduce__()[0], array[0].__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    # numpy 2 moved its functions; a file of the other numpy names them where they were.
    renamed = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((reconstruct, "_reconstruct"), (scalar, "scalar"))
    ]
    getters = [(_buffer_method, f"{module}.getattr") for module in ("builtins", "__builtin__")]
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *renamed, *getters]


def read_weights_only() -> None:
    """From here on, make every ``torch.load`` of this process refuse files that hold code.

    The host's runner would fall back to loading such a file with a warning, and its own list of
    what is safe has ``getattr`` on it.
    """
    torch.serialization.add_safe_globals(_logs())
    if hasattr(checkpoint, "get_torch_safe_globals"):
        checkpoint.get_torch_safe_globals = _logs
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, without running code of the file.

    Args:
        path: A file that ``torch.save`` wrote, with MMEngine's logs or without.

    Returns:
        What the file holds, tensors on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds other things than weights, plain values and logs, or is damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    try:
        with torch.serialization.safe_globals(_logs()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"expected {path} to hold weights, plain values and logs, and nothing that has to be "
            f"run to be read: {error}"
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"expected {path} to be a whole file of torch.save, got one that is damaged or of "
            f"another kind: {error or type(error).__name__}"
        ) from None
