"""HCFormerFusionHead: panoptic, instance and semantic results from one prediction."""

import warnings
from typing import Any

from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import SampleList
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from ...ops.precision import autocast_off
from ...registry import MODELS
from ...utils.components import did_you_mean, nearest
from ...utils.errors import some
from ..utils.post_processing import (
    THRESHOLDS,
    CandidateResult,
    InstanceResult,
    PanopticResult,
    SemanticResult,
    class_probabilities,
    config_of,
    resized_bands,
)

_FLAGS = (
    *("panoptic_on", "instance_on", "semantic_on", "segments_on", "confidence_on"),
    *("candidates_on", "filter_low_score"),
)


@MODELS.register_module()
class HCFormerFusionHead(MaskFormerFusionHead):
    """mmdet's fusion head with semantic results (paper, Sec. 4.1 and Appendix E).

    It takes mmdet's ``test_cfg``: ``panoptic_on``, ``instance_on`` and ``semantic_on`` enable the
    results; ``object_mask_thr``, ``iou_thr``, ``filter_low_score`` and ``max_per_image`` configure
    them. With panoptic results, ``segments_on`` enables the score of every segment and
    ``confidence_on`` a map of the confidence of every pixel. ``candidates_on`` adds the panoptic
    result with ``object_mask_thr`` and ``iou_thr`` of 0, as ``pred_candidate_seg``. A data sample
    whose metainfo has a ``test_cfg`` overrides options for its image. Logits of half precision give
    the results of the same logits in float32. The head warns if the softmax of class logits is NaN,
    and of names in ``test_cfg`` that it does not know.

    Each ``*_postprocess`` method turns the class logits ``(Q, K + 1)`` and mask logits
    ``(Q, H, W)`` of one image into one result.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        known = {*THRESHOLDS, *_FLAGS}
        if unknown := sorted((self.test_cfg or {}).keys() - known):
            warnings.warn(
                f"expected options of {type(self).__name__} in test_cfg, got {some(unknown)}, "
                f"which nothing reads{did_you_mean(nearest(unknown[0], known))}; correct the names",
                stacklevel=2,
            )

    def panoptic_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> PixelData:
        """Return the panoptic segmentation, equal to mmdet's.

        Returns:
            ``sem_seg`` ``(1, H, W)``, class + 1000 · object number; K where there is no object.
        """
        return self._one_result(mask_cls, mask_pred, "panoptic_on")["pred_panoptic_seg"]

    def instance_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> InstanceData:
        """Return the things among the ``max_per_image`` best pairs of a query and a class.

        Returns:
            ``scores``, ``labels``, ``bboxes`` and ``masks`` of the instances.
        """
        return self._one_result(mask_cls, mask_pred, "instance_on")["pred_instances"]

    def semantic_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> PixelData:
        """Return the most likely class of every pixel, as ``sem_seg`` ``(1, H, W)``.

        Classes whose scores are within rounding of each other may be mistaken; see
        :func:`~hcformer_mm.models.utils.post_processing.semantic_queries`.
        """
        return self._one_result(mask_cls, mask_pred, "semantic_on")["pred_sem_seg"]

    def _one_result(self, mask_cls: Tensor, mask_pred: Tensor, kind: str) -> dict[str, Any]:
        flags = dict(panoptic_on=False, instance_on=False, semantic_on=False) | {kind: True}
        size = mask_pred.shape[-2], mask_pred.shape[-1]
        return self._results(mask_cls, mask_pred, size, {**self.test_cfg, **flags})

    def _results(
        self, mask_cls: Tensor, mask_pred: Tensor, size: tuple[int, int], test_cfg: dict[str, Any]
    ) -> dict[str, Any]:
        """Fields of a data sample with the results at ``size`` that ``test_cfg`` enables."""
        numbers = (test_cfg, self.num_things_classes, self.num_classes)
        with autocast_off(mask_cls.device.type):  # scores of close classes need float32
            probabilities = class_probabilities(mask_cls)
            results: list[PanopticResult | InstanceResult | SemanticResult] = []
            if test_cfg.get("panoptic_on", True):
                results.append(PanopticResult(probabilities, size, *numbers))
            if test_cfg.get("candidates_on", False):
                results.append(CandidateResult(probabilities, size, *numbers))
            if test_cfg.get("instance_on", False):
                results.append(InstanceResult(probabilities, size, *numbers))
            if test_cfg.get("semantic_on", False):
                results.append(SemanticResult(probabilities, size))
            for rows, logits in resized_bands(mask_pred, size):
                masks = logits.sigmoid()
                for result in results:
                    result.add(rows, logits, masks)
            return {name: field for result in results for name, field in result.fields().items()}

    def predict(
        self,
        mask_cls_results: Tensor,
        mask_pred_results: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Turn class and mask logits into the results that ``test_cfg`` enables.

        mmdet's detector accepts panoptic and instance results only, so this method itself adds all
        others to the data samples: ``pred_sem_seg``, where every metric reads it,
        ``pred_segments`` and ``pred_confidence``; see
        :meth:`~hcformer_mm.models.utils.post_processing.PanopticResult.fields`.

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
        results = []
        for mask_cls, mask_pred, data_sample in zip(
            mask_cls_results, mask_pred_results, batch_data_samples, strict=True
        ):
            height, width = data_sample.metainfo["img_shape"][:2]
            size = tuple(data_sample.metainfo["ori_shape"][:2]) if rescale else (height, width)
            fields = self._results(
                mask_cls, mask_pred[:, :height, :width], size, config_of(data_sample, self.test_cfg)
            )
            queries = data_sample.pop("decoded_queries", None)
            if queries is not None and "pred_segments" in fields:
                fields["pred_segments"].queries = queries[fields["pred_segments"].queries]
            named = dict(pred_panoptic_seg="pan_results", pred_instances="ins_results")
            results.append({named[key]: fields.pop(key) for key in named.keys() & fields.keys()})
            for name, field in fields.items():
                setattr(data_sample, name, field)
        return results
