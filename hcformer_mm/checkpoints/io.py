"""Files of weights: those of strangers are read as data, ours are written whole or not at all."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..utils.atomic_write import replacing
from .numpy_pickle import load_array_pickle
from .safe_load import load_checkpoint

SAFETENSORS = ".safetensors"
WRAPPER = "module."
"""How the names begin that PyTorch's wrappers for training on several devices give."""
# torch.save writes a zip; before version 1.6 it wrote a pickle that begins with this number.
_TORCH_BEGINNINGS = (b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")
_NUMPY_TYPES: list[Any] = [type(np.dtype(name)) for name in ("float16", "int16", "int8", "uint8")]


def read_weights_file(path: str | Path) -> dict[str, Any]:
    """Read a file with weights, without running code of the file.

    Args:
        path: What ``torch.save`` wrote, a plain pickle of numpy arrays (Detectron2's ``.pkl``), or
            a ``.safetensors`` file, whose tensors come as ``state_dict`` and whose metadata come as
            ``meta``.

    Returns:
        What the file holds, tensors on the CPU; arrays are still arrays.

    Raises:
        ValueError: There is no such file, it is damaged, of another kind, or holds other things
            than weights and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"expected a file with weights, but {path} is none")
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    with path.open("rb") as file:
        is_torch = file.read(32).startswith(_TORCH_BEGINNINGS)
    content = _read_torch(path) if is_torch else _read_pickle(path)
    if not isinstance(content, dict):
        raise ValueError(f"expected {path} to hold a dict, got {type(content).__name__}")
    return content


def tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among the entries of a dict; numpy arrays become tensors, the rest is left out.

    Args:
        content: Names with tensors, arrays of numbers, or other values.

    Raises:
        ValueError: An array is of numbers that no tensor holds, or the names are those of a model
            that is still wrapped for training on several devices.
    """
    tensors: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            try:
                # A copy that may be written to.
                tensors[name] = torch.from_numpy(np.array(value))
            except TypeError:
                raise ValueError(
                    f"expected {name} to be of numbers that a tensor can hold, got an array of "
                    f"{value.dtype}; convert it, to float64 for instance"
                ) from None
    if tensors and all(str(name).startswith(WRAPPER) for name in tensors):
        raise ValueError(
            f"expected the names of the model's tensors, got all of them with the prefix "
            f"{WRAPPER!r} of DistributedDataParallel or DataParallel ({some(tensors, 2)}); "
            "remove it from the names"
        )
    return tensors


def weights_entry(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a checkpoint that holds its weights.

    Args:
        content: What :func:`read_weights_file` reads.

    Returns:
        Its entry ``state_dict`` or ``model``; all of it, if there is neither.
    """
    entries = (content[key] for key in ("state_dict", "model") if key in content)
    return next((entry for entry in entries if isinstance(entry, Mapping)), content)


def some(names: Iterable[Any], limit: int = 4) -> str:
    """The first of many names, for an error message."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return f"{', '.join(listed[:limit]) or 'nothing'}{more}"


def write_weights_file(
    path: str | Path, content: Mapping[str, Any], *, weights: str = "state_dict"
) -> None:
    """Write a checkpoint under another name and rename it: it is whole or not there.

    The bytes depend on the content alone, not on the name of the file or the time.

    Args:
        path: A ``.safetensors`` file holds the weights alone, with everything else as JSON in its
            metadata; any other suffix means ``torch.save``.
        content: The entries of the checkpoint.
        weights: Under which of them the weights are.

    Raises:
        ValueError: The folder does not exist, or ``path`` is one.
        ImportError: The suffix asks for safetensors, which is not installed.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"expected a file in an existing folder to write to, got {path}")
    write: Callable[[BinaryIO], None]
    if path.suffix == SAFETENSORS:
        metadata = {key: json.dumps(value) for key, value in content.items() if key != weights}
        data = _safetensors().save(_owned(content[weights]), {"format": "pt", **metadata})

        def write(file: BinaryIO) -> None:
            file.write(data)
    else:
        whole = {**content, weights: _owned(content[weights])}

        def write(file: BinaryIO) -> None:
            # Given a path, torch would write the file's name into it.
            torch.save(whole, file)

    with replacing(path) as unfinished, unfinished.open("wb") as file:
        write(file)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values, each in memory of its own: a view would be written with all it looks at."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(_NUMPY_TYPES):
        return load_checkpoint(path)


def _read_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return load_array_pickle(file)
    except Exception as error:  # a damaged pickle raises whatever its first wrong byte means
        raise ValueError(
            f"expected {path} to be written by torch.save, or to be a pickle of numpy arrays or a "
            f"{SAFETENSORS} file: {error}"
        ) from None


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = _safetensors()
    try:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        state_dict = safetensors.load_file(path)
    except Exception as error:  # of the library's own kind, which only it defines
        raise ValueError(f"expected {path} to be a {SAFETENSORS} file: {error}") from None
    try:
        meta = json.loads(metadata.get("meta", "{}"))
    except ValueError as error:
        raise ValueError(f"expected the metadata 'meta' of {path} to be JSON: {error}") from None
    if not isinstance(meta, dict):
        raise ValueError(
            f"expected the metadata 'meta' of {path} to be a dict, got {type(meta).__name__}"
        )
    return dict(state_dict=state_dict, meta=meta)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError(
            f"expected the package safetensors, to read and write {SAFETENSORS} files, found none: "
            "pip install safetensors"
        ) from None
    return safetensors.torch
