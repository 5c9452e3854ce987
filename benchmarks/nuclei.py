"""Score a model of nuclei, or Otsu's threshold and a watershed, with the same evaluators.

The classical method segments the nuclei of an image by the hematoxylin of its stain, splits those
that touch, and gives each the class of most of the similar regions of the training tiles, or none.
The threshold is the upper one of Otsu's for three classes. Of all settings tried, these have the
highest PQ on the validation tiles themselves, which favors the method. PQ is reported with the
classes and with one class for all things (`class_agnostic`).
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import hcformer_mm.utils.threads  # noqa: F401

import numpy as np
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from numpy.typing import NDArray
from panopticapi.evaluation import VOID
from panopticapi.utils import rgb2id
from PIL import Image
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from scipy.spatial import KDTree
from skimage import measure
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_multiotsu
from skimage.morphology import disk, opening
from skimage.segmentation import watershed

from hcformer_mm.engine.run_checks.lookup import is_named
from hcformer_mm.engine.runner import build_runner
from hcformer_mm.evaluation.metrics import CocoPanopticMetric
from hcformer_mm.registry import METRICS, MODELS
from hcformer_mm.utils.arguments import add_cfg_options
from hcformer_mm.utils.config import read_config
from hcformer_mm.utils.errors import InputError

# In pixels of the tiles, where the diameter of a nucleus is about 60.
STAIN_SIGMA, DEPTH_SIGMA, OPENING, LEAST_AREA, LEAST_DISTANCE = 4.0, 6.0, 6, 400, 32
NEIGHBORS = 5
TRAINING_STEP = 4  # Training tiles overlap, so some are enough.


@METRICS.register_module()
class ClassAgnosticPanopticMetric(CocoPanopticMetric):
    """PQ with one class for all things."""

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        super().process(data_batch, [])  # makes the measure
        things = [i for i, category in self._coco_api.cats.items() if category["isthing"]]
        merged = dict.fromkeys(things, things[0])
        for sample in data_samples:
            segments, found = self._measure.predicted(sample)
            truth = self._measure.truth(sample)
            infos = {
                i: info | {"category_id": merged.get(info["category_id"], info["category_id"])}
                for i, info in truth.infos.items()
            }
            categories = {i: merged.get(one, one) for i, one in found.items()}
            stat = self._measure.count((segments, categories), replace(truth, infos=infos))
            self.results.append((stat, None))


@MODELS.register_module()
class OtsuWatershed(BaseModel):
    """Otsu's threshold, a watershed and nearest neighbors, as a model of MMEngine.

    Args:
        dataset: Config of the training set, a ``CocoPanopticDataset``.
    """

    def __init__(self, dataset: Mapping[str, Any]) -> None:
        super().__init__()
        data = DATASETS.build({**dataset, "pipeline": [], "test_mode": True})
        infos = [data.get_data_info(index) for index in range(0, len(data), TRAINING_STEP)]
        self.num_things = len(data.metainfo["thing_classes"])
        levels = np.stack([read(info["img_path"])[1][::8, ::8] for info in infos])
        self.threshold = threshold_multiotsu(levels)[-1]
        features, labels = [], []
        for info in infos:
            classes = true_classes(info, self.num_things)
            for region, described in self.regions(info["img_path"]):
                # Most of the region is of this class, of no nucleus, or void.
                label = np.bincount(1 + classes[tuple(region.coords.T)]).argmax() - 1
                if label >= 0:
                    features.append(described)
                    labels.append(label)
        self.mean, self.std = np.mean(features, axis=0), np.std(features, axis=0)
        self.tree = KDTree((np.stack(features) - self.mean) / self.std)
        self.labels = np.asarray(labels)

    def regions(self, path: str) -> Iterator[tuple[Any, NDArray[np.float64]]]:
        """Yield the regions of an image, and numbers that describe each."""
        image, stain = read(path)
        inside = binary_fill_holes(opening(stain > self.threshold, disk(OPENING)))
        parts = measure.label(inside, connectivity=1)
        inside &= np.bincount(parts.ravel())[parts] > LEAST_AREA
        depth = gaussian(distance_transform_edt(inside), DEPTH_SIGMA)
        peaks = peak_local_max(
            depth, min_distance=LEAST_DISTANCE, labels=inside.astype(int), exclude_border=False
        )
        markers = np.zeros(inside.shape, np.int64)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        for region in measure.regionprops(watershed(-depth, markers, mask=inside)):
            colors = image[tuple(region.coords.T)]
            shape = [np.log(region.area), region.eccentricity]
            yield region, np.concatenate([shape, colors.mean(axis=0), colors.std(axis=0)])

    def forward(
        self, inputs: Any, data_samples: Sequence[DetDataSample], mode: str = "predict"
    ) -> list[DetDataSample]:
        return [self.segment(sample) for sample in data_samples]

    def segment(self, sample: DetDataSample) -> DetDataSample:
        """Add the predictions of an image, which is read from its file."""
        # All but nuclei is the first class of stuff, tissue.
        panoptic = np.full(sample.ori_shape, self.num_things)
        masks, labels, scores = [], [], []
        for region, described in self.regions(sample.img_path):
            point = (described - self.mean) / self.std
            _, nearest = self.tree.query(point, k=range(1, NEIGHBORS + 1))
            votes = np.bincount(self.labels[nearest])
            if (label := votes.argmax()) < self.num_things:
                mask = np.zeros(sample.ori_shape, bool)
                mask[tuple(region.coords.T)] = True
                panoptic[mask] = label + INSTANCE_OFFSET * region.label
                masks.append(mask)
                labels.append(label)
                scores.append(votes[label] / NEIGHBORS)
        sample.pred_panoptic_seg = PixelData(sem_seg=torch.from_numpy(panoptic)[None])
        sample.pred_sem_seg = PixelData(sem_seg=torch.from_numpy(panoptic % INSTANCE_OFFSET)[None])
        sample.pred_instances = InstanceData(
            masks=torch.from_numpy(np.reshape(masks, (-1, *sample.ori_shape)).astype(bool)),
            labels=torch.tensor(labels, dtype=torch.long),
            scores=torch.tensor(scores, dtype=torch.float),
            bboxes=torch.zeros(len(masks), 4),
        )
        return sample


def read(path: str) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return an image and its smoothed hematoxylin."""
    image = np.asarray(Image.open(path).convert("RGB"))
    return image, gaussian(rgb2hed(image)[..., 0], STAIN_SIGMA)


