"""ResultWriter: write drawings, tables, COCO panoptic and instance results, and label maps."""

import csv
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any, TextIO

from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from panopticapi.utils import id2rgb
from PIL import Image

from ..structures.data_samples import SCORE_THR, check_score_thr, predicted_segments
from ..structures.panoptic import Classes, Panoptic
from ..utils.atomic_write import replacing, temporary
from ..utils.path_index import PathIndex
from ..utils.strict_json import dumps
from ..visualization import PLAIN, FigureStyle, draw_figure
from .coco_format import encode_instances, encode_panoptic, label_map, read_coco_ids
from .inputs import InputImage, RefusedImage, with_unique_names
from .object_table import COLUMNS, object_rows, to_geojson

TABLES = ("csv", "geojson")
"""Formats of tables of segments."""

FILES = ("images.json", "panoptic.json", "instances.json", "objects.csv")
"""Files about all images."""

# Bytes of the name of a file or folder, in the file systems in common use.
_NAME_MAX = 255

Record = dict[str, Any]
"""Entries of one image in the files about all: ``image``, ``panoptic`` and ``instances`` as far as
the model has them, and ``objects`` for a table; or ``failed``."""


def failure(image: InputImage, reason: str) -> Record:
    """The record of an image that has no result."""
    return dict(failed=dict(file_name=image.file_name, reason=reason))


