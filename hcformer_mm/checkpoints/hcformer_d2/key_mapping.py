"""How the released implementation and this package name the same tensors, as rules.

A rule is a pair of patterns, read in either direction: ``{x}`` is a number, a final ``*`` the last
part of a name (``weight``, ``running_mean``). The first rule that fits is taken.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ...models.heads.hcformer_head import Decoder

DROPPED = {
    "criterion.empty_weight": "weights of the classes in the loss; the config has them",
    "pixel_mean": "mean of the pixels; the config's data_preprocessor has it",
    "pixel_std": "deviation of the pixels; the config's data_preprocessor has it",
}
"""Tensors of released files that are no weights of the model, and why they are not converted."""

COUNTER = "num_batches_tracked"
"""Of a BatchNorm: how often its statistics were updated. The released frozen one has no such."""

STAGES = 4


class Change(NamedTuple):
    """What happens to a tensor on its way, and back."""

    to_ours: Callable[[Tensor], Tensor]
    to_released: Callable[[Tensor], Tensor]


def _unfolded(x: Tensor) -> Tensor:
    # Released: the four tokens of a window one after the other, (row, column) = (0, 0), (1, 0),
    # (0, 1), (1, 1). The host unfolds windows: channel by channel, the four tokens row-major.
    windows = x.unflatten(-1, (2, 2, -1))  # (..., column, row, C)
    return windows.movedim(-1, -3).transpose(-1, -2).flatten(-3)


def _concatenated(x: Tensor) -> Tensor:
    windows = x.unflatten(-1, (-1, 2, 2))  # (..., C, row, column)
    return windows.movedim(-3, -1).transpose(-2, -3).flatten(-3)


PATCH_MERGING = Change(_unfolded, _concatenated)
"""Order of the channels that Swin's patch merging reads: those of the last dim of a tensor."""


@dataclass(frozen=True)
class Rule:
    """Two patterns for the same tensors.

    Attributes:
        released: Names in the released implementation.
        ours: Names in this package.
        change: What happens to the values; nothing by default.
    """

    released: str
    ours: str
    change: Change | None = None

    @cached_property
    def patterns(self) -> dict[str, re.Pattern[str]]:
        """Both patterns, compiled."""
        return {"released": _compile(self.released), "ours": _compile(self.ours)}

    def rename(self, name: str, *, reverse: bool = False) -> str | None:
        """The other name of a tensor; None if the rule does not fit.

        Args:
            name: Its name in the released implementation; in this package if ``reverse``.
            reverse: From this package to the released implementation.
        """
        source, target = ("ours", self.released) if reverse else ("released", self.ours)
        match = self.patterns[source].fullmatch(name)
        if match is None:
            return None
        parts = match.groupdict()
        return target.replace("*", "{leaf}").format(**parts)


def _compile(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*", r"(?P<leaf>[a-z_]+)")
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[0-9]+)", escaped))


def rules(*, family: str, level: int, deformable: bool, decoder: Decoder, head: str) -> list[Rule]:
    """The rules of an architecture.

    Args:
        family: ``'ResNet'`` or ``'SwinTransformer'``, the class of the wrapped backbone.
        level: Number of clustered downsamplings.
        deformable: Whether these are deformable.
        decoder: As of :class:`~hcformer_mm.models.HCFormerHead`.
        head: Where the model keeps it: ``'panoptic_head'`` or ``'decode_head'``.
    """
    backbone = _resnet(level, deformable) if family == "ResNet" else _swin(level)
    layers = _masked_decoder(head) if decoder == "masked" else _standard_decoder(head)
    return [*backbone, *_encoder(), *layers, *_head(head)]


def _resnet(level: int, deformable: bool) -> Iterator[Rule]:
    ours = "backbone.backbone"
    yield Rule("backbone.stem.0.*", f"{ours}.conv1.*")
    yield Rule("backbone.stem.1.*", f"{ours}.bn1.*")
    # "DCNv2" is of the first block of a clustered stage: the strided 3×3 and the shortcut.
    for stage in range(STAGES - level + 1, STAGES + 1) if deformable else ():
        for conv in ("conv2", "downsample.0"):
            block = f"layer{stage}.0.{conv}"
            yield Rule(f"backbone.{block}.deform.*", f"{ours}.{block}.*")
            yield Rule(f"backbone.{block}.offset.*", f"{ours}.{block}.conv_offset.*")
    for module in ("conv{k}", "bn{k}", "downsample.{k}"):
        block = f"layer{{stage}}.{{i}}.{module}.*"
        yield Rule(f"backbone.{block}", f"{ours}.{block}")
    # The released modules begin with the coarsest level, ours with the finest.
    for i in range(level):
        yield from _clustering(f"backbone.clustering_layers.{level - 1 - i}", i)


