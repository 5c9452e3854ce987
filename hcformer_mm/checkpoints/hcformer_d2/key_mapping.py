"""Rules that translate tensor names between the released implementation and this package.

A rule is a pair of patterns and works in either direction: ``{x}`` matches a number, a final ``*``
the last part of a name (``weight``, ``running_mean``). The first rule that matches applies.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ...models.heads.hcformer_head import Decoder

DROPPED = {
    "criterion.empty_weight": "class weights of the loss; the config has them",
    "pixel_mean": "mean of the pixels; the config's data_preprocessor has it",
    "pixel_std": "standard deviation of the pixels; the config's data_preprocessor has it",
}
"""Tensors of released files that are not weights of the model, with the reason to drop them."""

COUNTER = "num_batches_tracked"
"""BatchNorm's count of updates. The released BatchNorm is frozen and has none."""

STAGES = 4


class Change(NamedTuple):
    """Reordering of a tensor's values in either direction."""

    to_ours: Callable[[Tensor], Tensor]
    to_released: Callable[[Tensor], Tensor]


def _unfolded(x: Tensor) -> Tensor:
    # Released: all channels of token (row, column) = (0, 0), then (1, 0), (0, 1), (1, 1).
    # nn.Unfold of mmdet and mmseg: for every channel, the four tokens row-major.
    windows = x.unflatten(-1, (2, 2, -1))  # (..., column, row, C)
    return windows.movedim(-1, -3).transpose(-1, -2).flatten(-3)


def _concatenated(x: Tensor) -> Tensor:
    windows = x.unflatten(-1, (-1, 2, 2))  # (..., C, row, column)
    return windows.movedim(-3, -1).transpose(-2, -3).flatten(-3)


PATCH_MERGING = Change(_unfolded, _concatenated)
"""Reordering of the input channels of Swin's patch merging: the last dim of its tensors."""


@dataclass(frozen=True)
class Rule:
    """Pair of patterns for the names of the same tensors on either side.

    Attributes:
        released: Names in the released implementation.
        ours: Names in this package.
        change: Reordering of the values, if any.
    """

    released: str
    ours: str
    change: Change | None = None

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return _compile(self.released), _compile(self.ours)

    def rename(self, name: str, *, reverse: bool = False) -> str | None:
        """Translate the released name of a tensor to ours, or ours to the released one.

        Args:
            name: Name of the tensor: the released one, or ours if ``reverse``.
            reverse: Whether to translate from this package to the released implementation.

        Returns:
            The other name; None if the rule does not match.
        """
        match = self._patterns[reverse].fullmatch(name)
        if match is None:
            return None
        target = self.released if reverse else self.ours
        return target.replace("*", "{leaf}").format(**match.groupdict())


def _compile(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*", r"(?P<leaf>[a-z_]+)")
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[0-9]+)", escaped))


def rules(*, family: str, level: int, deformable: bool, decoder: Decoder, head: str) -> list[Rule]:
    """Return the rules of an architecture.

    Args:
        family: ``'ResNet'`` or ``'SwinTransformer'``, the class of the wrapped backbone.
        level: Number of clustered downsamplings.
        deformable: Whether the clustered downsamplings are deformable.
        decoder: As in :class:`~hcformer_mm.models.HCFormerHead`.
        head: Attribute of the model that is its head: ``panoptic_head`` or ``decode_head``.
    """
    backbone = _resnet(level, deformable) if family == "ResNet" else _swin(level)
    layers = _masked_decoder(head) if decoder == "masked" else _standard_decoder(head)
    return [*backbone, *_encoder(), *layers, *_head(head)]


def _resnet(level: int, deformable: bool) -> Iterator[Rule]:
    ours = "backbone.backbone"
    yield Rule("backbone.stem.0.*", f"{ours}.conv1.*")
    yield Rule("backbone.stem.1.*", f"{ours}.bn1.*")
    # The strided 3×3 convolution and the shortcut of a clustered stage are deformable.
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
    for released, module in {
        "norm{k}": "norm{k}",
        "attn": "attn.w_msa",
        "attn.qkv": "attn.w_msa.qkv",
        "attn.proj": "attn.w_msa.proj",
        "mlp.fc1": "ffn.layers.0.0",
        "mlp.fc2": "ffn.layers.1",
    }.items():
        block = "{s}.blocks.{i}"
        yield Rule(f"backbone.layers.{block}.{released}.*", f"{ours}.stages.{block}.{module}.*")
    for part in ("norm", "reduction"):
        merging = f"{{s}}.downsample.{part}.*"
        yield Rule(f"backbone.layers.{merging}", f"{ours}.stages.{merging}", PATCH_MERGING)
    yield Rule("backbone.norm{s}.*", f"{ours}.norm{{s}}.*")
    # A stage holds the clustering module of the downsampling after it.
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
    predictor, ours = "sem_seg_head.predictor", f"{head}.transformer_decoder"
    layer = f"{ours}.layers.{{i}}"
    # Norms are numbered in the order of their use, and cross-attention comes first.
    for k, (kind, part) in enumerate((("cross", "multihead_attn"), ("self", "self_attn"))):
        released = f"{predictor}.transformer_{kind}_attention_layers.{{i}}"
        yield from _attention(f"{released}.{part}", f"{layer}.{kind}_attn")
        yield Rule(f"{released}.norm.*", f"{layer}.norms.{k}.*")
    released = f"{predictor}.transformer_ffn_layers.{{i}}"
    yield from _feed_forward(released, layer)
    yield Rule(f"{released}.norm.*", f"{layer}.norms.2.*")
    yield Rule(f"{predictor}.decoder_norm.*", f"{ours}.post_norm.*")


def _standard_decoder(head: str) -> Iterator[Rule]:
    decoder, ours = "sem_seg_head.predictor.transformer.decoder", f"{head}.transformer_decoder"
    released, layer = f"{decoder}.layers.{{i}}", f"{ours}.layers.{{i}}"
    yield from _attention(f"{released}.self_attn", f"{layer}.self_attn")
    yield from _attention(f"{released}.multihead_attn", f"{layer}.cross_attn")
    yield from _feed_forward(released, layer)
    for k in range(3):
        yield Rule(f"{released}.norm{k + 1}.*", f"{layer}.norms.{k}.*")
    yield Rule(f"{decoder}.norm.*", f"{ours}.post_norm.*")


def _attention(released: str, ours: str) -> Iterator[Rule]:
    """Both sides use nn.MultiheadAttention, which packs query, key and value in one matrix."""
    yield Rule(f"{released}.*", f"{ours}.attn.*")
    yield Rule(f"{released}.out_proj.*", f"{ours}.attn.out_proj.*")


def _feed_forward(released: str, ours: str) -> Iterator[Rule]:
    yield Rule(f"{released}.linear1.*", f"{ours}.ffn.layers.0.0.*")
    yield Rule(f"{released}.linear2.*", f"{ours}.ffn.layers.1.*")


def _head(head: str) -> Iterator[Rule]:
    for released, ours in {
        "query_feat": "query_feat",
        "query_embed": "query_embed",
        "level_embed": "level_embed",
        "input_proj": "decoder_input_proj",
        "mask_proj": "mask_proj",
        "class_embed": "cls_embed",
        # Our Sequential counts the activations in between.
        "mask_embed.layers.0": "mask_embed.0",
        "mask_embed.layers.1": "mask_embed.2",
        "mask_embed.layers.2": "mask_embed.4",
    }.items():
        yield Rule(f"sem_seg_head.predictor.{released}.*", f"{head}.{ours}.*")
