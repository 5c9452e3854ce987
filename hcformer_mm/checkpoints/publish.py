"""Packaging of trained weights as OpenMMLab does: the weights alone, a hash in the name."""

import ast
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ..version import __version__
from .io import read_weights_file, sha256, some, tensors_of, write_weights_file

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
"""What stays of a checkpoint's ``meta``. The rest names times, folders and the hooks' state."""

OF_A_RUN = ("work_dir", "load_from", "resume", "launcher")
"""What is taken out of ``meta["cfg"]``: settings of one run on one machine."""

_ABSOLUTE = re.compile(r"(?:file:/*|~|/|\\\\|[A-Za-z]:[\\/])")


class Published(NamedTuple):
    """A published checkpoint.

    Attributes:
        path: The file.
        left_out: Entries of the source that it does not have.
        averaged: Whether its weights are a moving average.
    """

    path: Path
    left_out: list[str]
    averaged: bool


def publish(source: str | Path, target: str | Path) -> Published:
    """Write a checkpoint with what is needed to use it, under a name that ends in its hash.

    The optimizer, the schedules and the logs stay behind. The same checkpoint gives the
    same file. Its config loses the settings of the run (:data:`OF_A_RUN`), and of absolute paths,
    such as that of a data set, it keeps the last part; relative ones stay.

    A checkpoint of MMEngine's ``EMAHook`` has the moving average in ``state_dict``, since the hook
    swaps the two as it saves: these are published, and ``ema_state_dict``, which then has the
    weights that were averaged, is left out.

    Args:
        source: Checkpoint of a training, or a converted one.
        target: Name without the hash: ``NAME.pth`` becomes ``NAME-<8 digits>.pth``, the first
            digits of the file's SHA-256, which ``torch.hub`` checks on download.

    Returns:
        The file, and what was left out.

    Raises:
        ValueError: The source is no checkpoint with a ``state_dict``, or one with names of a
            wrapped model; the target is no ``.pth``, or in no existing folder.
    """
    target = Path(target)
    if target.suffix != ".pth":
        raise ValueError(f"expected a name that ends in .pth for what is published, got {target}")
    if not target.parent.is_dir():
        raise ValueError(f"expected an existing folder to publish to, got {target.parent}")
    content = read_weights_file(source)
    state_dict = tensors_of(content["state_dict"]) if "state_dict" in content else {}
    if not state_dict:
        raise ValueError(
            f"expected {source} to be a checkpoint with weights in 'state_dict', got "
            f"{some(content)}"
        )
    meta = content.get("meta") or {}
    kept = {"hcformer_mm_version": __version__} | {key: meta[key] for key in PUBLIC if key in meta}
    if "cfg" in kept and (config := _without_run(kept.pop("cfg"))) is not None:
        kept["cfg"] = config
    unnamed = target.with_name(f".{target.stem}-{os.getpid()}.pth")
    try:
        write_weights_file(unnamed, dict(meta=kept, state_dict=state_dict))
        path = target.with_name(f"{target.stem}-{sha256(unnamed)[:8]}.pth")
        unnamed.replace(path)
    finally:
        unnamed.unlink(missing_ok=True)
    left_out = [key for key in content if key not in ("meta", "state_dict")]
    left_out += [f"meta.{key}" for key in meta if key not in kept]
    return Published(path, left_out, averaged="ema_state_dict" in content)


def _without_run(text: Any) -> str | None:
    """The text of a config without what names a run, its folders and its machine.

    It is read as data: MMEngine would run it. None if it is not what MMEngine dumps, whose values
    are literals and ``dict``.
    """
    try:
        config = {}
        for line in ast.parse(text).body:
            if not isinstance(line, ast.Assign) or not isinstance(line.targets[0], ast.Name):
                return None
            if (name := line.targets[0].id) not in OF_A_RUN:
                config[name] = _without_folders(ast.literal_eval(_Literals().visit(line.value)))
    except (TypeError, ValueError, SyntaxError):
        return None
    return Config(config).pretty_text


class _Literals(ast.NodeTransformer):
    """Turns ``dict(a=1)`` and ``dict({"a": 1})`` into ``{"a": 1}``, which is a literal."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Name) or node.func.id != "dict":
            raise ValueError("no literal")
        keys: list[ast.expr | None] = []
        values: list[ast.expr] = []
        for mapping in (*node.args, *(word.value for word in node.keywords if not word.arg)):
            if not isinstance(mapping, ast.Dict):
                raise ValueError("no literal")
            keys += mapping.keys
            values += mapping.values
        for word in node.keywords:
            if word.arg:
                keys.append(ast.Constant(word.arg))
                values.append(word.value)
        return ast.Dict(keys, values)


def _without_folders(value: Any) -> Any:
    """The same value, with the last part of every absolute path."""
    if isinstance(value, dict):
        return {_without_folders(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_folders, value))
    if isinstance(value, str) and _ABSOLUTE.match(value):
        parts = re.findall(r"[^/\\]+[/\\]?", value)
        return parts[-1] if parts else value
    return value
