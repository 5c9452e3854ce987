"""HCFormerFusionHead: panoptic, instance and semantic results of one prediction."""

from typing import Any

import torch
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import SampleList
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

from ...registry import MODELS
from ..semantic_inference import semantic_scores


@MODELS.register_module()
class HCFormerFusionHead(MaskFormerFusionHead):
    """The host's fusion head with semantic results (paper, Sec. 4.1 and Appendix E).

    ``test_cfg`` is that of the host: ``panoptic_on``, ``instance_on``, ``semantic_on`` choose the
    results; ``object_mask_thr``, ``iou_thr``, ``filter_low_score`` and ``max_per_image`` shape
    them.
    """

    def semantic_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> PixelData:
        """Classify the pixels by :func:`~hcformer_mm.models.semantic_inference.semantic_scores`.

        Args:
            mask_cls: Class logits ``(Q, K + 1)`` of an image.
            mask_pred: Mask logits ``(Q, H, W)``.

        Returns:
            ``sem_seg``, the most likely class of every pixel, ``(1, H, W)``.
        """
        scores = semantic_scores(mask_cls, mask_pred)
        return PixelData(sem_seg=scores.argmax(dim=0, keepdim=True))

    def instance_postprocess(self, mask_cls: Tensor, mask_pred: Tensor) -> InstanceData:
        """The ``max_per_image`` best pairs of a query and a class, things alone.

        As in the host, for any number of queries: the host asks for ``max_per_image`` pairs even
        where there are not as many.

        Args:
            mask_cls: Class logits ``(Q, K + 1)`` of an image.
            mask_pred: Mask logits ``(Q, H, W)``.

        Returns:
            ``scores``, ``labels``, ``bboxes`` and ``masks`` of the instances.
        """
        pairs = mask_cls.shape[0] * self.num_classes
        wanted = self.test_cfg.get("max_per_image", 100)
        if pairs < wanted:
            # Queries without an object and without a mask fill up the ranking, and leave it again.
            missing = -(-(wanted - pairs) // self.num_classes)
            nothing = mask_cls.new_full((missing, mask_cls.shape[1]), -torch.inf)
            nothing[:, -1] = 0.0
            mask_cls = torch.cat((mask_cls, nothing))
            empty = mask_pred.new_full((missing, *mask_pred.shape[1:]), -torch.inf)
            mask_pred = torch.cat((mask_pred, empty))
        instances = super().instance_postprocess(mask_cls, mask_pred)
        if pairs < wanted:
            # What filled up has no mask; neither have instances of score 0, which go with it.
            instances = instances[instances.masks.flatten(1).any(dim=1)]
        return instances

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
        results = []
        for mask_cls, mask_pred, data_sample in zip(
            mask_cls_results, mask_pred_results, batch_data_samples, strict=True
        ):
            height, width = data_sample.metainfo["img_shape"][:2]
            mask_pred = mask_pred[:, :height, :width]
            if rescale:
                mask_pred = F.interpolate(
                    mask_pred[None],
                    size=data_sample.metainfo["ori_shape"][:2],
                    mode="bilinear",
                    align_corners=False,
                )[0]
            result: dict[str, Any] = {}
            if self.test_cfg.get("panoptic_on", True):
                result["pan_results"] = self.panoptic_postprocess(mask_cls, mask_pred)
            if self.test_cfg.get("instance_on", False):
                result["ins_results"] = self.instance_postprocess(mask_cls, mask_pred)
            if self.test_cfg.get("semantic_on", False):
                data_sample.pred_sem_seg = self.semantic_postprocess(mask_cls, mask_pred)
            results.append(result)
        return results