def _swin(level: int) -> Iterator[Rule]:
    ours = "backbone.backbone"
    yield Rule("backbone.patch_embed.proj.*", f"{ours}.patch_embed.projection.*")
    yield Rule("backbone.patch_embed.norm.*", f"{ours}.patch_embed.norm.*")
    released_block, block = "backbone.layers.{s}.blocks.{i}", f"{ours}.stages.{{s}}.blocks.{{i}}"
    for theirs, name in {
        "norm{k}": "norm{k}",
        "attn": "attn.w_msa",
        "attn.qkv": "attn.w_msa.qkv",
        "attn.proj": "attn.w_msa.proj",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
    }.items():
        yield Rule(f"{released_block}.{theirs}.*", f"{block}.{name}.*")
    for part in ("norm", "reduction"):
        merging = f"{{s}}.downsample.{part}.*"
        yield Rule(f"backbone.layers.{merging}", f"{ours}.stages.{merging}", PATCH_MERGING)
    yield Rule("backbone.norm{s}.*", f"{ours}.norm{{s}}.*")
    # A stage has that of the downsampling after it; the last levels are clustered.
    for i in range(level):
        yield from _clustering(f"backbone.layers.{STAGES - 1 - level + i}.clustering", i)


def _clustering(released: str, index: int) -> Iterator[Rule]:
    ours = f"backbone.clusterings.{index}"
    yield Rule(f"{released}.temp", f"{ours}.scale")
    for side in ("fine", "coarse"):
        yield Rule(f"{released}.{side}_norm.*", f"{ours}.{side}_norm.*")
        yield Rule(f"{released}.{side}_emb.*", f"{ours}.{side}_proj.*")


def _encoder() -> Iterator[Rule]:
    yield Rule("backbone.aux.input_proj.0.*", "neck.input_proj.conv.*")
    yield Rule("backbone.aux.input_proj.1.*", "neck.input_proj.gn.*")
    released, ours = "backbone.aux.encoder.layers.{i}", "neck.encoder.layers.{i}"
    yield from _attention(f"{released}.self_attn", f"{ours}.self_attn")
    yield from _feed_forward(released, ours)
    for k in range(2):
        yield Rule(f"{released}.norm{k + 1}.*", f"{ours}.norms.{k}.*")


def _masked_decoder(head: str) -> Iterator[Rule]:
    predictor, decoder = "sem_seg_head.predictor", f"{head}.transformer_decoder"
    layer = f"{decoder}.layers.{{i}}"
    # Norms stand in the order of their use, and cross-attention comes first.
    for k, (released, part) in enumerate(
        (
            (f"{predictor}.transformer_cross_attention_layers.{{i}}", "multihead_attn"),
            (f"{predictor}.transformer_self_attention_layers.{{i}}", "self_attn"),
            (f"{predictor}.transformer_ffn_layers.{{i}}", None),
        )
    ):
        if part is None:
            yield from _feed_forward(released, layer)
        else:
            ours = "cross_attn" if part == "multihead_attn" else part
            yield from _attention(f"{released}.{part}", f"{layer}.{ours}")
        yield Rule(f"{released}.norm.*", f"{layer}.norms.{k}.*")
    yield Rule(f"{predictor}.decoder_norm.*", f"{decoder}.post_norm.*")


def _standard_decoder(head: str) -> Iterator[Rule]:
    released, ours = "sem_seg_head.predictor.transformer.decoder", f"{head}.transformer_decoder"
    layers = f"{released}.layers.{{i}}", f"{ours}.layers.{{i}}"
    yield from _attention(f"{layers[0]}.self_attn", f"{layers[1]}.self_attn")
    yield from _attention(f"{layers[0]}.multihead_attn", f"{layers[1]}.cross_attn")
    yield from _feed_forward(*layers)
    for k in range(3):
        yield Rule(f"{layers[0]}.norm{k + 1}.*", f"{layers[1]}.norms.{k}.*")
    yield Rule(f"{released}.norm.*", f"{ours}.post_norm.*")


def _attention(released: str, ours: str) -> Iterator[Rule]:
    """Both are torch's, which packs query, key and value as one matrix."""
    yield Rule(f"{released}.*", f"{ours}.attn.*")
    yield Rule(f"{released}.out_proj.*", f"{ours}.attn.out_proj.*")


def _feed_forward(released: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{released}.linear1.*", f"{ours}.ffn.layers.0.0.*")
    yield Rule(f"{released}.linear2.*", f"{ours}.ffn.layers.1.*")


def _head(head: str) -> Iterator[Rule]:
    predictor = "sem_seg_head.predictor"
    for released, ours in {
        "query_feat": "query_feat",
        "query_embed": "query_embed",
        "level_embed": "level_embed",
        "input_proj": "decoder_input_proj",
        "mask_proj": "mask_proj",
        "class_embed": "cls_embed",
        # Ours counts the activations in between.
        "mask_embed.layers.0": "mask_embed.0",
        "mask_embed.layers.1": "mask_embed.2",
        "mask_embed.layers.2": "mask_embed.4",
    }.items():
        yield Rule(f"{predictor}.{released}.*", f"{head}.{ours}.*")
