"""HCFormerHead: a mask transformer that groups the coarsest cells, without a pixel decoder."""

from typing import Any

import torch
from mmcv.cnn import Conv2d
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.models.layers import Mask2FormerTransformerDecoder, SinePositionalEncoding
from mmdet.registry import TASK_UTILS
from mmdet.structures import SampleList
from mmengine.model import caffe2_xavier_init
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...registry import MODELS
from ...structures import ClusteredFeatures
from ..mask_decoding import MaskSpace, check_mask_space, decode_mask_logits


@MODELS.register_module()
class HCFormerHead(Mask2FormerHead):
    r"""Group the coarsest cells into segments and decode them (paper, Secs. 2.2-2.3, Fig. 4).

    The masked-attention transformer decoder reads the last, coarsest feature map alone. Its mask
    logits are decoded through the assignments (eq. (5)) before the loss and the prediction.
    Matching and losses are those of the host's ``Mask2FormerHead``; the scale regulariser
    :math:`\lambda_{reg} \sum_i |s^{(i)}|` joins them.

    Args:
        in_channels: Channels of the last feature map.
        feat_channels: Channels of the queries.
        out_channels: Channels in which mask queries and mask features meet, :math:`C_m`.
        num_things_classes: Number of thing classes.
        num_stuff_classes: Number of stuff classes.
        num_queries: Number of queries, :math:`N_m`.
        transformer_decoder: Config of the host's ``Mask2FormerTransformerDecoder``.
        positional_encoding: Config of the host's ``SinePositionalEncoding``.
        mask_space: ``'logit'`` or ``'probability'``; see
            :func:`~hcformer_mm.models.mask_decoding.decode_mask_logits`.
        loss_cls: Config of the classification loss; with ``class_weight`` of all classes and of
            "no object".
        loss_mask: Config of the mask loss.
        loss_dice: Config of the dice loss.
        loss_scale_weight: :math:`\lambda_{reg}`.
        train_cfg: ``assigner``, ``sampler``, ``num_points``, ``oversample_ratio`` and
            ``importance_sample_ratio``, as in the host.
        test_cfg: Taken for the detector's sake; read by the fusion head.
        init_cfg: Initialisation, as everywhere in MMEngine.

    Raises:
        ValueError: ``mask_space`` is unknown, ``class_weight`` does not fit the classes, or the
            widths of the decoder do not fit each other.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        feat_channels: int = 256,
        out_channels: int = 256,
        num_things_classes: int = 80,
        num_stuff_classes: int = 53,
        num_queries: int = 100,
        transformer_decoder: dict[str, Any],
        positional_encoding: dict[str, Any],
        mask_space: MaskSpace = "logit",
        loss_cls: dict[str, Any],
        loss_mask: dict[str, Any],
        loss_dice: dict[str, Any],
        loss_scale_weight: float = 0.1,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        # As in the host's mask heads: the constructors between here and BaseModule build anchors
        # and a pixel decoder, and HCFormer has neither.
        super(AnchorFreeHead, self).__init__(init_cfg=init_cfg)
        check_mask_space(mask_space)
        self.mask_space = mask_space
        self.loss_scale_weight = loss_scale_weight
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_things_classes + num_stuff_classes
        self.num_queries = num_queries

        self.transformer_decoder = Mask2FormerTransformerDecoder(**transformer_decoder)
        widths = (self.transformer_decoder.embed_dims, 2 * positional_encoding["num_feats"])
        if widths != (feat_channels, feat_channels):
            raise ValueError(
                "expected transformer_decoder of embed_dims and positional_encoding of twice "
                f"num_feats equal to feat_channels={feat_channels}, got {widths[0]} and {widths[1]}"
            )
        self.num_heads = self.transformer_decoder.layer_cfg["cross_attn_cfg"]["num_heads"]
        self.decoder_input_proj = (
            nn.Identity()
            if in_channels == feat_channels
            else Conv2d(in_channels, feat_channels, kernel_size=1)
        )
        self.mask_proj = Conv2d(in_channels, out_channels, kernel_size=1)
        self.decoder_positional_encoding = SinePositionalEncoding(**positional_encoding)
        self.level_embed = nn.Embedding(1, feat_channels)
        self.query_embed = nn.Embedding(num_queries, feat_channels)
        self.query_feat = nn.Embedding(num_queries, feat_channels)
        self.cls_embed = nn.Linear(feat_channels, self.num_classes + 1)
        self.mask_embed = nn.Sequential(
            nn.Linear(feat_channels, feat_channels),
            nn.ReLU(inplace=True),
            nn.Linear(feat_channels, feat_channels),
            nn.ReLU(inplace=True),
            nn.Linear(feat_channels, out_channels),
        )

        self.class_weight = loss_cls.get("class_weight") or ()
        if len(self.class_weight) != self.num_classes + 1:
            raise ValueError(
                f"expected loss_cls.class_weight of {self.num_classes} classes and no-object, "
                f"{self.num_classes + 1} in all, got {len(self.class_weight)}"
            )
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg
        if train_cfg:
            self.assigner = TASK_UTILS.build(train_cfg["assigner"])
            self.sampler = TASK_UTILS.build(train_cfg["sampler"], default_args=dict(context=self))
            self.num_points = train_cfg["num_points"]
            self.oversample_ratio = train_cfg["oversample_ratio"]
            self.importance_sample_ratio = train_cfg["importance_sample_ratio"]

    def init_weights(self) -> None:
        """Initialise as the host's ``Mask2FormerHead`` does."""
        for projection in (self.decoder_input_proj, self.mask_proj):
            if isinstance(projection, Conv2d):
                caffe2_xavier_init(projection, bias=0)
        for parameter in self.transformer_decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)

    def group(self, feature_map: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Group the cells of the coarsest map: the mask transformer up to eq. (4), in logits.

        Args:
            feature_map: Coarsest feature map, ``(B, in_channels, h, w)``.

        Returns:
            Class logits ``(B, Q, K + 1)`` and mask logits ``(B, Q, h, w)``, a pair of them of the
            query features themselves and of every decoder layer.
        """
        batch, _, rows, cols = feature_map.shape
        mask_features = self.mask_proj(feature_map)
        memory = self.decoder_input_proj(feature_map).flatten(2).transpose(1, 2)  # (B, h·w, C)
        memory = memory + self.level_embed.weight
        no_padding = memory.new_zeros((batch, rows, cols), dtype=torch.bool)
        position = self.decoder_positional_encoding(no_padding).flatten(2).transpose(1, 2)
        query = self.query_feat.weight.expand(batch, -1, -1)
        query_position = self.query_embed.weight.expand(batch, -1, -1)

        class_logits, mask_logits, ignored = self._forward_head(query, mask_features, (rows, cols))
        all_class_logits, all_mask_logits = [class_logits], [mask_logits]
        for layer in self.transformer_decoder.layers:
            # A query that may look nowhere looks everywhere.
            ignored = ignored & ~ignored.all(dim=-1, keepdim=True)
            query = layer(
                query=query,
                key=memory,
                value=memory,
                query_pos=query_position,
                key_pos=position,
                cross_attn_mask=ignored,
            )
            class_logits, mask_logits, ignored = self._forward_head(
                query, mask_features, (rows, cols)
            )
            all_class_logits.append(class_logits)
            all_mask_logits.append(mask_logits)
        return all_class_logits, all_mask_logits

    def forward(
        self, x: ClusteredFeatures, batch_data_samples: SampleList | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predict classes and masks at the resolution of the finest level.

        Args:
            x: Feature maps, finest first, with their clustering.
            batch_data_samples: Not read; the host's heads take it.

        Returns:
            Class logits ``(B, Q, K + 1)`` and decoded mask logits ``(B, Q, H, W)`` of all stages of
            the decoder (the query features, then every layer); in evaluation of the last alone, as
            nothing else is decoded that no result needs.
        """
        assignments = _clustering(x).assignments
        all_class_logits, all_mask_logits = self.group(x[-1])
        if not self.training:
            all_class_logits, all_mask_logits = all_class_logits[-1:], all_mask_logits[-1:]
        # Decoding is linear per mask, so one pass serves the masks of all stages.
        masks = torch.cat(all_mask_logits, dim=1)  # (B, stages·Q, h, w)
        masks = decode_mask_logits(masks, assignments, self.mask_space)
        return all_class_logits, list(masks.split(self.num_queries, dim=1))

    def _get_targets_single(
        self,
        cls_score: Tensor,
        mask_pred: Tensor,
        gt_instances: InstanceData,
        img_meta: dict[str, Any],
    ) -> tuple[Any, ...]:
        """Match as the host does, but never in half precision.

        The host's cost of a mask sums over all points; in float16 the sum overflows, and a cost of
        infinity has no matching.
        """
        with torch.autocast(mask_pred.device.type, enabled=False):
            return super()._get_targets_single(
                cls_score.float(), mask_pred.float(), gt_instances, img_meta
            )

    def loss(self, x: ClusteredFeatures, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of the host on the decoded masks, and the scale regulariser (Sec. 4.1).

        Args:
            x: Feature maps with their clustering.
            batch_data_samples: Ground truth, as in the host.

        Returns:
            Losses by name; ``loss_scale`` is the regulariser. In training mode there are those of
            all stages, ``d0.loss_cls`` being the query features'; in evaluation of the last alone.
        """
        losses = super().loss(x, batch_data_samples)
        scales = _clustering(x).scales
        if scales:
            losses["loss_scale"] = self.loss_scale_weight * torch.cat(scales).abs().sum()
        return losses


def _clustering(x: Any) -> ClusteredFeatures:
    if not isinstance(x, ClusteredFeatures):
        raise TypeError(
            f"expected ClusteredFeatures of an HCBackbone, got {type(x).__name__}; wrap the "
            "backbone: backbone=dict(type='hcformer_mm.HCBackbone', backbone=dict(...))"
        )
    return x
