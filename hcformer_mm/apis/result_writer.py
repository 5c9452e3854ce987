"""Results as files: images, COCO panoptic, COCO results, label maps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from panopticapi.utils import id2rgb
from PIL import Image

from ..structures.data_samples import SCORE_THR, predicted_segments
from ..structures.panoptic import Classes, Panoptic
from ..utils.atomic_write import replacing
from ..visualization import draw_panoptic
from .coco_format import encode_instances, encode_panoptic, label_map, read_coco_ids
from .inputs import InputImage, with_unique_names


class ResultWriter:
    """Writes the results of images into a folder, each kind that the model predicts.

    =============================================  ==============================================
    ``images/<name>.png``                        the segments drawn over the image
    ``panoptic.json`` and ``panoptic/<name>.png``  COCO's panoptic format
    ``instances.json``                             COCO's results of instances: masks as RLE
    ``semantic/<name>.png``                        the class of every pixel, gray, 8 or 16 bits
    ``images.json``                                which ids the images and categories have
    =============================================  ==============================================

    It is a context, at whose end the JSON files are written, unless it ends by an error. Every file
    is whole or not there.

    Args:
        out_dir: The folder; it is made. Files of the same names are replaced.
        classes: Classes of the model.
        ann_file: Annotations in COCO's format, whose ids of images (by the name of the file)
            and categories (by name) are used, so that the results can be compared with them. By
            default images are numbered as they come, and categories are the model's, from 0.
        draw: Whether images are drawn.
        score_thr: Instances below this score are not drawn, where there is no panoptic result.

    Raises:
        FileNotFoundError: There is no such ``ann_file``.
        ValueError: It is no file of COCO's, or lacks a class of the model.
    """

    def __init__(
        self,
        out_dir: str | Path,
        classes: Classes,
        *,
        ann_file: str | Path | None = None,
        draw: bool = True,
        score_thr: float = SCORE_THR,
    ) -> None:
        self.out_dir = Path(out_dir)
        if self.out_dir.exists() and not self.out_dir.is_dir():
            raise ValueError(f"expected a folder for the results, got the file {out_dir}")
        self.classes = classes
        self._ann_file = ann_file
        self._draw, self._score_thr = draw, score_thr
        self._image_ids: Mapping[str, int] | None = None
        self._category_ids: Sequence[int] = range(len(classes.names))
        if ann_file is not None:
            self._image_ids, self._category_ids = read_coco_ids(ann_file, classes)
        self._images: list[dict[str, Any]] = []
        self._panoptic: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        self._kinds: set[str] = set()

    def accept(
        self, images: list[InputImage] | Iterator[InputImage]
    ) -> list[InputImage] | Iterator[InputImage]:
        """The same images, whose results can all be written.

        Args:
            images: A list, which is checked at once; or an iterator, which is checked on the way.

        Raises:
            ValueError: Two of them have the same name, or one is not in ``ann_file``.
        """
        images = with_unique_names(images)
        if isinstance(images, list):
            for image in images:
                self._image_id(image)
        return images

    def add(self, image: InputImage, sample: BaseDataElement) -> None:
        """Write the results of an image, and keep for the end what goes into the JSON files.

        Args:
            image: The image.
            sample: What the model predicts, of the image's size.

        Raises:
            ValueError: The image is not in ``ann_file``, or there are no segments, masks or
                classes among the predictions.
        """
        image_id = self._image_id(image)
        segments = segments_of(sample, self.classes, score_thr=self._score_thr)
        height, width = segments.segments.shape
        self._images.append(
            dict(id=image_id, file_name=image.file_name, height=height, width=width)
        )
        if self._draw:
            drawn = draw_panoptic(image.read_rgb(), segments, self.classes)
            self._write_png("images", image, drawn)
        if "pred_panoptic_seg" in sample:
            self._kinds.add("panoptic")
            ids, info = encode_panoptic(segments, self._category_ids)
            self._write_png("panoptic", image, id2rgb(ids))
            self._panoptic.append(
                dict(image_id=image_id, file_name=f"{image.name}.png", segments_info=info)
            )
        if "pred_instances" in sample and "masks" in sample.pred_instances:
            self._kinds.add("instances")
            self._instances += encode_instances(sample.pred_instances, image_id, self._category_ids)
        if "pred_sem_seg" in sample:
            self._write_png("semantic", image, label_map(sample, len(self.classes.names)))

    def close(self) -> None:
        """Write the JSON files."""
        categories = [
            dict(id=i, name=name)
            for i, name in zip(self._category_ids, self.classes.names, strict=True)
        ]
        self._write_json("images", dict(images=self._images, categories=categories))
        if "panoptic" in self._kinds:
            things = [dict(isthing=int(name in self.classes.things)) for name in self.classes.names]
            panoptic = dict(
                images=self._images,
                annotations=self._panoptic,
                categories=[a | b for a, b in zip(categories, things, strict=True)],
            )
            self._write_json("panoptic", panoptic)
        if "instances" in self._kinds:
            self._write_json("instances", self._instances)

    def __enter__(self) -> "ResultWriter":
        # Those of an earlier run do not describe the images of this one.
        for name in ("images", "panoptic", "instances"):
            (self.out_dir / f"{name}.json").unlink(missing_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def _image_id(self, image: Image) -> int:
        if self._image_ids is None:
            return image.number
        if image.file_name not in self._image_ids:
            raise ValueError(
                f"expected images of {self._ann_file}, by their file names, got "
                f"{image.path or image.name}"
            )
        return self._image_ids[image.file_name]

    def _write_png(self, folder: str, image: InputImage, pixels: NDArray[Any]) -> None:
        write_image(self.out_dir / folder / f"{image.name}.png", pixels)

    def _write_json(self, name: str, content: Any) -> None:
        with replacing(self.out_dir / f"{name}.json") as path:
            path.write_text(json.dumps(content))


def segments_of(sample: BaseDataElement, classes: Classes, *, score_thr: float) -> Panoptic:
    """What is drawn of a prediction: segments, or else instances, or else classes.

    Args:
        sample: A data sample of either host.
        classes: Classes of the model.
        score_thr: Least score of instances.

    Raises:
        ValueError: There is nothing of the kind.
    """
    segments = predicted_segments(sample, classes, score_thr=score_thr)
    if segments is None:
        raise ValueError(
            "expected a model that predicts segments, masks or classes of pixels, got "
            f"{', '.join(sample.keys()) or 'nothing'}"
        )
    return segments


def write_image(path: str | Path, image: NDArray[Any]) -> None:
    """Write an image, the whole of it or nothing.

    Args:
        path: The file; its suffix says in which format.
        image: ``(H, W, 3)`` uint8 RGB, or ``(H, W)`` uint8 or uint16.

    Raises:
        ValueError: There is no format of that suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"expected a name with the suffix of an image, such as .png, got {path}")
    with replacing(path) as unfinished:
        Image.fromarray(image).save(unfinished)
