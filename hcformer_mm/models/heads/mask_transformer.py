"""The mask transformer: queries that group the cells of one feature map into segments."""

from typing import Any, Literal, get_args

import torch
from mmcv.cnn import Conv2d
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.models.layers import DetrTransformerDecoder, Mask2FormerTransformerDecoder
from mmengine.model import BaseModule, caffe2_xavier_init
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.attention import fuse_attention
from ..layers.positional_encoding import GridEncoding
from ..utils.pretrained import is_pretrained

Decoder = Literal["masked", "standard"]

MASK_ALIGNMENT = 8
"""Elements by which rows of masks are aligned for PyTorch's attention on GPUs."""


class MaskTransformer(Mask2FormerHead):
    """Mask2Former's or DETR's transformer decoder on a single feature map (paper, Fig. 4).

    It holds the parameters of :class:`~hcformer_mm.models.HCFormerHead` and takes its arguments;
    mmdet's head provides the losses.

    Raises:
        ValueError: ``decoder`` is unknown, there is no class or no query, or the widths of the
            decoder differ from ``feat_channels``.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        feat_channels: int,
        out_channels: int,
        num_things_classes: int,
        num_stuff_classes: int,
        num_queries: int,
        decoder: Decoder,
        transformer_decoder: dict[str, Any],
        positional_encoding: dict[str, Any],
        init_cfg: dict[str, Any] | None,
    ) -> None:
        # Skip the constructors in between, which build anchors and a pixel decoder, as mmdet does.
        super(AnchorFreeHead, self).__init__(init_cfg=init_cfg)
        if decoder not in get_args(Decoder):
            raise ValueError(f"expected decoder among {get_args(Decoder)}, got {decoder!r}")
        classes = (num_things_classes, num_stuff_classes)
        if min(classes) < 0 or sum(classes) < 1 or num_queries < 1:
            raise ValueError(
                "expected at least one class (num_things_classes, num_stuff_classes) and one query "
                f"(num_queries), got {classes} classes and {num_queries} queries"
            )
        self.decoder = decoder
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = sum(classes)
        self.num_queries = num_queries
        self.in_channels = in_channels

        kind = Mask2FormerTransformerDecoder if decoder == "masked" else DetrTransformerDecoder
        # Every layer is supervised, so every layer has to return its output.
        self.transformer_decoder: DetrTransformerDecoder = kind(
            **{**transformer_decoder, "return_intermediate": True}
        )
        fuse_attention(self.transformer_decoder)
        widths = (self.transformer_decoder.embed_dims, 2 * positional_encoding["num_feats"])
        if widths != (feat_channels, feat_channels):
            raise ValueError(
                "expected embed_dims of transformer_decoder and 2 * num_feats of "
                f"positional_encoding equal to feat_channels={feat_channels}, got {widths}"
            )
        self.num_heads = self.transformer_decoder.layer_cfg["cross_attn_cfg"]["num_heads"]
        self.decoder_input_proj = (
            nn.Identity() if in_channels == feat_channels else Conv2d(in_channels, feat_channels, 1)
        )
        self.mask_proj = Conv2d(in_channels, out_channels, kernel_size=1)
        self.decoder_positional_encoding = GridEncoding(**positional_encoding)
        if decoder == "masked":
            self.level_embed = nn.Embedding(1, feat_channels)
        self.query_embed = nn.Embedding(num_queries, feat_channels)
        if decoder == "masked":
            self.query_feat = nn.Embedding(num_queries, feat_channels)
        self.cls_embed = nn.Linear(feat_channels, self.num_classes + 1)
        self.mask_embed = nn.Sequential(
            nn.Linear(feat_channels, feat_channels),
            nn.ReLU(inplace=True),
            nn.Linear(feat_channels, feat_channels),
            nn.ReLU(inplace=True),
            nn.Linear(feat_channels, out_channels),
        )

    def init_weights(self) -> None:
        """Initialize as the released implementation does, or by ``init_cfg``."""
        is_first = not self.is_init
        BaseModule.init_weights(self)  # Mask2FormerHead's needs a pixel decoder
        if not is_first or is_pretrained(self):
            return
        for projection in (self.decoder_input_proj, self.mask_proj):
            if isinstance(projection, Conv2d):
                caffe2_xavier_init(projection, bias=0)
        for parameter in self.transformer_decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def group(
        self, feature_map: Tensor, *, last_only: bool = False
    ) -> tuple[list[Tensor], list[Tensor]]:
        r"""Group the cells of the coarsest map: the mask transformer up to eq. (4), in logits.

        .. math:: M = \mathrm{Sigmoid}(\mathcal{E}_\mathrm{feature}^\top \mathcal{E}_\mathrm{mask})

        Args:
            feature_map: Coarsest feature map, ``(B, in_channels, h, w)``.
            last_only: Whether to return the predictions of the last layer alone.

        Returns:
            Class logits ``(B, Q, K + 1)`` and mask logits ``(B, Q, h, w)`` of every decoder layer.
            The masked decoder also predicts before its first layer, which gives one more pair.

        Raises:
            ValueError: The map does not have ``in_channels``.
        """
        if feature_map.shape[1] != self.in_channels:
            raise ValueError(
                f"expected a last feature map of in_channels={self.in_channels} for "
                f"{type(self).__name__}, got {tuple(feature_map.shape)}"
            )
        size = feature_map.shape[-2:]
        mask_features = self.mask_proj(feature_map).flatten(2)
        # Tokens (B, h·w, C). Of a contiguous map, linear layers would copy them one by one.
        memory = self.decoder_input_proj(feature_map).flatten(2).transpose(1, 2).contiguous()
        position = self.decoder_positional_encoding(feature_map)
        query_pos = self.query_embed.weight.expand(feature_map.shape[0], -1, -1)
        if self.decoder == "standard":
            queries = self.transformer_decoder(
                query=torch.zeros_like(query_pos),
                key=memory + position,
                value=memory,
                query_pos=query_pos,
                key_pos=None,
                key_padding_mask=None,
            )  # (layers, B, Q, C), normalized
            if last_only:
                queries = queries[-1:]
            masks = torch.einsum("lbqc,bcn->lbqn", self.mask_embed(queries), mask_features)
            return list(self.cls_embed(queries)), list(masks.unflatten(-1, size))

        memory = memory + self.level_embed.weight
        keys = memory + position
        # Rows of masks have to be aligned on a GPU; otherwise attention copies every mask.
        cells = mask_features.shape[-1]
        mask_features = F.pad(mask_features, (0, -cells % MASK_ALIGNMENT))
        query = self.query_feat.weight.expand_as(query_pos)
        outputs = [self.transformer_decoder.post_norm(query)]
        mask_logits = [self.mask_embed(outputs[0]) @ mask_features]
        for layer in self.transformer_decoder.layers:
            query = layer(
                query=query,
                key=keys,
                value=memory,
                query_pos=query_pos,
                cross_attn_mask=_attention_mask(mask_logits[-1], cells),
            )
            outputs.append(self.transformer_decoder.post_norm(query))
            mask_logits.append(self.mask_embed(outputs[-1]) @ mask_features)
        all_mask_logits = [logits[..., :cells].unflatten(-1, size) for logits in mask_logits]
        if last_only:
            return [self.cls_embed(outputs[-1])], all_mask_logits[-1:]
        return list(self.cls_embed(torch.stack(outputs))), all_mask_logits


def _attention_mask(mask_logits: Tensor, cells: int) -> Tensor:
    """Mask that keeps a query inside of its segment: 0 inside and -∞ outside, ``(B, 1, Q, h·w)``.

    A query whose mask is empty attends everywhere.

    Args:
        mask_logits: Mask logits ``(B, Q, ≥ h·w)``.
        cells: Number of cells, h·w; what follows is ignored.
    """
    outside = mask_logits < 0  # as mmdet's sigmoid < 0.5, without rounding
    inside = outside == outside[..., :cells].all(dim=-1, keepdim=True)
    return inside.log().to(mask_logits.dtype)[:, None, :, :cells]
