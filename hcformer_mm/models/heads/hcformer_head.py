"""HCFormerHead: a mask transformer that groups the coarsest cells, without a pixel decoder."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import TASK_UTILS
from mmdet.structures import DetDataSample, SampleList
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn import functional as F

from ...ops.bands import is_eager_cpu
from ...ops.precision import autocast_off
from ...registry import MODELS
from ...structures.clustered_features import ClusteredFeatures, require_clustering
from ..losses.finite_assigner import FiniteAssigner
from ..losses.mask_criterion import MaskCriterion, num_objects
from ..losses.scale_regularizer import scale_losses
from ..utils.label_maps import present_labels
from ..utils.mask_decoding import MaskSpace, check_mask_space, decode_mask_logits, full_precision
from ..utils.post_processing import config_of, needed_queries
from .mask_transformer import Decoder, MaskTransformer


@MODELS.register_module()
class HCFormerHead(MaskTransformer):
    r"""Group the coarsest cells into segments and decode them (paper, Secs. 2.2-2.3, Fig. 4).

    The transformer decoder reads only the last, coarsest feature map. Its mask logits are decoded
    through the assignments (eq. (5)) before the loss and the prediction. Matching and losses are
    mmdet's, as in ``Mask2FormerHead``, plus the scale regularizer
    :math:`\lambda_{reg} \sum_i |s^{(i)}|`.

    Args:
        in_channels: Channels of the last feature map.
        feat_channels: Channels of the queries.
        out_channels: Channels of mask queries and mask features, :math:`C_m`.
        num_things_classes: Number of thing classes.
        num_stuff_classes: Number of stuff classes.
        num_queries: Number of queries, :math:`N_m`.
        decoder: ``'masked'`` is Mask2Former's: learned query features attend inside the mask that
            the previous layer predicts; the first mask is predicted before the first layer.
            ``'standard'`` is the decoder of DETR and MaskFormer (Table V): the queries start at
            zero and attend everywhere.
        transformer_decoder: Config of mmdet's ``Mask2FormerTransformerDecoder`` or
            ``DetrTransformerDecoder``, which take the same keys.
        positional_encoding: Config of mmdet's ``SinePositionalEncoding``.
        mask_space: ``'logit'`` or ``'probability'``; see
            :func:`~hcformer_mm.models.utils.mask_decoding.decode_mask_logits`.
        no_object_weight: Classification weight of "no object"; the classes have weight 1.
        loss_cls: Config of the classification loss. Its own ``class_weight``, if any, replaces
            ``no_object_weight``; it lists all classes and "no object".
        loss_mask: Config of the mask loss.
        loss_dice: Config of the dice loss.
        loss_scale_weight: :math:`\lambda_{reg}`.
        decode_matched_only: Whether training decodes only the masks that the losses read
            (:mod:`~hcformer_mm.models.losses.mask_criterion`). Otherwise it decodes all masks,
            which takes several times the time and memory and gives equal losses.
        train_cfg: ``assigner``, ``sampler``, ``num_points``, ``oversample_ratio`` and
            ``importance_sample_ratio``, as in mmdet.
        test_cfg: Config of the fusion head, which mmdet's detector also passes here. The results
            that it enables determine which queries :meth:`predict` decodes.
        init_cfg: Initialization config of MMEngine.

    Raises:
        ValueError: ``decoder`` or ``mask_space`` is unknown, there is no class or no query,
            ``class_weight`` does not fit the classes, or the widths of the decoder differ from
            ``feat_channels``.
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
        check_mask_space(mask_space)
        super().__init__(
            in_channels=in_channels,
            feat_channels=feat_channels,
            out_channels=out_channels,
            num_things_classes=num_things_classes,
            num_stuff_classes=num_stuff_classes,
            num_queries=num_queries,
            decoder=decoder,
            transformer_decoder=transformer_decoder,
            positional_encoding=positional_encoding,
            init_cfg=init_cfg,
        )
        self.mask_space = mask_space
        self.loss_scale_weight = loss_scale_weight
        self.decode_matched_only = decode_matched_only
        class_weight = loss_cls.get("class_weight")
        if class_weight is None:
            class_weight = [1.0] * self.num_classes + [no_object_weight]
        if len(class_weight) != self.num_classes + 1:
            raise ValueError(
                f"expected loss_cls.class_weight of {self.num_classes} classes and no-object, "
                f"{self.num_classes + 1} in all, got {len(class_weight)}"
            )
        self.class_weight = class_weight
        self.loss_cls = MODELS.build({**loss_cls, "class_weight": class_weight})
        self.loss_mask = MODELS.build(loss_mask)
        self.loss_dice = MODELS.build(loss_dice)
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg
        if train_cfg:
            self.assigner = FiniteAssigner(TASK_UTILS.build(train_cfg["assigner"]))
            self.sampler = TASK_UTILS.build(train_cfg["sampler"], default_args=dict(context=self))
            self.num_points = train_cfg["num_points"]
            self.oversample_ratio = train_cfg["oversample_ratio"]
            self.importance_sample_ratio = train_cfg["importance_sample_ratio"]

    def _predictions(self, x: ClusteredFeatures) -> tuple[list[Tensor], list[Tensor]]:
        """Predictions of :meth:`group`: of every layer in training, of the last in evaluation."""
        return self.group(x[-1], last_only=not self.training)

    def forward(
        self, x: ClusteredFeatures, batch_data_samples: SampleList | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predict classes and masks at the resolution of the finest level.

        Args:
            x: Feature maps, finest first, with their clustering.
            batch_data_samples: Unused; part of mmdet's signature.

        Returns:
            Class logits ``(B, Q, K + 1)`` and decoded mask logits ``(B, Q, H, W)`` of every decoder
            layer, ordered as in :meth:`group`; in evaluation of the last layer alone.

        Raises:
            TypeError: The features carry no clustering.
        """
        assignments = require_clustering(x).assignments
        all_class_logits, all_mask_logits = self._predictions(x)
        # Decoding is linear per mask, so one pass serves the masks of all layers.
        masks = torch.cat(all_mask_logits, dim=1) if self.training else all_mask_logits[0]
        masks = decode_mask_logits(masks, assignments, self.mask_space)
        return all_class_logits, list(masks.split(self.num_queries, dim=1))

    def predict(
        self, x: ClusteredFeatures, batch_data_samples: SampleList
    ) -> tuple[Tensor, Tensor]:
        """Predict classes and masks at input size, for the queries that a result can need.

        Class logits alone determine these queries, so no other masks are decoded; see
        :func:`~hcformer_mm.models.utils.post_processing.needed_queries`. The results of the fusion
        head do not change.

        Args:
            x: Feature maps with their clustering.
            batch_data_samples: Data samples with ``batch_input_shape``.

        Returns:
            Class logits ``(B, Q', K + 1)`` and mask logits ``(B, Q', H, W)`` of the queries that
            any image of the batch needs, at least one; of all queries without ``test_cfg``.

        Raises:
            TypeError: The features carry no clustering.
        """
        assignments = require_clustering(x).assignments
        (class_logits,), (mask_logits,) = self.group(x[-1], last_only=True)
        if self.test_cfg is not None:
            queries = self.queries_of_results(class_logits, batch_data_samples)
            class_logits, mask_logits = class_logits[:, queries], mask_logits[:, queries]
        return class_logits, self.decode(mask_logits, assignments, batch_data_samples[0])

    def queries_of_results(self, class_logits: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Find the queries that a result of any image needs.

        Args:
            class_logits: Class logits of all queries, ``(B, Q, K + 1)``.
            batch_data_samples: Data samples; if their segments are scored, the queries are noted in
                their metainfo for the fusion head.

        Returns:
            Indices ``(Q',)``, at least one.
        """
        configs = [config_of(sample, self.test_cfg or {}) for sample in batch_data_samples]
        needed = [
            needed_queries(logits, config, self.num_classes)
            for logits, config in zip(class_logits, configs, strict=True)
        ]
        queries = torch.stack(needed).any(dim=0).nonzero()[:, 0]
        if not len(queries):  # an empty map cannot be resized
            queries = queries.new_zeros(1)
        for sample, config in zip(batch_data_samples, configs, strict=True):
            if config.get("segments_on", False):  # the fusion head names queries by number
                sample.set_field(queries, "decoded_queries", field_type="metainfo")
        return queries

    def decode(
        self, mask_logits: Tensor, assignments: Sequence[Tensor], data_sample: DetDataSample
    ) -> Tensor:
        """Decode mask logits ``(B, Q, h, w)`` to input size, ``(B, Q, H, W)``.

        ``data_sample`` is one of the batch; its ``batch_input_shape`` is the size.
        """
        masks = decode_mask_logits(mask_logits, assignments, self.mask_space)
        size = tuple(data_sample.metainfo["batch_input_shape"])
        if tuple(masks.shape[-2:]) == size:  # clusters of the image's pixels
            return masks
        return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)

    def loss(self, x: ClusteredFeatures, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute Mask2Former's losses on decoded masks, and the scale regularizer (Sec. 4.1).

        Args:
            x: Feature maps with their clustering.
            batch_data_samples: Data samples with ``gt_instances`` and, for stuff, ``gt_sem_seg``.

        Returns:
            Losses by name, in training for every decoder layer, the last without a prefix and the
            others with ``d0.``, ``d1.``, ...; in evaluation for the last layer only. ``loss_scale``
            is the regularizer.

        Raises:
            TypeError: The features carry no clustering.
            ValueError: The head has no ``train_cfg``, masks or label maps do not have the size of
                the padded images, or, on a CPU, a label is not a class.
        """
        x = require_clustering(x)
        self._check_train_cfg()
        truth = (
            self._ground_truth(batch_data_samples),
            [sample.metainfo for sample in batch_data_samples],
        )
        if not self.decode_matched_only:
            class_logits, mask_logits = self(x)
            losses = self.loss_by_feat(class_logits, mask_logits, *truth)
        else:
            criterion = MaskCriterion(
                assigner=self.assigner,
                sampler=self.sampler,
                loss_cls=self.loss_cls,
                loss_mask=self.loss_mask,
                loss_dice=self.loss_dice,
                class_weight=self.class_weight,
                num_points=self.num_points,
                oversample_ratio=self.oversample_ratio,
                importance_sample_ratio=self.importance_sample_ratio,
                mask_space=self.mask_space,
            )
            losses = criterion(*self._predictions(x), x.assignments, *truth)
        return losses | scale_losses(x, self.loss_scale_weight)

    def _ground_truth(self, batch_data_samples: SampleList) -> list[InstanceData]:
        """``labels`` ``(N,)`` and ``masks`` ``(N, H', W')`` of every image, stuff included."""
        truth = []
        for sample in batch_data_samples:
            labels = sample.gt_instances.labels
            # On other devices the check would wait for the values, and break a compiled graph.
            if is_eager_cpu(labels) and ((labels < 0) | (labels >= self.num_classes)).any():
                raise ValueError(
                    f"expected labels from 0 to {self.num_classes - 1} for num_things_classes + "
                    f"num_stuff_classes = {self.num_classes}, got {labels.tolist()} in "
                    f"{sample.get('img_path')}; compare the classes of the dataset"
                )
            masks = sample.gt_instances.masks.to_tensor(torch.bool, labels.device)
            semantic = sample.get("gt_sem_seg")
            # The losses sample masks at shares of the padded image's sides.
            padded = tuple(sample.get("batch_input_shape", masks.shape[-2:]))
            for part in [masks] if semantic is None else [masks, semantic.sem_seg]:
                if tuple(part.shape[-2:]) != padded:
                    raise ValueError(
                        f"expected masks and label maps of {padded}, the size of the padded images,"
                        f" got {tuple(part.shape[-2:])} of {sample.get('img_path')}; set pad_mask "
                        "and pad_seg of model.data_preprocessor to True"
                    )
            if semantic is not None:
                label_map = semantic.sem_seg  # (1, H', W')
                stuff = present_labels(label_map, self.num_things_classes, self.num_classes)
                labels = torch.cat([labels, stuff])
                masks = torch.cat([masks, label_map == stuff[:, None, None]])
            truth.append(InstanceData(labels=labels, masks=masks))
        return truth

    def loss_by_feat(
        self,
        all_cls_scores: list[Tensor],
        all_mask_preds: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Compute mmdet's losses on decoded masks, never in half precision: sums would overflow.

        See ``Mask2FormerHead.loss_by_feat`` for arguments and result.

        Raises:
            ValueError: The head has no ``train_cfg``.
        """
        self._check_train_cfg()
        with autocast_off(all_mask_preds[0].device.type):
            return super().loss_by_feat(
                [full_precision(logits) for logits in all_cls_scores],
                [full_precision(logits) for logits in all_mask_preds],
                batch_gt_instances,
                batch_img_metas,
            )

    def get_targets(
        self,
        cls_scores_list: list[Tensor],
        mask_preds_list: list[Tensor],
        batch_gt_instances: list[InstanceData],
        *args: Any,
    ) -> tuple[Any, ...]:
        """Return mmdet's targets of one decoder layer, averaged over :func:`num_objects`."""
        *targets, _ = super().get_targets(
            cls_scores_list, mask_preds_list, batch_gt_instances, *args
        )
        return *targets, num_objects(batch_gt_instances)

    def _check_train_cfg(self) -> None:
        if not self.train_cfg:
            raise ValueError(
                "expected train_cfg with assigner, sampler and num_points for a loss, got none; in "
                "a segmentor it belongs in decode_head"
            )
