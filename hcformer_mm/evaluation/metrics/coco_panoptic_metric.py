"""CocoPanopticMetric: mmdet's PQ for every set of classes and folders."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoPanopticMetric as _CocoPanopticMetric
from mmdet.evaluation.metrics.coco_panoptic_metric import parse_pq_results, print_panoptic_table
from mmengine.logging import MMLogger
from panopticapi.evaluation import PQStat

from ...registry import METRICS
from ..measures.panoptic_quality import PanopticQuality, pq_average, pq_groups, total_counts


@METRICS.register_module()
class CocoPanopticMetric(_CocoPanopticMetric):
    """PQ, SQ and RQ of COCO, as ``mmdet.CocoPanopticMetric`` reports them.

    Where mmdet's metric has a result, this is the same to the last bit, except that

    - a group without any category in the data, such as things in a set of stuff alone, has nan,
      where mmdet divides by zero after the first validation;
    - PNG files are those that the annotations name, so images of several folders may share a name;
      those that it writes end in ``.png``;
    - void of the prediction is never taken for a segment, and predictions are not changed.

    Args:
        ann_file: Annotations in COCO's panoptic format.
        seg_prefix: Folder of their PNG files.
        options: Other arguments of mmdet's metric; there is nothing for its ``nproc`` to do.

    Raises:
        ValueError: ``ann_file`` or ``seg_prefix`` is missing.
    """

    def __init__(
        self, ann_file: str | None = None, seg_prefix: str | None = None, **options: Any
    ) -> None:
        if ann_file is None or (seg_prefix is None and not options.get("format_only")):
            raise ValueError(
                f"expected ann_file and seg_prefix, got {ann_file!r} and {seg_prefix!r}"
            )
        super().__init__(ann_file=ann_file, seg_prefix=seg_prefix, **options)
        self._ann_file = ann_file
        self._measure: PanopticQuality | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count matches and errors of the images of a batch, and write predictions if asked to.

        Raises:
            ValueError: The ground truth of an image is missing or of another size, or the
                prediction has a class that the model lacks.
        """
        if self._measure is None:
            self._measure = PanopticQuality(
                self._ann_file,
                str(self.seg_prefix),
                self.dataset_meta["classes"],
                backend_args=self.backend_args,
                coco=self._coco_api,
            )
        for sample in data_samples:
            predicted, stat, written = self._measure.predicted(sample), PQStat(), None
            if not self.format_only:
                stat = self._measure.count(predicted, self._measure.truth(sample))
            if self.tmp_dir is None:  # outfile_prefix is given
                file = self._measure.png(sample["img_id"])
                if not file.endswith(".png"):  # as mmdet names the PNG of an image *.JPG
                    file += ".png"  # or OpenCV would write a JPEG, whose colors are no ids
                # mmdet writes void as 0 into the prediction itself.
                copy = dict(pred_panoptic_seg=deepcopy(sample["pred_panoptic_seg"]))
                written = self._parse_predictions(copy, sample["img_id"], file)
            self.results.append((stat, written))

    def compute_metrics(self, results: list[tuple[PQStat, dict | None]]) -> dict[str, float]:
        """Average over the categories that occur, and log a table.

        Args:
            results: Counts and written annotation of each image, as :meth:`process` leaves them.

        Returns:
            Figures in percent by name; nan for a group of which no category occurs.
        """
        stats, written = zip(*results, strict=True)
        if self.tmp_dir is None:
            self.cat_ids = self._coco_api.get_cat_ids(cat_names=self.dataset_meta["classes"])
            self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
            self.result2json(written, self.outfile_prefix)
        logger = MMLogger.get_current_instance()
        if self.format_only:
            logger.info(f"Predictions are in {Path(self.outfile_prefix).parent}")
            return {}
        total = total_counts(stats)
        groups = pq_groups(total, self.categories)
        classwise = {
            category["name"]: pq_average(total, {i: category})
            for i, category in self.categories.items()
            if self.classwise
        }
        print_panoptic_table(groups, classwise or None, logger=logger)
        return parse_pq_results(groups)
