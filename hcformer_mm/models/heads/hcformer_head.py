"""HCFormerHead: a mask transformer that groups the coarsest cells, without a pixel decoder."""

from typing import Any, Literal, get_args

import torch
from mmcv.cnn import Conv2d
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.models.layers import (
    DetrTransformerDecoder,
    Mask2FormerTransformerDecoder,
    SinePositionalEncoding,
)
from mmdet.registry import TASK_UTILS
from mmdet.structures import SampleList
from mmengine.model import BaseModule, caffe2_xavier_init
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from ...registry import MODELS
from ...structures.clustered_features import ClusteredFeatures
from ..losses.mask_criterion import matched_losses
from ..utils.clustered import require_clustering, scale_losses
from ..utils.mask_decoding import MaskSpace, check_mask_space, decode_mask_logits, full_precision
from ..utils.post_processing import needed_queries
from ..utils.pretrained import is_pretrained

Decoder = Literal["masked", "standard"]


@MODELS.register_module()
class HCFormerHead(Mask2FormerHead):
    r"""Group the coarsest cells into segments and decode them (paper, Secs. 2.2-2.3, Fig. 4).

    The transformer decoder reads the last, coarsest feature map alone. Its mask logits are decoded
    through the assignments (eq. (5)) before the loss and the prediction. Matching and losses are
    those of the host's ``Mask2FormerHead``; the scale regularizer
    :math:`\lambda_{reg} \sum_i |s^{(i)}|` joins them.

    Args:
        in_channels: Channels of the last feature map.
        feat_channels: Channels of the queries.
        out_channels: Channels in which mask queries and mask features meet, :math:`C_m`.
        num_things_classes: Number of thing classes.
        num_stuff_classes: Number of stuff classes.
        num_queries: Number of queries, :math:`N_m`.
        decoder: ``'masked'`` is Mask2Former's: learned query features look where their mask of the
            layer before is, and predict before the first layer too. ``'standard'`` is that of DETR
            and MaskFormer (Table V): the queries start at zero and look everywhere.
        transformer_decoder: Config of the host's ``Mask2FormerTransformerDecoder`` or
            ``DetrTransformerDecoder``; the same serves both.
        positional_encoding: Config of the host's ``SinePositionalEncoding``.
        mask_space: ``'logit'`` or ``'probability'``; see
            :func:`~hcformer_mm.models.utils.mask_decoding.decode_mask_logits`.
        no_object_weight: Weight of "no object" among classes of weight 1.
        loss_cls: Config of the classification loss. A ``class_weight`` of its own, of all classes
            and of "no object", takes the place of ``no_object_weight``.
        loss_mask: Config of the mask loss.
        loss_dice: Config of the dice loss.
        loss_scale_weight: :math:`\lambda_{reg}`.
        decode_matched_only: Whether the losses decode all masks only at the points where they are
            matched, and in full those that are matched
            (:mod:`~hcformer_mm.models.losses.mask_criterion`). Otherwise all masks are decoded first, in
            several times the time and memory, for the same losses.
        train_cfg: ``assigner``, ``sampler``, ``num_points``, ``oversample_ratio`` and
            ``importance_sample_ratio``, as in the host.
        test_cfg: That of the fusion head, to which the detector hands it too: what results are
            wanted, and so which queries :meth:`predict` decodes.
        init_cfg: Initialisation, as everywhere in MMEngine.

    Raises:
        ValueError: ``decoder`` or ``mask_space`` is unknown, ``class_weight`` does not fit the
            classes, or the widths of the decoder do not fit each other.
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
        decoder: Decoder = "masked",
        transformer_decoder: dict[str, Any],
        positional_encoding: dict[str, Any],
        mask_space: MaskSpace = "logit",
        no_object_weight: float = 0.1,
        loss_cls: dict[str, Any],
        loss_mask: dict[str, Any],
        loss_dice: dict[str, Any],
        loss_scale_weight: float = 0.1,
        decode_matched_only: bool = True,
        train_cfg: dict[str, Any] | None = None,
        test_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        # As in the host's mask heads: the constructors between here and BaseModule build anchors
        # and a pixel decoder, and HCFormer has neither.
        super(AnchorFreeHead, self).__init__(init_cfg=init_cfg)
        check_mask_space(mask_space)
        if decoder not in get_args(Decoder):
            raise ValueError(f"expected decoder among {get_args(Decoder)}, got {decoder!r}")
        self.decoder = decoder
        self.mask_space = mask_space
        self.loss_scale_weight = loss_scale_weight
        self.decode_matched_only = decode_matched_only
        self.num_things_classes = num_things_classes
        self.num_stuff_classes = num_stuff_classes
        self.num_classes = num_things_classes + num_stuff_classes
        self.num_queries = num_queries

        kind = Mask2FormerTransformerDecoder if decoder == "masked" else DetrTransformerDecoder
        # Every layer is supervised, so every layer is asked for.
        self.transformer_decoder: DetrTransformerDecoder = kind(
            **{**transformer_decoder, "return_intermediate": True}
        )
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

        self.class_weight = loss_cls.get("class_weight")
        if self.class_weight is None:
            self.class_weight = [1.0] * self.num_classes + [no_object_weight]
        if len(self.class_weight) != self.num_classes + 1:
            raise ValueError(
                f"expected loss_cls.class_weight of {self.num_classes} classes and no-object, "
                f"{self.num_classes + 1} in all, got {len(self.class_weight)}"
            )
        self.loss_cls = MODELS.build({**loss_cls, "class_weight": self.class_weight})
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
        """Initialise as the host's head of the same decoder does, or by ``init_cfg``."""
        is_first = not self.is_init
        # The host's own override wants a pixel decoder.
        BaseModule.init_weights(self)
        if not is_first or is_pretrained(self):
            return
        xavier = nn.init.xavier_normal_ if self.decoder == "masked" else nn.init.xavier_uniform_
        for projection in (self.decoder_input_proj, self.mask_proj):
            if isinstance(projection, Conv2d):
                caffe2_xavier_init(projection, bias=0)
        for parameter in self.transformer_decoder.parameters():
            if parameter.dim() > 1:
                xavier(parameter)

    def group(self, feature_map: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Group the cells of the coarsest map: the mask transformer up to eq. (4), in logits.

        Args:
            feature_map: Coarsest feature map, ``(B, in_channels, h, w)``.

        Returns:
            Class logits ``(B, Q, K + 1)`` and mask logits ``(B, Q, h, w)``, a pair of them of every
            decoder layer; of the query features themselves first, if the decoder is masked.
        """
        batch, _, rows, cols = feature_map.shape
        mask_features = self.mask_proj(feature_map)
        memory = self.decoder_input_proj(feature_map).flatten(2).transpose(1, 2)  # (B, h·w, C)
        no_padding = memory.new_zeros((batch, rows, cols), dtype=torch.bool)
        position = self.decoder_positional_encoding(no_padding).flatten(2).transpose(1, 2)
        query_position = self.query_embed.weight.expand(batch, -1, -1)
        if self.decoder == "masked":
            return self._decode_masked(memory, position, query_position, mask_features)
        return self._decode_standard(memory, position, query_position, mask_features)

    def _decode_masked(
        self, memory: Tensor, position: Tensor, query_position: Tensor, mask_features: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        size = mask_features.shape[-2:]
        memory = memory + self.level_embed.weight
        query = self.query_feat.weight.expand_as(query_position)
        class_logits, mask_logits, ignored = self._forward_head(query, mask_features, size)
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
            class_logits, mask_logits, ignored = self._forward_head(query, mask_features, size)
            all_class_logits.append(class_logits)
            all_mask_logits.append(mask_logits)
        return all_class_logits, all_mask_logits

    def _decode_standard(
        self, memory: Tensor, position: Tensor, query_position: Tensor, mask_features: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        queries = self.transformer_decoder(
            query=torch.zeros_like(query_position),
            key=memory,
            value=memory,
            query_pos=query_position,
            key_pos=position,
            key_padding_mask=None,
        )  # (layers, B, Q, C), normalized
        mask_logits = torch.einsum("lbqc,bchw->lbqhw", self.mask_embed(queries), mask_features)
        return list(self.cls_embed(queries)), list(mask_logits)

    def _stages(self, x: ClusteredFeatures) -> tuple[list[Tensor], list[Tensor]]:
        """What :meth:`group` says: of all stages in training, of the last in evaluation."""
        all_class_logits, all_mask_logits = self.group(x[-1])
        if not self.training:
            return all_class_logits[-1:], all_mask_logits[-1:]
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
            the decoder, as :meth:`group` has them; in evaluation of the last alone, as nothing else
            is decoded that no result needs.
        """
        assignments = require_clustering(x).assignments
        all_class_logits, all_mask_logits = self._stages(x)
        # Decoding is linear per mask, so one pass serves the masks of all stages.
        masks = torch.cat(all_mask_logits, dim=1)  # (B, stages·Q, h, w)
        masks = decode_mask_logits(masks, assignments, self.mask_space)
        return all_class_logits, list(masks.split(self.num_queries, dim=1))

    def predict(
        self, x: ClusteredFeatures, batch_data_samples: SampleList
    ) -> tuple[Tensor, Tensor]:
        """Predict classes and masks at input size, of queries that a result can need alone.

        Which ones can is known before masks are decoded; see
        :func:`~hcformer_mm.models.utils.post_processing.needed_queries`. The results of the fusion head
        are the same as of all queries.

        Args:
            x: Feature maps with their clustering.
            batch_data_samples: Their ``batch_input_shape``.

        Returns:
            Class logits ``(B, Q', K + 1)`` and mask logits ``(B, Q', H, W)`` of the queries that an
            image of the batch needs; of all of them without ``test_cfg``. One query at least.
        """
        assignments = require_clustering(x).assignments
        all_class_logits, all_mask_logits = self.group(x[-1])
        class_logits, mask_logits = all_class_logits[-1], all_mask_logits[-1]
        if self.test_cfg is not None:
            needed = [
                needed_queries(logits, self.test_cfg, self.num_classes) for logits in class_logits
            ]
            queries = torch.stack(needed).any(dim=0).nonzero()[:, 0]
            if not len(queries):  # an empty map cannot be resized
                queries = queries.new_zeros(1)
            class_logits, mask_logits = class_logits[:, queries], mask_logits[:, queries]
        masks = decode_mask_logits(mask_logits, assignments, self.mask_space)
        size = batch_data_samples[0].metainfo["batch_input_shape"]
        masks = F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)
        return class_logits, masks

    def loss_by_feat(
        self,
        all_cls_scores: list[Tensor],
        all_mask_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Match and compare as the host does, but never in half precision.

        In float16 the host's cost of a mask, a sum over all points, overflows; so does the number
        of masks times points, by which it divides the mask loss.

        Args:
            all_cls_scores: Class logits ``(B, Q, K + 1)`` of every stage.
            all_mask_preds: Mask logits ``(B, Q, H, W)`` of every stage.
            batch_gt_instances: ``labels`` ``(N,)`` and ``masks`` ``(N, H', W')`` of every image.
            batch_img_metas: Read by nothing; part of the host's signature.

        Returns:
            Losses by name.

        Raises:
            ValueError: The head has no ``train_cfg``.
        """
        self._check_train_cfg()
        with torch.autocast(all_mask_preds[0].device.type, enabled=False):
            return super().loss_by_feat(
                [full_precision(logits) for logits in all_cls_scores],
                [full_precision(logits) for logits in all_mask_preds],
                batch_gt_instances,
                batch_img_metas,
            )

    def _check_train_cfg(self) -> None:
        if not self.train_cfg:
            raise ValueError(
                "expected train_cfg with assigner, sampler and num_points for a loss, got none; in "
                "a segmentor it stands in decode_head"
            )

    def loss(self, x: ClusteredFeatures, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of the host on the decoded masks, and the scale regularizer (Sec. 4.1).

        Args:
            x: Feature maps with their clustering.
            batch_data_samples: Ground truth, as in the host.

        Returns:
            Losses by name; ``loss_scale`` is the regularizer. In training mode there are those of
            all stages, ``d0.loss_cls`` being the first's; in evaluation of the last alone.

        Raises:
            ValueError: The head has no ``train_cfg``.
        """
        return self.losses(
            x,
            self.preprocess_gt(
                [sample.gt_instances for sample in batch_data_samples],
                [sample.get("gt_sem_seg") for sample in batch_data_samples],
            ),
            [sample.metainfo for sample in batch_data_samples],
        )

    def losses(
        self,
        x: ClusteredFeatures,
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """The same for ground truth as masks.

        Args:
            x: Feature maps with their clustering.
            batch_gt_instances: ``labels`` ``(N,)`` and ``masks`` ``(N, H', W')`` of every image.
            batch_img_metas: Of every image, for the assigner.

        Returns:
            Losses by name.
        """
        if self.decode_matched_only:
            losses = self._matched_losses(x, batch_gt_instances, batch_img_metas)
        else:
            class_logits, mask_logits = self(x)
            losses = self.loss_by_feat(
                class_logits, mask_logits, batch_gt_instances, batch_img_metas
            )
        return {**losses, **scale_losses(x, self.loss_scale_weight)}

    def _matched_losses(
        self,
        x: ClusteredFeatures,
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        self._check_train_cfg()
        assignments = require_clustering(x).assignments
        all_class_logits, all_mask_logits = self._stages(x)
        # Never in half precision; see loss_by_feat.
        with torch.autocast(x[-1].device.type, enabled=False):
            stages = matched_losses(
                self,
                [full_precision(logits) for logits in all_class_logits],
                [full_precision(logits) for logits in all_mask_logits],
                assignments,
                batch_gt_instances,
                batch_img_metas,
            )
        # Named as by the host.
        names = ("loss_cls", "loss_mask", "loss_dice")
        losses = dict(zip(names, stages[-1], strict=True))
        for stage, values in enumerate(stages[:-1]):
            losses |= {f"d{stage}.{name}": v for name, v in zip(names, values, strict=True)}
        return losses
