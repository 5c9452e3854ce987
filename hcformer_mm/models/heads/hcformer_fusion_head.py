"""HCFormerFusionHead: panoptic, instance and semantic results from one prediction."""

from typing import Any

from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import SampleList
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from ...ops.precision import autocast_off
from ...registry import MODELS
from ..utils.post_processing import (
    InstanceResult,
    PanopticResult,
    SemanticResult,
    class_probabilities,
    resized_bands,
)


@MODELS.register_module()
class HCFormerFusionHead(MaskFormerFusionHead):
    """mmdet's fusion head with semantic results (paper, Sec. 4.1 and Appendix E).

    It takes mmdet's ``test_cfg``: ``panoptic_on``, ``instance_on`` and ``semantic_on`` enable the
    results; ``object_mask_thr``, ``iou_thr``, ``filter_low_score`` and ``max_per_image`` configure
    them. Logits of half precision give the results of the same logits in float32. The head warns if
    the softmax of class logits is NaN.

    Each ``*_postprocess`` method turns the class logits ``(Q, K + 1)`` and mask logits
    ``(Q, H, W)`` of one image into one result.
    """

    def panoptic_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> PixelData:
        """Return the panoptic segmentation, equal to mmdet's.

        Returns:
            ``sem_seg`` ``(1, H, W)``: class + 1000 · object number; K where there is no object.
        """
        return self._results(mask_cls, mask_pred, panoptic_on=True)[0]

    def instance_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> InstanceData:
        """Return the things among the ``max_per_image`` best pairs of a query and a class.

        Returns:
            ``scores``, ``labels``, ``bboxes`` and ``masks`` of the instances.
        """
        return self._results(mask_cls, mask_pred, instance_on=True)[1]

    def semantic_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> PixelData:
        """Return the most likely class of every pixel, as ``sem_seg`` ``(1, H, W)``.

        Classes whose scores are within rounding of each other may be mistaken; see
        :func:`~hcformer_mm.models.utils.post_processing.semantic_queries`.
        """
        return self._results(mask_cls, mask_pred, semantic_on=True)[2]

    def _results(
        self,
        mask_cls: Tensor,
        mask_pred: Tensor,
        size: tuple[int, int] | None = None,
        *,
        panoptic_on: bool = False,
        instance_on: bool = False,
        semantic_on: bool = False,
    ) -> list[Any]:
        """Panoptic, instance and semantic result at ``size``; None for each that is off."""
        size = size or (mask_pred.shape[-2], mask_pred.shape[-1])
        numbers = (self.test_cfg, self.num_things_classes, self.num_classes)
        with autocast_off(mask_cls.device.type):  # scores of close classes need float32
            probabilities = class_probabilities(mask_cls)
            results = [
                PanopticResult(probabilities, size, *numbers) if panoptic_on else None,
                InstanceResult(probabilities, size, *numbers) if instance_on else None,
                SemanticResult(probabilities, size) if semantic_on else None,
            ]
            for rows, logits in resized_bands(mask_pred, size):
                masks = logits.sigmoid()
                for result in results:
                    if result is not None:
                        result.add(rows, logits, masks)
            return [result and result.result() for result in results]

    def predict(
        self,
        mask_cls_results: Tensor,
        mask_pred_results: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Turn class and mask logits into the results that ``test_cfg`` enables.

        mmdet's detector accepts panoptic and instance results only, so this method itself adds
        semantic results to the data samples, as ``pred_sem_seg``, where every metric reads them.

        Args:
            mask_cls_results: Class logits ``(B, Q, K + 1)``.
            mask_pred_results: Mask logits at input size, ``(B, Q, H, W)``.
            batch_data_samples: Data samples with ``img_shape`` (without padding) and ``ori_shape``.
            rescale: Whether results have the size of the original image.
            kwargs: Unused; part of mmdet's signature.

        Returns:
            A dict per image with ``pan_results`` and ``ins_results``, as in mmdet.

        Raises:
            ValueError: The class logits are not of as many classes as this head.
        """
        if mask_cls_results.shape[-1] != self.num_classes + 1:
            raise ValueError(
                f"expected class logits of the {self.num_classes} classes of "
                f"{type(self).__name__} and no-object, got {tuple(mask_cls_results.shape)}; set "
                "num_things_classes and num_stuff_classes of panoptic_head and "
                "panoptic_fusion_head alike"
            )
        wanted = dict(
            panoptic_on=self.test_cfg.get("panoptic_on", True),
            instance_on=self.test_cfg.get("instance_on", False),
            semantic_on=self.test_cfg.get("semantic_on", False),
        )
        results = []
        for mask_cls, mask_pred, data_sample in zip(
            mask_cls_results, mask_pred_results, batch_data_samples, strict=True
        ):
            height, width = data_sample.metainfo["img_shape"][:2]
            size = tuple(data_sample.metainfo["ori_shape"][:2]) if rescale else (height, width)
            panoptic, instances, semantic = self._results(
                mask_cls, mask_pred[:, :height, :width], size, **wanted
            )
            if semantic is not None:
                data_sample.pred_sem_seg = semantic
            named = dict(pan_results=panoptic, ins_results=instances)
            results.append({name: result for name, result in named.items() if result is not None})
        return results