class ResultWriter:
    """Writes the results of images to a folder: all files below that the model has results for.

    =============================================  ==============================================
    ``vis/<name>.png``                             segments drawn over the image
    ``panoptic.json`` and ``panoptic/<name>.png``  COCO's panoptic format
    ``instances.json``                             COCO's instance results, masks as RLE
    ``semantic/<name>.png``                        class of every pixel, gray, 8 or 16 bits
    ``confidence/<name>.png``                      confidence of every pixel, gray, 255 for 1
    ``objects.csv``                                a row for each segment of each image
    ``geojson/<name>.geojson``                     outlines of segments
    ``images.json``                                ids of the images and categories
    =============================================  ==============================================

    Use it as a context manager: it writes the files about all images on exit, unless an error
    occurred. Every file is written whole or not at all, and the entries of these files are not kept
    in memory.

    Args:
        out_dir: The folder; created if necessary. Files of the same names are replaced.
        classes: Classes of the model.
        ann_file: COCO annotations from which the files take image ids, by path, and category ids,
            by class name, so that the results can be compared with them. By default, images
            and the model's classes are numbered in order from 0.
        draw: Whether to write ``vis/``.
        draw_scores: Whether the drawings show the scores of segments.
        style: How to draw.
        tables: Tables of segments to write, among :data:`TABLES`, for ``objects.csv`` and
            ``geojson/``; see :mod:`~hcformer_mm.apis.object_table`.
        score_thr: Minimum score of instances in drawings and tables, if there is no panoptic
            result.

    Raises:
        FileNotFoundError: ``ann_file`` does not exist.
        ValueError: ``out_dir`` is a file, ``ann_file`` is not in COCO's format or lacks a class,
            there is no such table, or ``score_thr`` is not from 0 to 1.
    """

    def __init__(
        self,
        out_dir: str | Path,
        classes: Classes,
        *,
        ann_file: str | Path | None = None,
        draw: bool = True,
        draw_scores: bool = False,
        style: FigureStyle = PLAIN,
        tables: Collection[str] = (),
        score_thr: float = SCORE_THR,
    ) -> None:
        self.out_dir = Path(out_dir)
        if self.out_dir.exists() and not self.out_dir.is_dir():
            raise ValueError(f"expected a folder for the results, got the file {out_dir}")
        self.classes = classes
        self._ann_file = ann_file
        self._draw, self._draw_scores, self._style = draw, draw_scores, style
        if unknown := sorted({*tables} - {*TABLES}):
            raise ValueError(f"expected tables among {', '.join(TABLES)}, got {unknown[0]!r}")
        self._tables = frozenset(tables)
        self._score_thr = check_score_thr(score_thr)
        self._image_ids: PathIndex[int] | None = None
        self._category_ids: Sequence[int] = range(len(classes.names))
        self._sizes: dict[int, tuple[int, int]] = {}
        if ann_file is not None:
            self._image_ids, self._category_ids, self._sizes = read_coco_ids(ann_file, classes)
        self._entries: defaultdict[str, _Entries] = defaultdict(lambda: _Entries(self.out_dir))

    def accept(
        self, images: list[InputImage] | Iterator[InputImage]
    ) -> list[InputImage] | Iterator[InputImage]:
        """Check that the results of all images can be written, and return the images.

        Those whose names are too long for files become images that cannot be read.

        Args:
            images: A list, which is checked at once, or an iterator, which is checked while it
                runs.

        Raises:
            ValueError: Two images share a name or an entry of ``ann_file``, or one has none.
        """
        checked: Iterator[InputImage] = map(self._nameable, with_unique_names(images))
        if self._image_ids is not None:
            checked = self._with_own_ids(checked)
        return list(checked) if isinstance(images, list) else checked

    def _nameable(self, image: InputImage) -> InputImage:
        """The image, or one that is refused if its name is too long for the files of results."""
        file = Path(image.name + (".geojson" if "geojson" in self._tables else ".png"))
        length = max(len(os.fsencode(part)) for part in temporary(file).parts)
        if length <= _NAME_MAX:
            return image
        reason = (
            f"expected names of at most {_NAME_MAX} bytes for the results of {image.source}, got "
            f"{length} while they are written; shorten its name by {length - _NAME_MAX} bytes"
        )
        return RefusedImage(image.name, image.number, path=image.path, reason=reason)

    def _with_own_ids(self, images: Iterable[InputImage]) -> Iterator[InputImage]:
        seen: dict[int, str] = {}
        for image in images:
            other = seen.setdefault(self._image_id(image), image.source)
            if other != image.source:
                raise ValueError(
                    f"expected an entry of its own in {self._ann_file} for each image, got one for "
                    f"{other} and {image.source}"
                )
            yield image

    def add(self, image: InputImage, sample: BaseDataElement) -> None:
        """Write the PNG files of an image and collect its entries; see :meth:`encode`."""
        self.collect(self.encode(image, sample))

    def add_failure(self, image: InputImage, reason: str) -> None:
        """List an image that has no result under ``failed`` in ``images.json``."""
        self.collect(failure(image, reason))

    def encode(self, image: InputImage, sample: BaseDataElement) -> Record:
        """Write the files of an image and return its entries of the files about all.

        Threads may encode different images at a time.

        Args:
            image: The image.
            sample: Prediction at the image's size.

        Raises:
            ValueError: The image is not in ``ann_file`` or has another size there, or the sample
                has no segmentation.
        """
        image_id = self._image_id(image)
        segments = segments_of(sample, self.classes, score_thr=self._score_thr)
        height, width = segments.segments.shape
        if (size := self._sizes.get(image_id, (height, width))) != (height, width):
            raise ValueError(
                f"expected {image.source} of the height and width that {self._ann_file} has for "
                f"it, {size}, got {(height, width)}; give the annotations of these images"
            )
        entry = dict(id=image_id, file_name=image.file_name, height=height, width=width)
        record: Record = dict(image=entry)
        if self._draw:
            drawn = draw_figure(
                image.read_rgb(), segments, self.classes, self._style, scores=self._draw_scores
            )
            self._write_png("vis", image, drawn)
        if "csv" in self._tables:
            rows = object_rows(segments, self.classes)
            record["objects"] = [dict(image=image.file_name) | row for row in rows]
        if "geojson" in self._tables:
            with replacing(self.out_dir / "geojson" / f"{image.name}.geojson") as path:
                path.write_text(dumps(to_geojson(segments, self.classes)))
        if "pred_panoptic_seg" in sample:
            ids, info = encode_panoptic(segments, self._category_ids)
            self._write_png("panoptic", image, id2rgb(ids))
            record["panoptic"] = dict(
                image_id=image_id, file_name=f"{image.name}.png", segments_info=info
            )
        if "pred_instances" in sample and "masks" in sample.pred_instances:
            record["instances"] = encode_instances(
                sample.pred_instances, image_id, self._category_ids
            )
        if "pred_confidence" in sample:
            confidence = sample.pred_confidence.data[0].nan_to_num(0)
            self._write_png("confidence", image, (255 * confidence).round().byte().numpy())
        if "pred_sem_seg" in sample:
            self._write_png("semantic", image, label_map(sample, len(self.classes.names)))
        return record

    def collect(self, record: Record) -> None:
        """Take the entries of an image into the files about all images."""
        for kind, entries in record.items():
            self._entries[kind].add(entries if isinstance(entries, list) else [entries])

    def close(self) -> None:
        """Write the files about all images."""
        names, things = self.classes.names, self.classes.things
        categories = [
            dict(id=i, name=name) for i, name in zip(self._category_ids, names, strict=True)
        ]
        images = self._entries["image"]
        failed = {key: self._entries[key] for key in ("failed",) if key in self._entries}
        self._write_json("images", images=images, categories=categories, **failed)
        if "panoptic" in self._entries:
            self._write_json(
                "panoptic",
                images=images,
                annotations=self._entries["panoptic"],
                categories=[one | dict(isthing=int(one["name"] in things)) for one in categories],
            )
        if "instances" in self._entries:
            with replacing(self.out_dir / "instances.json") as path, path.open("w") as file:
                self._entries["instances"].write_to(file)
        if "csv" in self._tables:
            with (
                replacing(self.out_dir / "objects.csv") as path,
                path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
            ):
                self._entries["objects"].write_to(file)

    def __enter__(self) -> "ResultWriter":
        check_writable(self.out_dir)
        # Those of an earlier run do not describe the images of this run.
        for name in FILES:
            (self.out_dir / name).unlink(missing_ok=True)
        if "csv" in self._tables:
            self._entries["objects"] = _Rows(self.out_dir)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            while self._entries:
                self._entries.popitem()[1].close()

    def _image_id(self, image: InputImage) -> int:
        if self._image_ids is None:
            return image.number
        found = self._image_ids.find(image.path or image.file_name)
        if found is None:
            raise ValueError(
                f"expected images of {self._ann_file}, matched by file name, got {image.source}"
            )
        return found

    def _write_png(self, folder: str, image: InputImage, pixels: NDArray[Any]) -> None:
        write_image(self.out_dir / folder / f"{image.name}.png", pixels)

    def _write_json(self, name: str, **content: "_Entries | list[dict[str, Any]]") -> None:
        with replacing(self.out_dir / f"{name}.json") as path, path.open("w") as file:
            separator = "{"
            for key, value in content.items():
                file.write(f'{separator}"{key}": ')
                if isinstance(value, _Entries):
                    value.write_to(file)
                else:
                    file.write(dumps(value))
                separator = ", "
            file.write("}")


