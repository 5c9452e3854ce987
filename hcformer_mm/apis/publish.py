"""Packaging of trained weights as OpenMMLab does: the weights alone, a hash in the name."""

import os
from pathlib import Path
from typing import NamedTuple

from ..version import __version__
from .weight_files import read_weights_file, sha256, some, tensors_of, write_weights_file

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

    The optimizer, the schedules and the logs stay behind. The same weights give the same file.

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
        ValueError: The source is no checkpoint with a ``state_dict``, or the target no ``.pth``.
    """
    target = Path(target)
    if target.suffix != ".pth":
        raise ValueError(f"expected a name that ends in .pth for what is published, got {target}")
    content = read_weights_file(source)
    state_dict = tensors_of(content["state_dict"]) if "state_dict" in content else {}
    if not state_dict:
        raise ValueError(
            f"expected {source} to be a checkpoint with weights in 'state_dict', got "
            f"{some(content)}"
        )
    meta = content.get("meta") or {}
    kept = {"hcformer_mm_version": __version__} | {key: meta[key] for key in PUBLIC if key in meta}
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
