"""Ground truth of images, looked up by path: COCO panoptic, COCO instances or label maps."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..evaluation.functional.coco_masks import encode_annotation
from ..structures.data_samples import paint_instances, void_label
from ..structures.panoptic import Classes, Panoptic
from ..utils.errors import some
from ..utils.path_index import PathIndex
from .checks.coco import read_coco, require_keys
from .checks.panoptic import read_segments
from .transforms import LoadSemanticAnnotations, check_size

# Endings of images and of their label maps in Cityscapes.
_IMAGE_ENDING, _MAP_ENDING = "_leftImg8bit", "_gtFine_labelTrainIds"


class GroundTruth(ABC):
    """Ground truth of a set of images, found by path or name, with or without suffix.

    Unlike a dataset of mmdet or mmseg, it needs no config and no image files. An image in another
    folder than its entry is found by its name, provided that the name is unique; see
    :class:`~hcformer_mm.utils.path_index.PathIndex`.
    """

    def __init__(self, path: Path, entries: Iterable[tuple[str | PurePath, Any]]) -> None:
        self.path = path
        self._entries = PathIndex(entries, path, _name)  # by path of the image

    def check(self, images: Iterable[str | Path]) -> None:
        """Check that each of several images has ground truth of its own.

        Raises:
            ValueError: Images have no ground truth, or the same.
        """
        found = {str(image): self._entries.find(image) for image in images}
        missing = [Path(image).name for image, entry in found.items() if entry is None]
        if missing:
            raise ValueError(f"{self.path} has no ground truth of {some(missing, 3)}")
        users: dict[int, str] = {}
        for image, entry in found.items():
            if (other := users.setdefault(id(entry), image)) != image:
                raise ValueError(
                    f"expected ground truth of its own for each image in {self.path}, got one for "
                    f"{other} and {image}; name images there by the folders that tell them apart"
                )

    def read(self, image: str | Path, size: tuple[int, int]) -> Panoptic:
        """Return the segments of an image.

        Args:
            image: Path or name of the image.
            size: Height and width of the image, in pixels.

        Raises:
            ValueError: The image has no ground truth, or that of several images fits it; or its
                ground truth cannot be read, differs in size, or has a class that the model lacks.
        """
        entry = self._entries.find(image)
        if entry is None:
            raise ValueError(f"{self.path} has no ground truth of {image}")
        return self._read(entry, size)

    @abstractmethod
    def _read(self, entry: Any, size: tuple[int, int]) -> Panoptic: ...


def open_ground_truth(
    path: str | Path, classes: Classes, *, reduce_zero_label: bool = False
) -> GroundTruth:
    """Open ground truth in any of three forms.

    Args:
        path: A COCO panoptic JSON file, its PNG files in the folder of the same name beside it; a
            COCO instance JSON file; or a folder, searched recursively, of gray PNG files named like
            the images, with class indices. Void is 65535, and 255 unless there are more classes.
        classes: Classes of the model.
        reduce_zero_label: Whether label maps count classes from 1 and use 0 for void, as ADE20K's.

    Raises:
        FileNotFoundError: No such file or folder.
        ValueError: The file or folder has none of these forms.
    """
    path = Path(path)
    if path.is_dir():
        return _LabelMaps(path, classes, reduce_zero_label=reduce_zero_label)
    if not path.is_file():
        raise FileNotFoundError(f"no such ground truth: {path}")
    content = read_coco(path)
    keys = {key for entry in content["annotations"] for key in entry}
    if "segments_info" in keys:
        require_keys(content, path, "annotations", ("file_name", "segments_info"))
        return _PanopticSegments(path, content, classes)
    if "segmentation" in keys:
        require_keys(content, path, "annotations", ("category_id",))
        return _Instances(path, content, classes)
    raise ValueError(
        f"expected annotations with segments_info (panoptic) or segmentation (instances) in {path},"
        f" got {', '.join(sorted(keys)) or 'none'}"
    )


class _PanopticSegments(GroundTruth):
    """COCO's panoptic format. Void and crowds, which hide their objects' borders, are ignored."""

    def __init__(self, path: Path, content: dict[str, Any], classes: Classes) -> None:
        images = _images(path, content)
        super().__init__(path, ((images[a["image_id"]], a) for a in content["annotations"]))
        self._labels = _labels(content, classes)
        self._names = {category["id"]: category["name"] for category in content["categories"]}

    def _read(self, entry: dict[str, Any], size: tuple[int, int]) -> Panoptic:
        file = self.path.with_suffix("") / entry["file_name"]
        segments = read_segments(file)
        check_size(str(file), segments.shape, size)
        require_keys(entry, self.path, "segments_info", ("id", "category_id"))
        infos = entry["segments_info"]
        for category in (info["category_id"] for info in infos):
            if category not in self._labels:
                name = self._names.get(category, "not among the categories")
                raise ValueError(
                    f"expected a class of the model for category {category} ({name}) of "
                    f"{self.path}, got none"
                )
        found = set(np.unique(segments).tolist())
        missing = [info["id"] for info in infos if info["id"] not in found]
        if missing:
            raise ValueError(
                f"expected segment {missing[0]} of {self.path} in {file}, whose colors are ids "
                f"(red + 256 · green + 65536 · blue), got {sorted(found)[:4]} and "
                f"{max(0, len(found) - 4)} others"
            )
        return Panoptic(
            segments,
            {info["id"]: self._labels[info["category_id"]] for info in infos},
            ignore=~np.isin(segments, [info["id"] for info in infos if not info.get("iscrowd")]),
        )


class _Instances(GroundTruth):
    """COCO's instances, small ones on top. Crowds and pixels of several instances are ignored."""

    def __init__(self, path: Path, content: dict[str, Any], classes: Classes) -> None:
        _images(path, content)
        super().__init__(path, ((image["file_name"], image) for image in content["images"]))
        self._labels = _labels(content, classes)
        if not self._labels:
            raise ValueError(f"the model has no class for any category of {path}")
        self._annotations = defaultdict(list)
        for one in content["annotations"]:
            # Like mmdet's datasets, leave out categories that the model has no class for.
            if one["category_id"] in self._labels:
                self._annotations[one["image_id"]].append(one)

    def _read(self, entry: dict[str, Any], size: tuple[int, int]) -> Panoptic:
        where = f"{entry['file_name']} in {self.path}"
        check_size(where, (entry["height"], entry["width"]), size)
        found = self._annotations[entry["id"]]
        try:
            encoded = [encode_annotation(one, size) for one in found]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        masks = np.array([coco_mask.decode(one) for one in encoded], np.bool_).reshape(-1, *size)
        labels = np.array([self._labels[one["category_id"]] for one in found])
        crowd = np.array([bool(one.get("iscrowd")) for one in found], np.bool_)
        order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
        order = order[~crowd[order]]
        background = Panoptic(np.zeros(size, np.int64), {})
        painted = paint_instances(background, masks[order], labels[order])
        assert painted.ignore is not None
        return replace(painted, ignore=masks[crowd].any(axis=0) | painted.ignore)


