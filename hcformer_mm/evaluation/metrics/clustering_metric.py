"""ClusteringMetric: scores of the clusters of every level, and what each part of a model loses."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import mmcv
import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from mmengine.logging import MMLogger
from numpy.typing import NDArray

from ...registry import METRICS
from ...structures.image_clusters import ImageClusters
from ..cluster_tables import blame_table, pieces_table
from ..error_attribution import CELLS, DECODING, GROUND_TRUTH, PREDICTION, Blame, level_name
from ..functional.superpixels import number_of_clusters
from ..measures import MaskAP, MeanIoU, Measure, PanopticQuality
from ..pieces import cell_map, score_clusters, slic_superpixels

GroundTruth = Literal["panoptic", "instance", "semantic"]


@METRICS.register_module()
class ClusteringMetric(BaseMetric):
    """Score the clusters of every level, and split the loss of quality among the model's parts.

    It stands beside PQ, AP and mIoU in a list of evaluators, and needs
    ``custom_hooks=[dict(type="hcformer_mm.ClusterRecordHook")]``, which leaves the clusters in the
    predictions. ``docs/look_inside.md`` says what the figures mean; all but numbers of clusters are
    in percent:

    - ``<pieces>/<score>`` for the pieces ``cells``, ``level_1``, …, ``slic_1``, …: ``clusters``,
      ``UE``, ``UE_Levin``, ``ASA``, ``boundary_recall``, ``boundary_precision``, ``compactness``
      and ``explained_variation`` (see :mod:`~hcformer_mm.evaluation.functional.superpixels`), the mean over the
      images in which they are defined.
    - ``<pieces>/<figure>``: what an oracle reaches that names the pieces; ``ground_truth/<figure>``
      and ``prediction/<figure>``: the ground truth itself, and the model. Figures are PQ, PQ_th and
      PQ_st of panoptic, AP of instance and mIoU of semantic ground truth.
    - ``blame/<figure>/<part>`` for the parts ``stem``, ``level_1``, …, ``classification``, and for
      ``decoding``, the sum of all but the last; see :class:`~hcformer_mm.evaluation.Blame`.

    Args:
        ground_truth: ``'panoptic'``: from ``ann_file`` and ``seg_prefix``; mIoU as well, if the
            samples have semantic ground truth and predictions. ``'instance'``: from ``ann_file``.
            ``'semantic'``: from ``gt_sem_seg`` of the samples.
        ann_file: Annotations in COCO's format, as the host's metric reads them.
        seg_prefix: Folder of the PNG files of panoptic annotations.
        ignore_index: Void of semantic ground truth.
        tolerance: Of boundaries, in pixels; by default 0.0025 of the diagonal.
        slic: Whether superpixels of SLIC, about as many in each image as a level has clusters
            there, are scored like the levels; ``slic_1/clusters`` says how many they are.
        backend_args: How files are read, as everywhere in MMEngine.
        collect_device: ``'cpu'`` or ``'gpu'``, over which processes collect results.
        prefix: First part of the names of the results; ``'clusters'`` by default.

    Raises:
        ValueError: There is no such ground truth, or a file is missing that it needs.
    """

    default_prefix = "clusters"

    def __init__(
        self,
        ground_truth: GroundTruth,
        *,
        ann_file: str | None = None,
        seg_prefix: str | None = None,
        ignore_index: int = 255,
        tolerance: int | None = None,
        slic: bool = False,
        backend_args: dict[str, Any] | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        needed = {"panoptic": ("ann_file", "seg_prefix"), "instance": ("ann_file",), "semantic": ()}
        if ground_truth not in needed:
            raise ValueError(f"expected ground_truth of {sorted(needed)}, got {ground_truth!r}")
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

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Score the images of a batch.

        Args:
            data_batch: Not read.
            data_samples: Predictions with ``clusters`` and ``img_path``.

        Raises:
            ValueError: Clusters, ground truth or prediction are missing, or of different sizes.
        """
        for sample in data_samples:
            clusters = sample.get("clusters")
            if not isinstance(clusters, ImageClusters):
                raise ValueError(
                    "expected predictions with their clusters, got none; add "
                    'dict(type="hcformer_mm.ClusterRecordHook") to custom_hooks'
                )
            self.results.append(self._score(sample, clusters))

    def _score(self, sample: dict[str, Any], clusters: ImageClusters) -> dict[str, Any]:
        """Scores and counts of an image."""
        self._measures = measures = self._measures or self._choose_measures(sample)
        truths = [measure.truth(sample) for measure in measures]
        content = get(sample["img_path"], backend_args=self.backend_args)
        image = mmcv.imfrombytes(content, flag="color", channel_order="rgb")
        for what, array in (
            *(("ground truth", truth.segments) for truth in truths),
            ("pixels", image[..., 0]),
        ):
            if array.shape != clusters.image_size:
                raise ValueError(
                    f"expected {what} of the size {clusters.image_size} that {sample['img_path']} "
                    f"was given in, got {array.shape}; load annotations after the resizing"
                )
        scores: dict[str, dict[str, float]] = {}
        counts: list[dict[str, Any]] = [
            {
                GROUND_TRUTH: measure.count(measure.perfect(truth), truth),
                PREDICTION: measure.count(measure.predicted(sample), truth),
            }
            for measure, truth in zip(measures, truths, strict=True)
        ]
        for name, labels in self._pieces(clusters, image):
            scores[name] = score_clusters(labels, truths[0], image, tolerance=self.tolerance)
            for measure, truth, stages in zip(measures, truths, counts, strict=True):
                stages[name] = measure.count(measure.oracle(truth, labels), truth)
        return dict(levels=clusters.num_levels, scores=scores, counts=counts)

    def _pieces(
        self, clusters: ImageClusters, image: NDArray[np.uint8]
    ) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Names and label maps of all that is scored."""
        yield CELLS, cell_map(clusters)
        for level, labels in enumerate(clusters.labels(), start=1):
            yield level_name(level), labels.cpu().numpy()
            if self.slic:
                number = number_of_clusters(labels)
                yield f"slic_{level}", slic_superpixels(image, number)

    def _choose_measures(self, sample: dict[str, Any]) -> list[Measure]:
        """Measures of quality, the one whose ground truth clusters are compared with first."""
        classes = (self.dataset_meta or {}).get("classes")
        if not classes:
            raise ValueError("expected a dataset whose metainfo names classes, got none")
        files = dict(backend_args=self.backend_args)
        semantic = MeanIoU(len(classes), ignore_index=self.ignore_index)
        if self.ground_truth == "semantic":
            return [semantic]
        if self.ground_truth == "instance":
            return [MaskAP(str(self.ann_file), classes, **files)]
        panoptic = PanopticQuality(str(self.ann_file), str(self.seg_prefix), classes, **files)
        return [panoptic, semantic] if MeanIoU.found_in(sample) else [panoptic]

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Scores of the dataset, and the tables of the log.

        Args:
            results: What :meth:`process` left of each image.

        Returns:
            Scores and figures by name.
        """
        if not results:
            return {}
        metrics = {
            f"{piece}/{score}": _mean(image["scores"][piece][score] for image in results)
            for piece, scores in results[0]["scores"].items()
            for score in scores
        }
        blames = []
        for index, measure in enumerate(self._measures):
            stages = results[0]["counts"][index]
            figures = {
                stage: measure.figures([image["counts"][index][stage] for image in results])
                for stage in stages
            }
            for name in measure.names:
                if any(name not in values for values in figures.values()):
                    continue  # no ground truth defines it
                metrics |= {f"{stage}/{name}": figures[stage][name] for stage in stages}
                blames.append(_blame(name, figures, results[0]["levels"]))
        for blame in blames:
            parts = {**blame.shares, DECODING: blame.decoding}
            metrics |= {f"blame/{blame.figure}/{part}": loss for part, loss in parts.items()}
        logger = MMLogger.get_current_instance()
        logger.info("Clusters, in percent but for their number:\n%s", pieces_table(metrics))
        if blames:
            logger.info("What is lost where, in percent:\n%s", blame_table(blames))
            main = {measure.names[0] for measure in self._measures}
            for blame in blames:
                if blame.figure in main:
                    logger.info(str(blame))
        return metrics


def _blame(name: str, figures: Mapping[str, Mapping[str, float]], levels: int) -> Blame:
    """The stages of one figure in their order."""
    stages = (GROUND_TRUTH, CELLS, *map(level_name, range(1, levels + 1)), PREDICTION)
    return Blame(name, {stage: figures[stage][name] for stage in stages})


def _mean(values: Iterable[float]) -> float:
    """Mean of the values that are defined; nan if none is."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else float("nan")
