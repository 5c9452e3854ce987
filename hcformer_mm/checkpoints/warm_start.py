"""Start from weights of others: what a checkpoint of the hosts has in common with a model here."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmdet.models.backbones.swin import swin_converter
from mmengine.config import Config
from torch import Tensor

from ..utils.config import find_config
from ..version import __version__
from .hcformer_d2.convert import build
from .hcformer_d2.key_mapping import COUNTER
from .io import load_checkpoint, save_checkpoint, sha256, some, tensors_of, weights_entry

HEADS = ("panoptic_head", "decode_head")
"""Where detectors and segmentors have their head."""


class Misfit(NamedTuple):
    """A tensor of a file that has a counterpart of another shape."""

    source: str
    source_shape: tuple[int, ...]
    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """In a line."""
        return f"{self.source} {self.source_shape} does not fit {self.name} {self.shape}"


@dataclass
class WarmStart:
    """What of a checkpoint a model can start from.

    Attributes:
        state_dict: The fitting tensors, under the model's names.
        misfits: Those of another shape.
        unused: Names in the file that the model has no counterpart of.
        parts: For every part of the model: how many tensors it has, how many of them are in
            ``state_dict``, and how many are ``misfits``. BatchNorm's counters do not count.
    """

    state_dict: dict[str, Tensor]
    misfits: list[Misfit]
    unused: list[str]
    parts: dict[str, tuple[int, int, int]]

    def table(self) -> str:
        """What was loaded and what not, as text."""
        parts = {**self.parts, "all": tuple(map(sum, zip(*self.parts.values(), strict=True)))}
        width = max(map(len, parts))
        lines = [f"{'':<{width}}  tensors   loaded  other shape  not in the file"]
        for part, (tensors, loaded, misfits) in parts.items():
            rest = tensors - loaded - misfits
            lines.append(f"{part:<{width}} {tensors:8d} {loaded:8d} {misfits:12d} {rest:16d}")
        lines += [str(misfit) for misfit in self.misfits]
        unused = Counter(".".join(name.split(".")[:2]) for name in self.unused)
        lines += [
            f"{count} {'tensor' if count == 1 else 'tensors'} of {part} not used"
            for part, count in unused.items()
        ]
        return "\n".join(lines)


def warm_start(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> WarmStart:
    """Find what a checkpoint of the hosts has in common with an HCFormer.

    That is the backbone of a detector, a segmentor or a classifier of OpenMMLab, of torchvision or
    of Swin's authors, which mmdet's ``swin_converter`` renames; and what mmdet's Mask2Former and
    MaskFormer have in a head: the transformer decoder, the queries and the outputs. Mask2Former's
    layers look at three maps in turn, and the first of its level embeddings is that of stride 32,
    the map that HCFormer reads. The projection of that map, at the beginning of Mask2Former's pixel
    decoder, is that of HCFormer+'s encoder.

    Args:
        tensors: Weights under the names of the file.
        model: ``state_dict`` of the model.

    Returns:
        What fits, and what does not.

    Raises:
        ValueError: Nothing fits, or the file is one of the released HCFormer.
    """
    if any(name.startswith("sem_seg_head.") for name in tensors):
        raise ValueError(
            "expected a checkpoint of the hosts, got one of Detectron2; "
            "tools/model_converters/hcformer_d2_to_mm.py converts the released HCFormer"
        )
    if "patch_embed.proj.weight" in tensors:
        tensors = swin_converter(dict(tensors))
    head = next((head for head in HEADS if f"{head}.cls_embed.weight" in model), "")
    same_decoder = _is_masked(tensors) == _is_masked(model)
    result = WarmStart({}, [], [], {})
    for source, value in tensors.items():
        name = next((name for name in _counterparts(source, head) if name in model), None)
        if name is None or (".transformer_decoder." in name and not same_decoder):
            result.unused.append(source)
            continue
        if name.endswith("level_embed.weight"):
            value = value[:1]
        if value.shape == model[name].shape:
            result.state_dict[name] = value.to(model[name].dtype)
        else:
            shapes = tuple(value.shape), tuple(model[name].shape)
            result.misfits.append(Misfit(source, shapes[0], name, shapes[1]))
    if not result.state_dict:
        raise ValueError(
            f"expected a checkpoint with tensors in common with the model, such as "
            f"{some(model, 2)}, got {some(tensors)}"
        )
    result.parts = _parts(model, result, head)
    return result


def warm_start_file(
    source: str | Path,
    target: str | Path,
    config: str | Path,
    cfg_options: Mapping[str, Any] | None = None,
) -> WarmStart:
    """Write what a checkpoint of the hosts has in common with a config's model, for ``load_from``.

    Args:
        source: The checkpoint, as of :func:`~hcformer_mm.checkpoints.io.load_checkpoint`.
        target: Where to write, a ``.pth`` file.
        config: A file, or the name of a config of this package.
        cfg_options: Overrides of it.

    Returns:
        What was written, and what not.

    Raises:
        ValueError: The file is none, or has nothing in common with the model.
    """
    if Path(target).suffix != ".pth":
        raise ValueError(f"expected a .pth file to write, which load_from reads, got {target}")
    tensors = tensors_of(weights_entry(load_checkpoint(source)))
    cfg = Config.fromfile(find_config(config))
    cfg.merge_from_dict(dict(cfg_options or {}))
    result = warm_start(tensors, build(cfg).state_dict())
    about = dict(file=Path(source).name, sha256=sha256(source))
    meta = dict(hcformer_mm_version=__version__, warm_start=about)
    save_checkpoint(target, dict(meta=meta, state_dict=result.state_dict))
    return result


def _counterparts(source: str, head: str) -> Iterator[str]:
    """Where a tensor of a file may belong."""
    # A bare backbone, one inside of a detector or classifier, and one that is wrapped already.
    yield from (source, f"backbone.{source}", f"backbone.backbone.{source}")
    prefix, _, rest = source.partition(".")
    if prefix in HEADS and head:
        yield f"{head}.{rest}"
        part, _, leaf = rest.partition("pixel_decoder.input_convs.0.")
        if not part:
            yield f"neck.input_proj.{leaf}"


def _is_masked(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the decoder is Mask2Former's, in which cross-attention comes first."""
    return any(f"{head}.query_feat.weight" in state_dict for head in HEADS)


def _parts(
    model: Mapping[str, Tensor], result: WarmStart, head: str
) -> dict[str, tuple[int, int, int]]:
    names = ("backbone.backbone", "backbone.clusterings", "neck", f"{head}.transformer_decoder")
    counted = [name for name in model if not name.endswith(COUNTER)]
    misfits = {misfit.name for misfit in result.misfits}

    def part_of(name: str) -> str:
        return next((part for part in names if name.startswith(f"{part}.")), name.partition(".")[0])

    counts = [
        Counter(map(part_of, some_names))
        for some_names in (
            counted,
            (name for name in counted if name in result.state_dict),
            (name for name in counted if name in misfits),
        )
    ]
    return {part: (n, counts[1][part], counts[2][part]) for part, n in counts[0].items()}
