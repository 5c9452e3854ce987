"""HCFormerTTAModel: one prediction from flipped and resized views of an image."""

from collections.abc import Iterable
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample, SampleList
from mmengine.model import BaseTTAModel
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...registry import MODELS
from ...structures.clustered_features import require_clustering
from ...utils.errors import InputError
from ..heads import HCFormerFusionHead, HCFormerHead
from ..utils.mask_decoding import full_precision, mask_logits_at
from ..utils.post_processing import class_probabilities, resize

GRID = 64
"""Rows and columns of the points at which masks are compared."""
FLIPPED_DIMS = dict(horizontal=[-1], vertical=[-2], diagonal=[-2, -1])
"""Dims of a map ``(..., H, W)`` that each direction of mmdet's ``RandomFlip`` reverses."""


class View(NamedTuple):
    """Prediction of one view, before its masks are decoded."""

    class_logits: Tensor  # (Q, K + 1)
    mask_logits: Tensor  # (1, Q, h, w), of the coarsest cells
    assignments: list[Tensor]  # (1, 9, H_i, W_i), finest first


@MODELS.register_module()
class HCFormerTTAModel(BaseTTAModel):
    r"""Average the queries of several views of an image, then make the results of the average.

    It wraps mmdet's detector with an HCFormer head for panoptic, instance and semantic results.
    Which query finds an object depends on where the object lies, so the queries of each view are
    first matched with those of the first view, one to one, for the largest sum of

    .. math:: \mathrm{Dice}(m_q, m_r) \sum_{k \le K} p_{qk} p_{rk},

    with class probabilities :math:`p` and mask probabilities :math:`m` at the points of a grid.
    Matched queries of :math:`V` views become one query of

    .. math::
        \bar{p_k} = \frac{1}{V} \sum_v p^{(v)}_k, \qquad
        \bar m = \frac{\sum_v w^{(v)} m^{(v)}}{\sum_v w^{(v)}}, \qquad
        w^{(v)} = 1 - p^{(v)}_{K + 1},

    so that views that see no object do not shape its mask, and :math:`\bar p_k \bar m` is close to
    the mean of :math:`p_k m`, the average of semantic segmentation. The fusion head takes these
    queries as those of a single view. A single view gives the results of the detector.

    Masks have the size of the largest view before the fusion head resizes them. Only queries that
    the results need are decoded, for one view after the other.

    Args:
        module: The detector or its config.
        data_preprocessor: Data preprocessor that replaces the detector's.

    Raises:
        InputError: The heads of the detector are not those of HCFormer.
    """

    def __init__(self, module: Any, data_preprocessor: Any = None) -> None:
        super().__init__(module, data_preprocessor)
        head, fusion = (
            getattr(self.module, f"panoptic_{name}", None) for name in ("head", "fusion_head")
        )
        if not isinstance(head, HCFormerHead) or not isinstance(fusion, HCFormerFusionHead):
            raise InputError(
                "expected a detector with HCFormerHead and HCFormerFusionHead for HCFormerTTAModel,"
                f" got {type(self.module).__name__} without; use mmseg.SegTTAModel for segmentors "
                "and mmdet.DetTTAModel for boxes"
            )

    def test_step(self, data: Any) -> SampleList:
        """Predict every view by the ``test_step`` of the detector, and merge the predictions.

        Args:
            data: ``inputs`` and ``data_samples`` of mmcv's ``TestTimeAug``: a batch for each view.

        Returns:
            A data sample for each image, with the fields that ``test_cfg`` enables.

        Raises:
            InputError: A data sample does not tell whether its view is flipped.
        """
        self.module.predict = self._predict_view  # under the autocast of its test_step, if any
        try:
            return super().test_step(data)
        finally:
            del self.module.predict

    def _predict_view(self, inputs: Tensor, data_samples: SampleList) -> SampleList:
        """Attach the prediction of the network to every data sample, as ``view``."""
        features = require_clustering(self.module.extract_feat(inputs))
        (classes,), (masks,) = self.module.panoptic_head.group(features[-1], last_only=True)
        for i, sample in enumerate(data_samples):
            assignments = [assignment[i : i + 1] for assignment in features.assignments]
            sample.view = View(classes[i], masks[i : i + 1], assignments)
        return data_samples

    def merge_preds(self, data_samples_list: list[SampleList]) -> SampleList:
        """Merge the views of every image, which its data samples carry as ``view``.

        Args:
            data_samples_list: The data samples of all views, for each image.

        Returns:
            A data sample for each image, that of its largest view, with the results.
        """
        return list(map(self._merge_views, data_samples_list))

    def _merge_views(self, samples: SampleList) -> DetDataSample:
        head, fusion_head = self.module.panoptic_head, self.module.panoptic_fusion_head
        views = [sample.pop("view") for sample in samples]
        merged = max(samples, key=lambda sample: prod(sample.img_shape[:2]))
        orders = self._match(samples, views)
        logits = torch.stack(
            [view.class_logits[order] for view, order in zip(views, orders, strict=True)]
        )
        probabilities = class_probabilities(logits)  # (V, Q, K + 1)
        logits = logits[0] if len(views) == 1 else probabilities.mean(dim=0).log()
        queries = head.queries_of_results(logits[None], [merged])
        decoded = (
            self._decode(sample, view, order[queries], tuple(merged.img_shape[:2]))
            for sample, view, order in zip(samples, views, orders, strict=True)
        )
        if len(views) == 1:
            masks = next(decoded)
        else:
            masks = _mean(decoded, probabilities[:, queries, :-1].sum(dim=-1))
        results = fusion_head.predict(logits[None, queries], masks[None], [merged], rescale=True)
        (sample,) = self.module.add_pred_to_datasample([merged], results)
        return sample

    def _match(self, samples: SampleList, views: list[View]) -> list[Tensor]:
        """Queries ``(Q,)`` of each view that match those of the first view."""
        first = torch.arange(len(views[0].class_logits), device=views[0].class_logits.device)
        if len(views) == 1:
            return [first]
        scores = [class_probabilities(view.class_logits)[:, :-1] for view in views]
        masks = list(map(self._at_grid, samples, views))
        areas = [mask.sum(dim=1) for mask in masks]
        similarities = []
        for score, mask, area in zip(scores[1:], masks[1:], areas[1:], strict=True):
            dice = 2 * masks[0] @ mask.T / (areas[0][:, None] + area).clamp_min(1e-6)
            similarities.append(dice * (scores[0] @ score.T))
        matched = [
            linear_sum_assignment(similarity, maximize=True)[1]
            for similarity in torch.stack(similarities).nan_to_num().cpu().numpy()
        ]
        return [first, *torch.from_numpy(np.stack(matched)).to(first.device)]

    def _at_grid(self, sample: DetDataSample, view: View) -> Tensor:
        """Mask probabilities ``(Q, P)`` at the points of a grid over the image."""
        centers = (torch.arange(GRID, device=view.mask_logits.device) + 0.5) / GRID
        (height, width), (rows, cols) = sample.img_shape[:2], sample.batch_input_shape
        y, x = torch.meshgrid(centers * (height / rows), centers * (width / cols), indexing="ij")
        points = torch.stack([x, y], dim=-1).view(1, -1, 2)
        space = self.module.panoptic_head.mask_space
        masks = mask_logits_at(view.mask_logits, view.assignments, points, space)[0]
        masks = _flip_back(masks.unflatten(1, (GRID, GRID)), sample)
        return full_precision(masks).sigmoid().flatten(1)

    def _decode(
        self, sample: DetDataSample, view: View, queries: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Mask logits ``(Q', H, W)`` of some queries of a view, unflipped, at ``size``."""
        masks = view.mask_logits[:, queries]
        masks = self.module.panoptic_head.decode(masks, view.assignments, sample)[0]
        height, width = sample.img_shape[:2]  # without padding, which is at the right and bottom
        masks = _flip_back(masks[:, :height, :width], sample)
        return masks if (height, width) == size else resize(full_precision(masks), size)


def _flip_back(maps: Tensor, sample: DetDataSample) -> Tensor:
    """Undo the flip of a view on maps ``(..., H, W)``."""
    if "flip" not in sample:
        raise InputError(
            "expected flip in the metainfo of every view, got "
            f"{', '.join(sample.metainfo_keys())}; put RandomFlip into tta_pipeline, with prob=0 "
            "for no flip, and leave meta_keys of PackDetInputs at their default"
        )
    return maps.flip(FLIPPED_DIMS[sample.flip_direction]) if sample.flip else maps


def _mean(maps: Iterable[Tensor], weights: Tensor) -> Tensor:
    """Logits of the weighted mean of the probabilities of mask logits ``(Q, H, W)``.

    Args:
        maps: Mask logits of every view; one view is in memory at a time.
        weights: Weights ``(V, Q)``, not negative.
    """
    limits = torch.finfo(weights.dtype)
    weights = weights / weights.sum(dim=0).clamp_min(limits.tiny)
    mean = reduce(
        torch.add,
        (
            full_precision(masks).sigmoid() * weight[:, None, None]
            for masks, weight in zip(maps, weights, strict=True)
        ),
    )
    return mean.clamp(limits.tiny, 1 - limits.eps / 2).logit()  # resizing needs finite logits
