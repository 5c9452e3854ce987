"""Conversion of checkpoint files from the released implementation, and back to it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from ...utils.atomic_write import check_different
from ...utils.config import dataset_meta_of, find_config, read_config
from ...utils.errors import some
from ...version import __version__
from ..io import load_checkpoint, save_checkpoint, sha256, tensors_of, weights_entry
from .architecture import Architecture, choose_config, find_architecture
from .convert import BACKBONES, Conversion, convert, revert, shapes_of
from .key_mapping import DROPPED

PREDICTOR = "sem_seg_head.predictor."
"""Prefix of the names in the released head."""


@dataclass
class Report:
    """Report on a converted file.

    Attributes:
        architecture: Architecture of the model.
        config: Path of its config.
        cfg_options: Overrides with which the config describes the model.
        source: Number of tensors in the source.
        conversion: The weights, and what was dropped or filled.
        left_out: Entries of the source that are not tensors of the model.
    """

    architecture: Architecture
    config: Path
    cfg_options: dict[str, Any]
    source: int
    conversion: Conversion
    left_out: list[str] = field(default_factory=list)


def convert_file(
    source: str | Path,
    target: str | Path,
    config: str | Path | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Report:
    """Convert a released checkpoint for this package, and report on it.

    Args:
        source: Released checkpoint, in a format that
            :func:`~hcformer_mm.checkpoints.io.load_checkpoint` reads.
        target: File to write; its suffix may be ``.safetensors``.
        config: Config that the architecture must match; by default the config of this package that
            needs the fewest overrides.
        cfg_options: Overrides of ``config``, as on the command line.

    Raises:
        FileNotFoundError: ``source`` is not a file.
        ValueError: ``source`` is not a released HCFormer, or does not fit the config.
    """
    check_different(source, target)
    content = load_checkpoint(source)
    released, left_out = _released_tensors(content, source)
    architecture = find_architecture(shapes_of(released))
    path, cfg, options = _config(architecture, config, cfg_options)
    conversion = convert(released, cfg)
    meta = dict(
        hcformer_mm_version=__version__,
        cfg=cfg.pretty_text,
        dataset_meta=dataset_meta_of(cfg),
        released=dict(
            file=Path(source).name,
            sha256=sha256(source),
            architecture=asdict(architecture),
            config=path.stem,
            cfg_options=options,
            # revert_file restores these.
            dropped={name: released[name].tolist() for name in conversion.dropped},
        ),
    )
    save_checkpoint(target, dict(meta=meta, state_dict=conversion.state_dict))
    return Report(architecture, path, options, len(released), conversion, left_out)


def revert_file(
    source: str | Path,
    target: str | Path,
    config: str | Path | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Report:
    """Convert a checkpoint of this package back for the released implementation, and report on it.

    Before the result is written, it is converted again and compared with the source.

    Args:
        source: Checkpoint in float32 of an HCFormer with a ResNet with bottleneck blocks (R50 and
            deeper) or a Swin; ``.pth`` or ``.safetensors``.
        target: File to write, with the tensors under ``model``.
        config: As in :func:`convert_file`.
        cfg_options: As in :func:`convert_file`.

    Raises:
        FileNotFoundError: ``source`` is not a file.
        ValueError: ``source`` is not such a checkpoint, or does not fit the config.
    """
    check_different(source, target)
    content = load_checkpoint(source)
    state_dict = tensors_of(weights_entry(content))
    if "backbone.backbone.conv1.weight" not in state_dict and not any(
        name.startswith("backbone.backbone.patch_embed.") for name in state_dict
    ):
        raise ValueError(
            f"expected {source} to hold the weights of an HCFormer of this package with "
            f"{BACKBONES}, got {some(state_dict or content)}"
        )
    conversion = revert(state_dict)
    architecture = find_architecture(shapes_of(conversion.state_dict))
    path, cfg, options = _config(architecture, config, cfg_options)
    again = convert(conversion.state_dict, cfg).state_dict
    changed = [
        name
        for name in again.keys() - conversion.dropped.keys()
        if again[name].dtype != state_dict[name].dtype
        or not torch.equal(again[name], state_dict[name])
    ]
    if changed:
        raise ValueError(
            f"expected the weights of {source} in the dtypes of the model, so that nothing is "
            f"rounded, got another dtype in {some(changed)}"
        )
    meta = content.get("meta") or {}
    kept = (meta.get("released") or {}).get("dropped") or {}
    model = conversion.state_dict | {
        name: torch.tensor(value) for name, value in kept.items() if name in DROPPED
    }
    about = dict(hcformer_mm_version=__version__, file=Path(source).name, sha256=sha256(source))
    save_checkpoint(target, dict(model=model, meta=about), weights="model")
    return Report(architecture, path, options, len(state_dict), conversion)


def _released_tensors(
    content: dict[str, Any], source: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a released file, and the names of its other entries."""
    entry = weights_entry(content)
    tensors = tensors_of(entry)
    if not any(name.startswith(PREDICTOR) for name in tensors):
        ours = any(name.startswith("backbone.backbone.") for name in tensors)
        hint = "; it is a checkpoint of this package, which --reverse converts" if ours else ""
        raise ValueError(
            f"expected {source} to hold a released HCFormer: a dict with an entry 'model' of "
            f"tensors such as {PREDICTOR}class_embed.weight, got {some(tensors or content)}{hint}"
        )
    others = [key for key in content if content[key] is not entry and key not in tensors]
    if entry is not content:
        others += [key for key in entry if key not in tensors]
    return tensors, [str(key) for key in others]


def _config(
    architecture: Architecture, config: str | Path | None, cfg_options: Mapping[str, Any] | None
) -> tuple[Path, Config, dict[str, Any]]:
    """Return path, content and overrides of the given config, or else of the one that fits."""
    if config is None:
        if cfg_options:
            raise ValueError("expected a config to override with cfg_options, got none")
        path, options = choose_config(architecture)
    else:
        path, options = find_config(config), dict(cfg_options or {})
    return path, read_config(path, options), options
