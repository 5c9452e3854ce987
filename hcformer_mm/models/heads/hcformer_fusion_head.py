"""HCFormerFusionHead: panoptic, instance and semantic results of one prediction."""

from typing import Any

from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import SampleList
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from ...registry import MODELS
from ..utils.post_processing import InstanceResult, PanopticResult, SemanticResult, resized_bands


@MODELS.register_module()
class HCFormerFusionHead(MaskFormerFusionHead):
    """The host's fusion head with semantic results (paper, Sec. 4.1 and Appendix E).

    ``test_cfg`` is that of the host: ``panoptic_on``, ``instance_on``, ``semantic_on`` choose the
    results; ``object_mask_thr``, ``iou_thr``, ``filter_low_score`` and ``max_per_image`` shape
    them.
    """

    def panoptic_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> PixelData:
        """Panoptic segmentation, equal to the host's.

        Args:
            mask_cls: Class logits ``(Q, K + 1)`` of an image.
            mask_pred: Mask logits ``(Q, H, W)``.

        Returns:
            ``sem_seg`` ``(1, H, W)``: class + 1000 · number of the object; K where nothing is.
        """
        return self._results(mask_cls, mask_pred, panoptic_on=True)[0]

    def instance_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> InstanceData:
        """The ``max_per_image`` best pairs of a query and a class, things alone.

        Args:
            mask_cls: Class logits ``(Q, K + 1)`` of an image.
            mask_pred: Mask logits ``(Q, H, W)``.

        Returns:
            ``scores``, ``labels``, ``bboxes`` and ``masks`` of the instances.
        """
        return self._results(mask_cls, mask_pred, instance_on=True)[1]

    def semantic_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> PixelData:
        """Classify the pixels by :func:`~hcformer_mm.models.utils.post_processing.semantic_scores`.

        Args:
            mask_cls: Class logits ``(Q, K + 1)`` of an image.
            mask_pred: Mask logits ``(Q, H, W)``.

        Returns:
            ``sem_seg``, the most likely class of every pixel, ``(1, H, W)``.
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
        """Panoptic, instance and semantic result of an image, None for those not asked for.

        The masks are resized to ``size`` on the way.
        """
        size = size or (mask_pred.shape[-2], mask_pred.shape[-1])
        numbers = (self.test_cfg, self.num_things_classes, self.num_classes)
        results = [
            PanopticResult(mask_cls, size, *numbers) if panoptic_on else None,
            InstanceResult(mask_cls, size, *numbers) if instance_on else None,
            SemanticResult(mask_cls, size) if semantic_on else None,
        ]
        for rows, logits in resized_bands(mask_pred, size):
            for result in results:
                if result is not None:
                    result.add(rows, logits)
        return [result and result.result() for result in results]

    def predict(
        self,
        mask_cls_results: Tensor,
        mask_pred_results: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Turn class and mask logits into the results that ``test_cfg`` asks for.

        The host's detector accepts panoptic and instance results alone, so semantic ones are
        attached here, as ``pred_sem_seg`` of each data sample: where every metric looks for them.

        Args:
            mask_cls_results: Class logits ``(B, Q, K + 1)``.
            mask_pred_results: Mask logits at input size, ``(B, Q, H, W)``.
            batch_data_samples: Their ``img_shape`` (without padding) and ``ori_shape``; semantic
                results are attached to them.
            rescale: Whether results have the size of the original image.
            kwargs: Not read; part of the host's signature.

        Returns:
            A dict per image with ``pan_results`` and ``ins_results``, as in the host.
        """
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