class _LabelMaps(GroundTruth):
    """A folder of label maps; void is ignored."""

    def __init__(self, path: Path, classes: Classes, *, reduce_zero_label: bool) -> None:
        files = sorted(path.rglob("*.png"))
        if not files:
            raise ValueError(f"expected label maps as PNG files in {path}, found none")
        cityscapes = (
            (file.with_stem(file.stem.removesuffix(_MAP_ENDING) + _IMAGE_ENDING), file)
            for file in files
            if file.stem.endswith(_MAP_ENDING)
        )
        super().__init__(path, (*cityscapes, *((file, file) for file in files)))
        self._void = void_label(len(classes.names))
        self._reduce_zero_label = reduce_zero_label
        self._load = LoadSemanticAnnotations(num_classes=len(classes.names))

    def _read(self, entry: Path, size: tuple[int, int]) -> Panoptic:
        sample = dict(
            seg_map_path=str(entry),
            ori_shape=size,
            reduce_zero_label=self._reduce_zero_label,
            seg_fields=[],
        )
        segments = self._load.transform(sample)["gt_seg_map"].astype(np.int64)
        void = segments == self._void
        return Panoptic(segments, {i: i for i in np.unique(segments[~void]).tolist()}, void)


def _name(image: PurePath) -> str:
    """Return the name of an image without folder and suffix."""
    return image.stem if image.suffix.lower() in IMG_EXTENSIONS else image.name


def _images(path: Path, content: dict[str, Any]) -> dict[Any, str]:
    """Return file names by id; raise a ValueError if an annotation is of another image."""
    images = {image["id"]: image["file_name"] for image in content["images"]}
    lost = {one["image_id"] for one in content["annotations"]} - images.keys()
    if lost:
        raise ValueError(
            f"expected annotations of the images of {path} alone, got some of the image ids "
            f"{sorted(lost, key=str)[:3]}"
        )
    return images


def _labels(content: dict[str, Any], classes: Classes) -> dict[int, int]:
    """Map COCO category ids to indices of the model's classes, matched by name."""
    index = {name: i for i, name in enumerate(classes.names)}
    categories = content["categories"]
    return {one["id"]: index[one["name"]] for one in categories if one["name"] in index}
