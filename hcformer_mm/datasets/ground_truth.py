"""Ground truth of images, looked up by name: COCO panoptic, COCO instances or label maps."""

import io
import json
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCO
from panopticapi.utils import rgb2id
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..structures.data_samples import VOID_LABEL, paint_instances
from ..structures.panoptic import Classes, Panoptic

# Endings of images and of their label maps in Cityscapes.
_IMAGE_ENDING, _MAP_ENDING = "_leftImg8bit", "_gtFine_labelTrainIds"


class GroundTruth(ABC):
    """Ground truth of a set of images, found by path or name, with or without suffix.

    Unlike a dataset of mmdet or mmseg, it needs no config and no image files.
    """

    def __init__(self, path: Path, entries: dict[str, Any]) -> None:
        self.path = path
        self._entries = entries  # by name of the image

    def __contains__(self, image: object) -> bool:
        return _name(image) in self._entries

    def read(self, image: str | Path, size: tuple[int, int]) -> Panoptic:
        """Return the segments of an image.

        Args:
            image: Path or name of the image.
            size: Height and width of the image, in pixels.

        Raises:
            ValueError: The image has no ground truth, or ground truth that cannot be read, differs
                in size, or has a class that the model lacks.
        """
        if image not in self:
            raise ValueError(f"{self.path} has no ground truth of {_name(image)}")
        return self._read(self._entries[_name(image)], size)

    @abstractmethod
    def _read(self, entry: Any, size: tuple[int, int]) -> Panoptic: ...


def open_ground_truth(
    path: str | Path, classes: Classes, *, reduce_zero_label: bool = False
) -> GroundTruth:
    """Open ground truth in any of three forms.

    Args:
        path: A COCO panoptic JSON file, its PNG files in the folder of the same name beside it; a
            COCO instance JSON file; or a folder, searched recursively, of gray PNG files named like
            the images, with class indices and 255 for void.
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
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
        raise ValueError(f"expected {path} to be a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a COCO JSON object in {path}, got a {type(content).__name__}")
    try:
        keys = {key for entry in content["annotations"] for key in entry}
        if "segments_info" in keys:
            return _PanopticSegments(path, content, classes)
        if "segmentation" in keys:
            return _Instances(path, content, classes)
    except KeyError as error:
        raise ValueError(f"expected a COCO JSON file, but {path} lacks {error}") from None
    raise ValueError(
        f"expected annotations with segments_info (panoptic) or segmentation (instances) in {path},"
        f" got {', '.join(sorted(keys)) or 'none'}"
    )


class _PanopticSegments(GroundTruth):
    """COCO's panoptic format. Void and crowds, which hide their objects' borders, are ignored."""

    def __init__(self, path: Path, content: dict[str, Any], classes: Classes) -> None:
        images = {image["id"]: image["file_name"] for image in content["images"]}
        super().__init__(path, {_name(images[a["image_id"]]): a for a in content["annotations"]})
        self._labels = _labels(content, classes)
        self._names = {category["id"]: category["name"] for category in content["categories"]}

    def _read(self, entry: dict[str, Any], size: tuple[int, int]) -> Panoptic:
        file = self.path.with_suffix("") / entry["file_name"]
        segments = rgb2id(np.asarray(_open_png(file).convert("RGB")))
        _check_size(file, segments.shape, size)
        infos = entry["segments_info"]
        for category in (info["category_id"] for info in infos):
            if category not in self._labels:
                name = self._names.get(category, "not among the categories")
                raise ValueError(
                    f"expected a class of the model for category {category} ({name}) of "
                    f"{self.path}, got none"
                )
        return Panoptic(
            segments,
            {info["id"]: self._labels[info["category_id"]] for info in infos},
            ignore=~np.isin(segments, [info["id"] for info in infos if not info.get("iscrowd")]),
        )


class _Instances(GroundTruth):
    """COCO's instances, small ones on top. Crowds and pixels of several instances are ignored."""

    def __init__(self, path: Path, content: dict[str, Any], classes: Classes) -> None:
        super().__init__(path, {_name(image["file_name"]): image for image in content["images"]})
        self._coco = COCO()
        self._coco.dataset = content
        with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self._coco.createIndex()
        self._labels = _labels(content, classes)
        if not self._labels:
            raise ValueError(f"the model has no class for any category of {path}")

    def _read(self, entry: dict[str, Any], size: tuple[int, int]) -> Panoptic:
        where = f"{entry['file_name']} in {self.path}"
        _check_size(where, (entry["height"], entry["width"]), size)
        # Like mmdet's datasets, leave out categories that the model has no class for.
        found = [a for a in self._coco.imgToAnns[entry["id"]] if a["category_id"] in self._labels]
        masks = np.array([self._coco.annToMask(a) for a in found], np.bool_).reshape(-1, *size)
        labels = np.array([self._labels[a["category_id"]] for a in found])
        crowd = np.array([bool(a.get("iscrowd")) for a in found], np.bool_)
        order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
        order = order[~crowd[order]]
        background = Panoptic(np.zeros(size, np.int64), {})
        painted = paint_instances(background, masks[order], labels[order])
        assert painted.ignore is not None
        return replace(painted, ignore=masks[crowd].any(axis=0) | painted.ignore)


class _LabelMaps(GroundTruth):
    """A folder of label maps; void is ignored."""

    def __init__(self, path: Path, classes: Classes, *, reduce_zero_label: bool) -> None:
        files = {file.stem: file for file in sorted(path.rglob("*.png"))}
        if not files:
            raise ValueError(f"expected label maps as PNG files in {path}, found none")
        cityscapes = {
            stem.removesuffix(_MAP_ENDING) + _IMAGE_ENDING: file
            for stem, file in files.items()
            if stem.endswith(_MAP_ENDING)
        }
        super().__init__(path, cityscapes | files)
        self._num_classes = len(classes.names)
        self._reduce_zero_label = reduce_zero_label

    def _read(self, entry: Path, size: tuple[int, int]) -> Panoptic:
        png = _open_png(entry)
        if len(png.getbands()) != 1:
            raise ValueError(f"expected a gray PNG file of classes in {entry}, got {png.mode}")
        segments = np.asarray(png).astype(np.int64)
        _check_size(entry, segments.shape, size)
        if self._reduce_zero_label:
            void = (segments == 0) | (segments == VOID_LABEL)
            segments = np.where(void, VOID_LABEL, segments - 1)
        labels = np.unique(segments[segments != VOID_LABEL]).tolist()
        if labels and labels[-1] >= self._num_classes:
            raise ValueError(
                f"expected classes below {self._num_classes} in {entry}, or {VOID_LABEL} for void, "
                f"got {labels[-1]}"
            )
        return Panoptic(segments, {label: label for label in labels}, segments == VOID_LABEL)


def _name(image: object) -> str:
    """Return the name of an image without folder and suffix."""
    path = Path(str(image))
    return path.stem if path.suffix.lower() in IMG_EXTENSIONS else path.name


def _labels(content: dict[str, Any], classes: Classes) -> dict[int, int]:
    """Map COCO category ids to indices of the model's classes, matched by name."""
    index = {name: i for i, name in enumerate(classes.names)}
    categories = content["categories"]
    return {one["id"]: index[one["name"]] for one in categories if one["name"] in index}


def _open_png(file: Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except OSError as error:
        raise ValueError(f"expected a PNG file, got {file}: {error}") from None


def _check_size(file: Path | str, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if tuple(found) != tuple(size):
        raise ValueError(f"expected {file} of the image's size {tuple(size)}, got {found}")