def true_classes(info: Mapping[str, Any], num_things: int) -> NDArray[np.int64]:
    """Class of each pixel of a training image; all stuff is one more class, and void is -1."""
    ids = rgb2id(np.asarray(Image.open(info["seg_map_path"])))
    things = {one["id"]: one["category"] for one in info["segments_info"] if one["is_thing"]}
    classes = np.where(ids == VOID, -1, num_things)
    for number, label in things.items():
        classes[ids == number] = label
    return classes


def evaluate(args: argparse.Namespace) -> None:
    config = read_config(args.config, args.cfg_options)
    config.work_dir = args.work_dir
    config.load_from = args.checkpoint
    if args.checkpoint is None:
        config.model = dict(
            type="hcformer_mm.OtsuWatershed", dataset=config.train_dataloader.dataset
        )
    (panoptic,) = (one for one in config.test_evaluator if is_named(one, "CocoPanopticMetric"))
    agnostic = {
        **panoptic,
        "type": "hcformer_mm.ClassAgnosticPanopticMetric",
        "prefix": "class_agnostic",
    }
    config.test_evaluator = [*config.test_evaluator, agnostic]
    build_runner(config, ["test"]).test()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config of a model of nuclei, which names the data")
    parser.add_argument(
        "checkpoint", nargs="?", help="checkpoint of the model; by default the watershed is scored"
    )
    parser.add_argument("--work-dir", default="work_dirs/nuclei", help="folder for logs")
    add_cfg_options(parser)
    try:
        evaluate(parser.parse_args())
    except (InputError, OSError) as error:
        sys.exit(f"nuclei: {error}")


if __name__ == "__main__":
    main()
