"""ClusteringMetric: scores of the clusters of every level, and error attribution."""

import math
from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from operator import itemgetter
from typing import Any, Literal

from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from mmengine.logging import MMLogger

from ...registry import METRICS
from ...structures.arrays import Labels, RGBImage
from ...structures.image_clusters import ImageClusters
from ...structures.panoptic import Panoptic
from ...utils.images import decode_image
from ..error_attribution import (
    CELLS,
    CLASSIFICATION,
    DECODING,
    GROUND_TRUTH,
    PREDICTION,
    ErrorAttribution,
    attribution_table,
    fault_table,
    level_name,
)
from ..functional.superpixels import number_of_clusters
from ..measures import MaskAP, MeanIoU, Measure, PanopticQuality
from ..measures.panoptic_faults import BELOW_THRESHOLD, Fault, fault_losses, panoptic_faults
from ..partitions import cell_map, score_partition, score_table, slic_superpixels

Task = Literal["panoptic", "instance", "semantic"]


@METRICS.register_module()
class ClusteringMetric(BaseMetric):
    """Score the clusters of every level, and split the loss of quality among the model's parts.

    Use it beside the metrics of PQ, AP or mIoU in a list of evaluators. It needs
    ``custom_hooks=[dict(type="hcformer_mm.ClusterRecordHook")]``, which adds the clusters to the
    predictions. Results are in percent except for numbers of clusters; ``docs/look_inside.md``
    explains them:

    - ``<partition>/<score>`` for the partitions ``cells``, ``level_1``, …, ``slic_1``, …:
      ``clusters``, ``UE``, ``UE_Levin``, ``ASA``, ``boundary_recall``, ``boundary_precision``,
      ``compactness`` and ``explained_variation``, each averaged over the images that define it; see
      :mod:`~hcformer_mm.evaluation.functional.superpixels`.
    - ``<partition>/<figure>``: quality of oracle labels on the partition; ``ground_truth/<figure>``
      and ``prediction/<figure>``: quality of the ground truth itself and of the model. Figures are
      PQ, PQ_th and PQ_st of panoptic, AP of instance and mIoU of semantic ground truth.
    - ``blame/<figure>/<part>`` for the parts ``stem``, ``level_1``, …, ``classification``, and for
      ``decoding``, the sum of all but the last; see
      :class:`~hcformer_mm.evaluation.ErrorAttribution`.
    - ``blame/<figure>/classification/<kind>`` for PQ, PQ_th and PQ_st, and for the kinds of fault
      of :mod:`~hcformer_mm.evaluation.measures.panoptic_faults`. ``below_threshold`` needs
      ``candidates_on=True`` in the model's ``test_cfg``.

    Args:
        ground_truth: ``'panoptic'`` reads ``ann_file`` and ``seg_prefix``, and reports mIoU as well
            if the samples have semantic ground truth and predictions. ``'instance'`` reads
            ``ann_file``. ``'semantic'`` reads ``gt_sem_seg`` of the samples.
        ann_file: Annotations in COCO's format, as mmdet's metrics read them.
        seg_prefix: Folder of the PNG files of panoptic annotations.
        ignore_index: Void of semantic ground truth; by default 255, or 65535 of more than 255
            classes.
        tolerance: Tolerance of boundaries in pixels; by default 0.0025 of the diagonal.
        slic: Whether to score SLIC superpixels too, about as many per image as each level has
            clusters; ``slic_1/clusters`` and so on are their actual numbers.
        backend_args: MMEngine's options for reading files.
        collect_device: ``'cpu'`` or ``'gpu'``, over which processes collect results.
        prefix: First part of the result names; ``'clusters'`` by default.

    Raises:
        ValueError: ``ground_truth`` is unknown, lacks its files, or has files that it does not use.
    """

    default_prefix = "clusters"

    def __init__(
        self,
        ground_truth: Task,
        *,
        ann_file: str | None = None,
        seg_prefix: str | None = None,
        ignore_index: int | None = None,
        tolerance: int | None = None,
        slic: bool = False,
        backend_args: dict[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        needed = {"panoptic": ("ann_file", "seg_prefix"), "instance": ("ann_file",), "semantic": ()}
        if ground_truth not in needed:
            raise ValueError(f"expected ground_truth among {sorted(needed)}, got {ground_truth!r}")
        given = dict(ann_file=ann_file, seg_prefix=seg_prefix)
        for name, value in given.items():
            if (value is not None) != (name in needed[ground_truth]):
                raise ValueError(
                    f"expected {' and '.join(needed[ground_truth]) or 'no files'} with "
                    f"ground_truth={ground_truth!r}, got {name}={value!r}"
                )
        self.ground_truth = ground_truth
        self.ann_file = ann_file
        self.seg_prefix = seg_prefix
        self.ignore_index = ignore_index
        self.tolerance = tolerance
        self.slic = slic
        self.backend_args = backend_args
        self._measures: list[Measure] = []
        self._blame: list[tuple[str, list[Fault], dict[str, float]]] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Score the images of a batch.

        Args:
            data_batch: Unused.
            data_samples: Predictions with ``clusters`` and ``img_path``.

        Raises:
            ValueError: Clusters, ground truth or prediction are missing, or their sizes differ.
        """
        for sample in data_samples:
            clusters = sample.get("clusters")
            if not isinstance(clusters, ImageClusters):
                raise ValueError(
                    "expected clusters in the predictions, got none; add "
                    'dict(type="hcformer_mm.ClusterRecordHook") to custom_hooks'
                )
            self.results.append(self._score(sample, clusters))

    def _score(self, sample: dict[str, Any], clusters: ImageClusters) -> dict[str, Any]:
        """Compute scores and counts of one image."""
        self._measures = measures = self._measures or self._choose_measures(sample)
        truths = [measure.truth(sample) for measure in measures]
        content = get(sample["img_path"], backend_args=self.backend_args)
        image = decode_image(content, sample["img_path"])[..., ::-1]
        for name, array in (
            *(("ground truth", truth.segments) for truth in truths),
            ("pixels", image[..., 0]),
        ):
            if array.shape != clusters.image_size:
                raise ValueError(
                    f"expected {name} of the original size {clusters.image_size} of "
                    f"{sample['img_path']}, got {array.shape}; load annotations after resizing"
                )
        counts: list[dict[str, Any]] = [
            {
                GROUND_TRUTH: measure.count(measure.perfect(truth), truth),
                PREDICTION: measure.count(measure.predicted(sample), truth),
            }
            for measure, truth in zip(measures, truths, strict=True)
        ]
        scores, coarsest = {}, level_name(clusters.num_levels)
        faults: list[Fault] = []
        for name, labels in self._partitions(clusters, image):
            scores[name] = score_partition(labels, truths[0], image, tolerance=self.tolerance)
            for measure, truth, stages in zip(measures, truths, counts, strict=True):
                stages[name] = measure.count(measure.oracle(truth, labels), truth)
            if name == coarsest and isinstance(measures[0], PanopticQuality):
                segmentations = measures[0].predicted(sample), measures[0].oracle(truths[0], labels)
                candidates = measures[0].candidates(sample)
                faults = panoptic_faults(*segmentations, truths[0], candidates)
        return dict(
            path=sample["img_path"],
            levels=clusters.num_levels,
            scores=scores,
            counts=counts,
            faults=faults,
            has_candidates="pred_candidate_seg" in sample,
        )

    def _partitions(self, clusters: ImageClusters, image: RGBImage) -> Iterator[tuple[str, Labels]]:
        """Yield the name and the label map of every partition to score."""
        yield CELLS, cell_map(clusters)
        for level, labels in enumerate(clusters.labels(), start=1):
            yield level_name(level), labels.cpu().numpy()
            if self.slic:
                yield f"slic_{level}", slic_superpixels(image, number_of_clusters(labels))

    def segments(self, sample: dict[str, Any]) -> tuple[Panoptic, Panoptic]:
        """Return true and predicted segments of a sample, after an evaluation of panoptic ones."""
        measure = self._measures[0]
        assert isinstance(measure, PanopticQuality)
        truth = measure.truth(sample)
        predicted = measure.panoptic(measure.predicted(sample))
        return measure.panoptic((truth.segments, truth.categories)), predicted

    def worst_images(self, number: int) -> dict[str, list[tuple[str, float, list[Fault]]]]:
        """Return the images of the last evaluation that lose most PQ by each kind of fault.

        Args:
            number: Maximum number of images of each kind.

        Returns:
            By kind, the path, the loss in percent and the faults of images, largest loss first;
            empty without panoptic ground truth.
        """
        worst = {}
        for kind in self._blame[0][2] if self._blame else ():
            images = [
                (path, losses[kind], [fault for fault in faults if fault.kind == kind])
                for path, faults, losses in self._blame
                if losses[kind] > 0
            ]
            worst[kind] = nlargest(number, images, key=itemgetter(1))
        return worst

    def _choose_measures(self, sample: dict[str, Any]) -> list[Measure]:
        """Choose quality measures; clusters are compared with the ground truth of the first."""
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise ValueError("expected classes in the metainfo of the dataset, got none")
        files = dict(backend_args=self.backend_args)
        semantic = MeanIoU(len(classes), ignore_index=self.ignore_index)
        if self.ground_truth == "semantic":
            return [semantic]
        if self.ground_truth == "instance":
            return [MaskAP(str(self.ann_file), classes, **files)]
        panoptic = PanopticQuality(str(self.ann_file), str(self.seg_prefix), classes, **files)
        return [panoptic, semantic] if MeanIoU.found_in(sample) else [panoptic]

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Average the scores, compute the figures of all stages, and log both as tables.

        Args:
            results: Scores and counts of each image, as :meth:`process` leaves them.

        Returns:
            Scores and figures by name.
        """
        if not results:
            return {}
        metrics = {
            f"{partition}/{score}": _mean(image["scores"][partition][score] for image in results)
            for partition, scores in results[0]["scores"].items()
            for score in scores
        }
        levels = [level_name(level + 1) for level in range(results[0]["levels"])]
        attributions, self._blame = [], []
        for index, measure in enumerate(self._measures):
            counts = {
                stage: [image["counts"][index][stage] for image in results]
                for stage in results[0]["counts"][index]
            }
            figures = {stage: measure.figures(given) for stage, given in counts.items()}
            for name in measure.names:
                if any(name not in values for values in figures.values()):
                    continue  # the ground truth does not define it
                reached = {stage: values[name] for stage, values in figures.items()}
                metrics |= {f"{stage}/{name}": value for stage, value in reached.items()}
                stages = {s: reached[s] for s in (GROUND_TRUTH, CELLS, *levels, PREDICTION)}
                faults: dict[str, float] = {}
                if isinstance(measure, PanopticQuality):
                    images = [image["faults"] for image in results]
                    around = counts[PREDICTION], counts[levels[-1]]
                    losses = fault_losses(images, *around, measure.groups[name])
                    if not results[0]["has_candidates"]:
                        for one in losses:
                            del one[BELOW_THRESHOLD]
                    faults = {kind: math.fsum(one[kind] for one in losses) for kind in losses[0]}
                    if name == measure.names[0]:
                        paths = (image["path"] for image in results)
                        self._blame = list(zip(paths, images, losses, strict=True))
                attributions.append(ErrorAttribution(name, stages, faults))
        for attribution in attributions:
            parts = {**attribution.shares, DECODING: attribution.decoding}
            parts |= {f"{CLASSIFICATION}/{kind}": loss for kind, loss in attribution.faults.items()}
            metrics |= {f"blame/{attribution.figure}/{part}": loss for part, loss in parts.items()}
        logger = MMLogger.get_current_instance()
        logger.info("Clusters, in percent except for their number:\n%s", score_table(metrics))
        if attributions:
            logger.info("Loss of each part, in percent:\n%s", attribution_table(attributions))
        if any(attribution.faults for attribution in attributions):
            table = fault_table(attributions)
            logger.info("Loss by kind of fault, in percent:\n%s", table)
        main = {measure.names[0] for measure in self._measures}
        for attribution in attributions:
            if attribution.figure in main:
                logger.info(str(attribution))
        return metrics


def _mean(values: Iterable[float]) -> float:
    """Mean of the values that are not nan; nan if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else float("nan")
