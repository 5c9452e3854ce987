"""Checkpoint files: loaded with ``weights_only=True``, and saved whole or not at all."""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from torch import Tensor

from ..utils.atomic_write import replacing
from ..utils.errors import InputError

SAFETENSORS = ".safetensors"
WRAPPER = "module."
"""Prefix that DistributedDataParallel and DataParallel give to every name."""
# torch.save writes a zip file; before version 1.6 it wrote a pickle that begins with this number.
_ZIP = b"PK"
_TORCH_MAGIC = (_ZIP, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint without running code from the file.

    Checksums are compared, which ``torch.load`` does not do: a flipped bit would change a weight.
    A ``.safetensors`` file and one of PyTorch before 1.6 have none.

    Args:
        path: File of ``torch.save``, where numpy arrays and MMEngine's training logs may accompany
            the tensors, or a ``.safetensors`` file.

    Returns:
        Content of the file, with tensors on the CPU. A ``.safetensors`` file gives its tensors as
        ``state_dict`` and its metadata as ``meta``.

    Raises:
        FileNotFoundError: ``path`` is not a file.
        ValueError: The file is damaged, has another format (such as ``.pkl``), does not hold a
            dict, or holds more than weights, plain values and logs.
        ImportError: A ``.safetensors`` file is given, but safetensors is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    content = _load_safetensors(path) if path.suffix == SAFETENSORS else _load_torch(path)
    if not isinstance(content, dict):
        raise InputError(f"expected {path} to hold a dict, got {type(content).__name__}")
    return content


def force_weights_only() -> None:
    """Make MMEngine read files by :func:`load_checkpoint`, and ``torch.load`` refuse code.

    Without this, MMEngine's runner would warn and load a file that holds code, and MMEngine's own
    list of safe globals contains ``getattr``.
    """
    CheckpointLoader.register_scheme("", _load_for_mmengine, force=True)
    torch.serialization.add_safe_globals(_safe_globals())
    if hasattr(checkpoint, "get_torch_safe_globals"):  # only the maintained fork has it
        checkpoint.get_torch_safe_globals = _safe_globals
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def save_checkpoint(
    path: str | Path, content: Mapping[str, Any], *, weights: str = "state_dict"
) -> None:
    """Save a checkpoint atomically: under a temporary name, which is then changed.

    The bytes depend only on the content, not on the file name or the time.

    Args:
        path: A ``.safetensors`` file gets the weights, and every other entry as JSON in its
            metadata; any other suffix means ``torch.save``.
        content: Entries of the checkpoint.
        weights: Key of the entry that holds the weights.

    Raises:
        ValueError: The folder does not exist, or ``path`` is a folder.
        ImportError: ``path`` is a ``.safetensors`` file, but safetensors is not installed.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"expected a file in an existing folder to write to, got {path}")
    tensors = _without_shared_memory(content[weights])
    with replacing(path) as unfinished:
        if path.suffix == SAFETENSORS:
            metadata = {key: json.dumps(value) for key, value in content.items() if key != weights}
            # Not by save_file, which makes files that nobody but their owner may read.
            data = _safetensors().torch.save(tensors, {"format": "pt", **metadata})
            unfinished.write_bytes(data)
        else:
            # Given a path, torch.save would store its name in the file.
            with unfinished.open("wb") as file:
                torch.save({**content, weights: tensors}, file)


def weights_entry(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of a checkpoint that holds the weights, else the whole checkpoint."""
    entries = (content.get(key) for key in ("state_dict", "model", "model_state"))
    return next((entry for entry in entries if isinstance(entry, Mapping)), content)


def tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors and numeric arrays of a dict, all as tensors; drop its other values.

    The prefix :data:`WRAPPER` is removed if all names have it.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            # A writable copy in the machine's byte order.
            tensors[name] = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if all(name.startswith(WRAPPER) for name in tensors):
        tensors = {name.removeprefix(WRAPPER): value for name, value in tensors.items()}
    return tensors


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load_for_mmengine(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a file for MMEngine: on the CPU, from where it copies to any device."""
    try:
        content = load_checkpoint(Path(filename).expanduser())
    except FileNotFoundError as error:
        raise InputError(str(error)) from None
    entry = weights_entry(content)
    # MMEngine knows no other name of this entry.
    return content if entry is content else content | {"state_dict": entry}


def _load_torch(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(32)
    if not head.startswith(_TORCH_MAGIC):
        raise InputError(
            f"expected {path} to be written by torch.save or to be a {SAFETENSORS} file; if it is "
            "a pickle (.pkl) that you trust, convert it where Detectron2 is installed: "
            "torch.save(pickle.load(open('model.pkl', 'rb'), encoding='latin1'), 'model.pth')"
        )
    # On exit, the context removes its globals, even those that force_weights_only added before.
    present = torch.serialization.get_safe_globals()
    missing = [item for item in _safe_globals() if item not in present]
    try:
        if head.startswith(_ZIP):
            _check_sums(path)
        with torch.serialization.safe_globals(missing):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"expected {path} to hold only weights, plain values and logs, which load without "
            f"running code: {_reason(error)}"
        ) from None
    except Exception as error:  # whatever the readers of zip files and pickles stumble over
        raise InputError(
            f"expected {path} to be a complete file of torch.save, which it is not "
            f"({_reason(error)}); copy or download it again"
        ) from None


def _reason(error: Exception) -> str:
    """The line of an error of ``torch.load`` that does not advise to load the file all the same."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    return text.partition("\n")[0] or type(error).__name__


def _check_sums(path: Path) -> None:
    with ZipFile(path) as archive:
        # torch.save writes 0 for all of them where its checksums are switched off.
        if any(info.CRC for info in archive.infolist()) and (damaged := archive.testzip()):
            raise ValueError(f"the checksum of its record {damaged} is wrong")


def _load_safetensors(path: Path) -> dict[str, Any]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        state_dict = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"expected {path} to be a {SAFETENSORS} file: {error}") from None
    try:
        meta = json.loads(metadata.get("meta", "{}"))
    except ValueError as error:
        raise InputError(f"expected the metadata 'meta' of {path} to be JSON: {error}") from None
    if not isinstance(meta, dict):
        raise InputError(
            f"expected the metadata 'meta' of {path} to be a dict, got {type(meta).__name__}"
        )
    return dict(state_dict=state_dict, meta=meta)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError(
            f"expected the package safetensors to read and write {SAFETENSORS} files: "
            "pip install safetensors"
        ) from None
    return safetensors


def _statistic(owner: Any, name: str) -> Any:
    """Stand in for ``getattr`` in a pickled HistoryBuffer, which looks up its statistics.

    The real ``getattr`` would let a file reach the globals of a module through any function.
    """
    if owner is not HistoryBuffer or name not in ("min", "max", "mean", "current"):
        raise pickle.UnpicklingError(f"getattr of {owner!r} and {name!r} does not belong to a log")
    return getattr(owner, name)


def _safe_globals() -> list[Any]:
    """Return the globals that a checkpoint may name: those of numpy arrays and MMEngine's logs."""
    array = np.zeros(1)
    reconstruct, scalar = array.__reduce__()[0], array[0].__reduce__()[0]
    kinds = "float64 float32 float16 int64 int32 int16 int8 uint8 bool"
    dtypes = [type(np.dtype(kind)) for kind in kinds.split()]
    # numpy 2 moved these functions; files name them at the place of the version that wrote them.
    moved = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((reconstruct, "_reconstruct"), (scalar, "scalar"))
    ]
    getters = [(_statistic, f"{module}.getattr") for module in ("builtins", "__builtin__")]
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *moved, *getters]


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that are views or share memory, as a view would be saved with its whole base."""
    copies: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        copies[name] = tensor
    return copies