class _Entries:
    """A list for JSON files, kept in a nameless file, of which a killed process leaves nothing.

    Args:
        folder: An existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(  # noqa: SIM115  # closed with the writer
            "w+",
            dir=folder,
            encoding="utf-8",
            errors="surrogateescape",  # names of files may have any bytes
            newline="",
        )
        self.close = self._file.close
        self._separator = ""

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append entries."""
        for entry in entries:
            self._file.write(self._separator + dumps(entry))
            self._separator = ", "

    def write_to(self, file: TextIO) -> None:
        """Copy the list to a JSON file."""
        self._file.seek(0)
        file.write("[")
        copyfileobj(self._file, file)
        file.write("]")


class _Rows(_Entries):
    """Rows of a table, likewise, for a CSV file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._writer.writeheader()

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        self._writer.writerows(entries)

    def write_to(self, file: TextIO) -> None:
        self._file.seek(0)
        copyfileobj(self._file, file)


def check_writable(folder: Path) -> None:
    """Create a folder unless it exists, and check that files can be written to it.

    Raises:
        ValueError: They cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"expected a folder that can be written for the results, got {folder}: {error.strerror}"
        ) from None


def segments_of(sample: BaseDataElement, classes: Classes, *, score_thr: float) -> Panoptic:
    """Return the segments of a prediction: panoptic ones, else its instances, else its classes.

    Args:
        sample: Data sample of mmdet or mmseg.
        classes: Classes of the model.
        score_thr: Minimum score of instances.

    Raises:
        ValueError: The sample has no segmentation.
    """
    segments = predicted_segments(sample, classes, score_thr=score_thr)
    if segments is None:
        raise ValueError(
            "expected a model that predicts segments, masks or classes of pixels, got "
            f"{', '.join(sample.keys()) or 'nothing'}"
        )
    return segments


def write_image(path: str | Path, image: NDArray[Any]) -> None:
    """Write an image file as a whole or not at all.

    Args:
        path: The file; its suffix sets the format.
        image: ``(H, W, 3)`` uint8 RGB, or ``(H, W)`` uint8 or uint16.

    Raises:
        ValueError: No image format has this suffix.
    """
    path = Path(path)
    format = Image.registered_extensions().get(path.suffix.lower())
    if format is None:
        raise ValueError(f"expected a name with the suffix of an image, such as .png, got {path}")
    with replacing(path) as unfinished:
        # Half the time of the default level, which makes files of labels somewhat smaller.
        Image.fromarray(image).save(unfinished, format, compress_level=1)
