"""Warm starts: initialize an HCFormer from a checkpoint of mmdet, mmseg or torchvision."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdet.models.backbones.swin import swin_converter
from torch import Tensor

from ..models.utils.pretrained import timm_names
from ..utils.atomic_write import check_different
from ..utils.config import build_without_weights, read_config
from ..utils.errors import some
from ..version import __version__
from .hcformer_d2.key_mapping import COUNTER
from .io import load_checkpoint, save_checkpoint, sha256, tensors_of, weights_entry

HEADS = ("panoptic_head", "decode_head")
"""Attributes of detectors and segmentors that hold their head."""

CLUSTERING = re.compile(r"^(backbone\.clusterings\.)(\d+)")


@dataclass
class WarmStart:
    """Weights to start a model from.

    Attributes:
        state_dict: Tensors that fit, under the model's names.
        misfits: A message for each name in the model whose counterpart has another shape.
        unused: Names in the file without a counterpart in the model.
        parts: For each part of the model, the numbers of all tensors, of loaded ones and of
            misfits, without BatchNorm's counters.
    """

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    parts: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def table(self) -> str:
        """Return a table of the parts, followed by the misfits and the unused tensors."""
        parts = {**self.parts, "all": tuple(map(sum, zip(*self.parts.values(), strict=True)))}
        width = max(map(len, parts))
        lines = [f"{'':<{width}}  tensors   loaded  other shape  not in the file"]
        for part, (tensors, loaded, misfits) in parts.items():
            rest = tensors - loaded - misfits
            lines.append(f"{part:<{width}} {tensors:8d} {loaded:8d} {misfits:12d} {rest:16d}")
        lines += self.misfits.values()
        unused = Counter(".".join(name.split(".")[:2]) for name in self.unused)
        lines += [
            f"{count} {'tensor' if count == 1 else 'tensors'} of {part} not used"
            for part, count in unused.items()
        ]
        return "\n".join(lines)


def warm_start(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> WarmStart:
    """Select the weights of another model's checkpoint that fit an HCFormer.

    Two parts can fit: the backbone of a detector, segmentor or classifier of OpenMMLab, of
    torchvision, of timm or of Swin's authors (renamed by mmdet's ``swin_converter``); and the
    transformer decoder, the queries and the output layers of mmdet's Mask2Former and MaskFormer.
    Mask2Former's layers attend to three maps in turn. HCFormer takes the level embedding of the
    first, at stride 32, and HCFormer+'s encoder takes the projection of that map in Mask2Former's
    pixel decoder. Of an HCFormer with more or fewer levels, the deepest clusterings fit.

    Args:
        tensors: Weights under the names of the file.
        model: ``state_dict`` of the model.

    Raises:
        ValueError: Nothing fits, or the file is a released HCFormer.
    """
    if any(name.startswith("sem_seg_head.") for name in tensors):
        raise ValueError(
            "expected a checkpoint of mmdet, mmseg, mmpretrain or torchvision, got one of "
            "Detectron2; tools/model_converters/hcformer_d2_to_mm.py converts the released HCFormer"
        )
    if "patch_embed.proj.weight" in tensors:
        tensors = swin_converter(dict(tensors))
    head = next((head for head in HEADS if f"{head}.cls_embed.weight" in model), "")
    more_levels = _num_levels(model) - _num_levels(tensors)
    same_decoder = _is_masked(tensors) == _is_masked(model)
    result = WarmStart()
    for source, value in tensors.items():
        own = CLUSTERING.sub(lambda found: f"{found[1]}{int(found[2]) + more_levels}", source)
        name = next((name for name in _counterparts(own, head) if name in model), None)
        if name is None or (".transformer_decoder." in name and not same_decoder):
            result.unused.append(source)
            continue
        if name.endswith("level_embed.weight"):
            value = value[:1]
        if value.shape == model[name].shape:
            result.state_dict[name] = value.to(model[name].dtype)
        else:
            shape, wanted = tuple(value.shape), tuple(model[name].shape)
            result.misfits[name] = f"{source} {shape} does not fit {name} {wanted}"
    if not result.state_dict:
        raise ValueError(
            f"expected a checkpoint with tensors in common with the model, such as "
            f"{some(model, 2)}, got {some(tensors)}"
        )
    result.parts = _count_parts(model, result, head)
    return result


def warm_start_file(
    source: str | Path,
    target: str | Path,
    config: str | Path,
    cfg_options: Mapping[str, Any] | None = None,
) -> WarmStart:
    """Write a checkpoint for ``load_from`` with another model's weights that fit a config's model.

    Args:
        source: The other model's checkpoint, which
            :func:`~hcformer_mm.checkpoints.io.load_checkpoint` reads.
        target: The ``.pth`` file to write.
        config: Path of a config, or the name of one in this package.
        cfg_options: Overrides of ``config``.

    Raises:
        FileNotFoundError: ``source`` is not a file.
        ValueError: ``source`` has nothing in common with the model, or ``target`` is ``source`` or
            not a ``.pth`` file.
    """
    check_different(source, target)
    if Path(target).suffix != ".pth":
        raise ValueError(f"expected a .pth file to write, which load_from reads, got {target}")
    tensors = tensors_of(weights_entry(load_checkpoint(source)))
    cfg = read_config(config, cfg_options)
    result = warm_start(tensors, build_without_weights(cfg).state_dict())
    about = dict(file=Path(source).name, sha256=sha256(source))
    meta = dict(hcformer_mm_version=__version__, warm_start=about)
    save_checkpoint(target, dict(meta=meta, state_dict=result.state_dict))
    return result


def _counterparts(source: str, head: str) -> Iterator[str]:
    """Yield the names that a tensor of a file may have in the model."""
    # A tensor of an HCFormer, of a detector or classifier, or of a bare backbone.
    yield from (source, f"backbone.{source}", f"backbone.backbone.{source}")
    yield from (f"backbone.backbone.{name}" for name in timm_names(source))
    prefix, _, rest = source.partition(".")
    if prefix in HEADS and head:
        yield f"{head}.{rest}"
        if rest.startswith("pixel_decoder.input_convs.0."):
            yield f"neck.input_proj.{rest.removeprefix('pixel_decoder.input_convs.0.')}"


def _num_levels(names: Iterable[str]) -> int:
    return len({found[2] for name in names if (found := CLUSTERING.match(name))})


def _is_masked(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the decoder is Mask2Former's, with cross-attention first, and not DETR's."""
    return any(f"{head}.query_feat.weight" in state_dict for head in HEADS)


def _count_parts(
    model: Mapping[str, Tensor], result: WarmStart, head: str
) -> dict[str, tuple[int, int, int]]:
    names = ("backbone.backbone", "backbone.clusterings", "neck", f"{head}.transformer_decoder")
    counted = [name for name in model if not name.endswith(COUNTER)]

    def count(chosen: Mapping[str, Any]) -> Counter[str]:
        return Counter(
            next((part for part in names if name.startswith(f"{part}.")), name.partition(".")[0])
            for name in counted
            if name in chosen
        )

    loaded, misfits = count(result.state_dict), count(result.misfits)
    return {part: (n, loaded[part], misfits[part]) for part, n in count(model).items()}
