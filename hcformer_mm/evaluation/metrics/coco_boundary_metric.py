"""CocoBoundaryMetric: average precision of instances by the overlap of their boundaries."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCOeval_faster
from mmdet.evaluation import CocoMetric
from mmengine.fileio import load
from mmengine.logging import MMLogger

from ...registry import METRICS
from ..measures.mask_ap import index_instances


@METRICS.register_module()
class CocoBoundaryMetric(CocoMetric):
    r"""AP^boundary of COCO instances (paper, Sec. 4.1), computed by faster-coco-eval.

    The overlap of two masks is the smaller of their IoU and the IoU of their boundaries, the pixels
    of a mask within ``dilation_ratio`` of the image's diagonal from its contour (Boundary IoU,
    https://arxiv.org/abs/2103.16562). Everything else is COCO's mask AP with at most 100 detections
    per image.

    It reads the same annotations and predictions as mmdet's ``CocoMetric``, and both can be in one
    list of evaluators. Results are ``boundary_mAP``, ``boundary_mAP_50``, ``_75``, ``_s``, ``_m``
    and ``_l``; -1 where there is no ground truth.

    Args:
        ann_file: Annotations in COCO's format; by default those of the data samples.
        dilation_ratio: Width of the boundaries as a fraction of the diagonal; 0.02 for COCO.
        classwise: Whether to report ``<class>_boundary_precision`` as well.
        outfile_prefix: Prefix of the path ``<prefix>.segm.json`` of the predictions; by default
            they are not kept.
        backend_args: MMEngine's options for reading ``ann_file``.
        collect_device: ``'cpu'`` or ``'gpu'``, over which processes collect results.
        prefix: First part of the result names; ``'coco'`` by default.

    Raises:
        ValueError: ``dilation_ratio`` is not positive, or predictions have no masks.
    """

    _NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")  # COCO's first six figures

    def __init__(
        self,
        ann_file: str | None = None,
        *,
        dilation_ratio: float = 0.02,
        classwise: bool = False,
        outfile_prefix: str | None = None,
        backend_args: dict[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        if dilation_ratio <= 0:
            raise ValueError(f"expected dilation_ratio above 0, got {dilation_ratio}")
        super().__init__(
            ann_file=ann_file,
            metric="segm",
            classwise=classwise,
            outfile_prefix=outfile_prefix,
            backend_args=backend_args,
            collect_device=collect_device,
            prefix=prefix,
        )
        self.dilation_ratio = dilation_ratio

    def compute_metrics(self, results: list[tuple[dict, dict]]) -> dict[str, float]:
        """Compare predictions with the ground truth.

        Args:
            results: Ground truth and prediction of every image, as ``CocoMetric.process`` leaves
                them.

        Returns:
            Figures in [0, 1] by name, to three digits.
        """
        ground_truth, predictions = zip(*results, strict=True)
        with tempfile.TemporaryDirectory() as folder:
            prefix = self.outfile_prefix or str(Path(folder, "results"))
            if self._coco_api is None:
                annotations = load(self.gt_to_coco_json(ground_truth, prefix))
            else:
                annotations = self._coco_api.dataset
            truth = index_instances(annotations)
            self.cat_ids = truth.getCatIds(catNms=self.dataset_meta["classes"])
            files = self.results2json(predictions, prefix)
            if "segm" not in files:
                raise ValueError(
                    "expected masks in the predictions for AP^boundary, got boxes alone"
                )
            found = load(files["segm"])
        for instance in found:
            # With boxes, COCO would take areas from these instead of the masks.
            del instance["bbox"]
        logger = MMLogger.get_current_instance()
        evaluation = COCOeval_faster(
            truth,
            truth.loadRes(found),
            "boundary",
            print_function=logger.info,
            boundary_dilation_ratio=self.dilation_ratio,
        )
        evaluation.params.catIds = self.cat_ids
        evaluation.run()
        figures = {
            f"boundary_{name}": round(float(value), 3)
            for name, value in zip(self._NAMES, evaluation.stats, strict=False)
        }
        if self.classwise:
            precisions = evaluation.eval["precision"]  # (IoU, recall, class, size, detections)
            for index, category in enumerate(truth.loadCats(evaluation.params.catIds)):
                precision = precisions[:, :, index, 0, -1]
                value = precision.mean() if (precision > -1).all() else np.nan
                figures[f"{category['name']}_boundary_precision"] = round(float(value), 3)
        return figures
