"""Publish trained weights as OpenMMLab does: without training state, with a hash in the name."""

import ast
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor

from ..utils.errors import some
from ..version import __version__
from .io import load_checkpoint, save_checkpoint, sha256, tensors_of

PUBLIC = (
    "cfg",
    "dataset_meta",
    "epoch",
    "iter",
    "seed",
    "mmengine_version",
    "hcformer_mm_version",
    "released",
)
"""Entries of ``meta`` that are published. The others hold times, folders and states of hooks."""

RUN_SETTINGS = ("work_dir", "load_from", "resume", "launcher")
"""Settings of one run on one machine, which are removed from ``meta["cfg"]``."""

_ABSOLUTE = re.compile(r"(?:file:/*|~|/|\\\\|[A-Za-z]:[\\/])")


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        path: The file.
        left_out: Entries of the source that the file lacks.
        averaged: Whether its weights are a moving average.
    """

    path: Path
    left_out: list[str]
    averaged: bool


def publish(source: str | Path, target: str | Path, *, half: bool = False) -> Published:
    """Write the weights and public metadata of a checkpoint to a file named by its hash.

    Optimizer, schedules and logs are left out. The config loses :data:`RUN_SETTINGS`, and
    its absolute paths are cut to their last part. The same checkpoint gives the same file.

    MMEngine's ``EMAHook`` swaps the two sets of weights when it saves, so that ``state_dict`` holds
    the moving average, which is published, and ``ema_state_dict`` the last weights, which are not.

    Args:
        source: Checkpoint of a training run, or a converted one.
        target: ``NAME.pth``, which becomes ``NAME-<8 digits>.pth`` with the first digits of the
            file's SHA-256, which ``torch.hub`` checks on download.
        half: Whether to round the weights to float16, in half the bytes; loading turns them into
            the model's dtype.

    Returns:
        The path of the new file, and the entries that it lacks.

    Raises:
        FileNotFoundError: ``source`` is not a file.
        ValueError: ``source`` has no weights in ``state_dict``, ``target`` is not a ``.pth`` file
            in an existing folder, or weights are too large for ``half``.
    """
    target = Path(target)
    if target.suffix != ".pth":
        raise ValueError(f"expected a name that ends in .pth to publish to, got {target}")
    if not target.parent.is_dir():
        raise ValueError(f"expected an existing folder to publish to, got {target.parent}")
    content = load_checkpoint(source)
    state_dict = tensors_of(content.get("state_dict", {}))
    if not state_dict:
        raise ValueError(
            f"expected {source} to be a checkpoint with weights in 'state_dict', got "
            f"{some(content)}"
        )
    if half:
        state_dict = _rounded(state_dict, source)
    meta = content.get("meta") or {}
    kept = {"hcformer_mm_version": __version__} | {key: meta[key] for key in PUBLIC if key in meta}
    if "cfg" in kept and (config := _public_config(kept.pop("cfg"))) is not None:
        kept["cfg"] = config
    with TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as folder:
        unnamed = Path(folder) / target.name
        save_checkpoint(unnamed, dict(meta=kept, state_dict=state_dict))
        path = unnamed.replace(target.with_name(f"{target.stem}-{sha256(unnamed)[:8]}.pth"))
    left_out = [key for key in content if key not in ("meta", "state_dict")]
    left_out += [f"meta.{key}" for key in meta if key not in kept]
    return Published(path, left_out, averaged="ema_state_dict" in content)


def _rounded(tensors: dict[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Round floating-point tensors to float16."""
    rounded = {
        name: value.half() if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    if too_large := [name for name in rounded if not rounded[name].isfinite().all()]:
        raise ValueError(
            f"expected finite weights up to {torch.finfo(torch.half).max:.0f} in {source}, which "
            f"float16 can hold, got larger ones in {some(too_large)}; publish them as they are"
        )
    return rounded


def _public_config(text: Any) -> str | None:
    """Return the text of a config without settings of a run and without absolute paths.

    MMEngine would run the text; here it is only parsed. MMEngine dumps only literals and calls of
    ``dict``; any other text gives None.
    """
    config = {}
    try:
        for line in ast.parse(text).body:
            if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
                return None
            if (name := line.targets[0].id) not in RUN_SETTINGS:
                config[name] = _public_value(line.value)
    except (TypeError, ValueError, SyntaxError):
        return None
    return Config(config).pretty_text


def _public_value(node: Any) -> Any:
    """Evaluate literals and calls of ``dict``; cut absolute paths to their last part."""
    match node:
        case ast.Dict(keys, values):
            return dict(zip(map(_public_value, keys), map(_public_value, values), strict=True))
        case ast.Call(ast.Name("dict"), args, keywords):
            result: dict[Any, Any] = {}
            for mapping in map(_public_value, args):
                result |= mapping
            for word in keywords:
                value = _public_value(word.value)
                result |= value if word.arg is None else {word.arg: value}
            return result
        case ast.List(items):
            return [_public_value(item) for item in items]
        case ast.Tuple(items):
            return tuple(_public_value(item) for item in items)
    value = ast.literal_eval(node)
    if isinstance(value, str) and _ABSOLUTE.match(value):
        return (re.findall(r"[^/\\]+[/\\]?", value) or [value])[-1]
    return value
