"""Ground truth of images, found by their names: panoptic, of instances, or of classes."""

import io
import json
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCO
from numpy.typing import NDArray
from panopticapi.utils import rgb2id
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..structures.data_samples import VOID_LABEL, paint_instances
from ..structures.panoptic import Classes, Panoptic

# What an image's name ends in, and its label map's: equal, or as in Cityscapes.
_ENDINGS = (("", ""), ("_leftImg8bit", "_gtFine_labelTrainIds"))


class GroundTruth(ABC):
    """Ground truth of some images."""

    @abstractmethod
    def __contains__(self, image: object) -> bool:
        """Whether there is ground truth of an image, by its name.

        Args:
            image: Its path or name, with or without the ending.
        """

    @abstractmethod
    def read(self, image: str | Path, size: tuple[int, int]) -> Panoptic:
        """The ground truth of an image.

        Args:
            image: Its path or name, with or without the ending.
            size: Its height and width.

        Raises:
            ValueError: There is none, it is of another size, or a class is unknown to the model.
        """


def open_ground_truth(
    path: str | Path, classes: Classes, *, reduce_zero_label: bool = False
) -> GroundTruth:
    """Ground truth in one of three forms.

    Args:
        path: A JSON file in COCO's panoptic format, its PNG files in the folder of the same name
            beside it; a JSON file of COCO instances; or a folder (with folders in it or not) of
            gray PNG files named like the images, the index of the class at each pixel and 255
            where there is none.
        classes: Classes of the model.
        reduce_zero_label: Whether label maps count classes from 1 and mean void by 0, as ADE20K's.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It holds something else.
    """
    path = Path(path)
    if path.is_dir():
        return _LabelMaps(path, classes, reduce_zero_label=reduce_zero_label)
    if not path.is_file():
        raise FileNotFoundError(f"no such ground truth: {path}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # of both decoders
        raise ValueError(f"expected {path} to be a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON of COCO: it holds no object")
    try:
        kinds = {key for entry in content["annotations"] for key in entry}
        if "segments_info" in kinds:
            return _PanopticSegments(path, content, classes)
        if "segmentation" in kinds:
            return _Instances(path, content, classes)
    except KeyError as error:
        raise ValueError(f"{path} is no JSON of COCO: it lacks {error}") from None
    raise ValueError(
        f"expected annotations with segments_info (panoptic) or segmentation (instances) in {path},"
        f" got {', '.join(sorted(kinds)) or 'none'}"
    )


def _name(image: object) -> str:
    """Name of an image, without its folder and its ending."""
    path = Path(str(image))
    return path.stem if path.suffix.lower() in IMG_EXTENSIONS else path.name


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


class _Categories:
    """Index of the model's class of each category of a file, by its name."""

    def __init__(self, path: Path, content: dict[str, Any], classes: Classes) -> None:
        self.path = path
        self.names = {category["id"]: category["name"] for category in content["categories"]}
        self.indices = {name: index for index, name in enumerate(classes.names)}

    def known(self, category: int) -> bool:
        return self.names.get(category) in self.indices

    def index(self, category: int) -> int:
        name = self.names.get(category)
        if name not in self.indices:
            what = f"category {category}" if name is None else f"{name!r}"
            raise ValueError(f"the model has no class for {what} of {self.path}")
        return self.indices[name]


class _PanopticSegments(GroundTruth):
    """COCO's panoptic format."""

    def __init__(self, path: Path, content: dict[str, Any], classes: Classes) -> None:
        images = {image["id"]: image["file_name"] for image in content["images"]}
        self.path = path
        self.annotations = {
            _name(images[annotation["image_id"]]): annotation
            for annotation in content["annotations"]
        }
        self.categories = _Categories(path, content, classes)

    def __contains__(self, image: object) -> bool:
        return _name(image) in self.annotations

    def read(self, image: str | Path, size: tuple[int, int]) -> Panoptic:
        if image not in self:
            raise ValueError(f"{self.path} has no ground truth of {_name(image)}")
        annotation = self.annotations[_name(image)]
        file = self.path.with_suffix("") / annotation["file_name"]
        if not file.is_file():
            raise ValueError(f"the ground truth of {_name(image)} is missing: {file}")
        segments = rgb2id(np.asarray(_open_png(file).convert("RGB")))
        _check_size(file, segments.shape, size)
        infos = annotation["segments_info"]
        # A crowd is drawn, but nobody knows where its objects end.
        known = [info["id"] for info in infos if not info.get("iscrowd")]
        return Panoptic(
            segments,
            {info["id"]: self.categories.index(info["category_id"]) for info in infos},
            ignore=~np.isin(segments, known),
        )


class _Instances(GroundTruth):
    """COCO's format of instances. Small ones lie on top; crowds are left out of scores."""

    def __init__(self, path: Path, content: dict[str, Any], classes: Classes) -> None:
        self.path = path
        self.coco = COCO()
        self.coco.dataset = content
        with redirect_stdout(io.StringIO()):  # it reports its progress
            self.coco.createIndex()
        self.ids = {_name(image["file_name"]): image["id"] for image in content["images"]}
        self.categories = _Categories(path, content, classes)
        if not any(map(self.categories.known, self.coco.cats)):
            raise ValueError(f"the model has no class for any category of {path}")

    def __contains__(self, image: object) -> bool:
        return _name(image) in self.ids

    def read(self, image: str | Path, size: tuple[int, int]) -> Panoptic:
        if image not in self:
            raise ValueError(f"{self.path} has no ground truth of {_name(image)}")
        number = self.ids[_name(image)]
        entry = self.coco.imgs[number]
        _check_size(f"{_name(image)} in {self.path}", (entry["height"], entry["width"]), size)
        crowds = np.zeros(size, np.bool_)
        instances: list[tuple[NDArray[np.bool_], int]] = []
        for annotation in self.coco.imgToAnns[number]:
            # As in the host's datasets, others are no part of the task.
            if self.categories.known(annotation["category_id"]):
                mask = self.coco.annToMask(annotation).astype(np.bool_)
                if annotation.get("iscrowd"):
                    crowds |= mask
                else:
                    instances.append((mask, self.categories.index(annotation["category_id"])))
        instances.sort(key=lambda instance: -instance[0].sum())
        masks = np.array([mask for mask, _ in instances], np.bool_).reshape(-1, *size)
        background = Panoptic(np.zeros(size, np.int64), {})
        painted = paint_instances(background, masks, np.array([label for _, label in instances]))
        several = False if painted.ignore is None else painted.ignore
        return replace(painted, ignore=crowds | several)


class _LabelMaps(GroundTruth):
    """A folder of label maps."""

    def __init__(self, path: Path, classes: Classes, *, reduce_zero_label: bool) -> None:
        self.path = path
        self.files = {file.stem: file for file in sorted(path.rglob("*.png"))}
        if not self.files:
            raise ValueError(f"expected label maps as PNG files in {path}, found none")
        self.number = len(classes.names)
        self.reduce_zero_label = reduce_zero_label

    def _find(self, image: object) -> Path | None:
        stem = _name(image)
        for ours, theirs in _ENDINGS:
            if stem.endswith(ours) and (file := self.files.get(stem.removesuffix(ours) + theirs)):
                return file
        return None

    def __contains__(self, image: object) -> bool:
        return self._find(image) is not None

    def read(self, image: str | Path, size: tuple[int, int]) -> Panoptic:
        file = self._find(image)
        if file is None:
            raise ValueError(f"{self.path} has no ground truth of {_name(image)}")
        png = _open_png(file)
        if len(png.getbands()) != 1:
            raise ValueError(f"expected a gray PNG file of classes in {file}, got {png.mode}")
        segments = np.asarray(png).astype(np.int64)
        _check_size(file, segments.shape, size)
        if self.reduce_zero_label:
            segments = np.where(
                (segments == 0) | (segments == VOID_LABEL), VOID_LABEL, segments - 1
            )
        labels = np.unique(segments[segments != VOID_LABEL]).tolist()
        if labels and labels[-1] >= self.number:
            raise ValueError(
                f"expected classes below {self.number} in {file}, or {VOID_LABEL} for void, got "
                f"{labels[-1]}"
            )
        return Panoptic(segments, {label: label for label in labels}, segments == VOID_LABEL)
