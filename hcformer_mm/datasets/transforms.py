"""Steps of pipelines: those of mmcv, mmdet and mmseg, with errors that name the file."""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile as MMCVLoadImageFromFile
from mmdet.datasets import transforms as mmdet_transforms
from mmdet.structures.mask import BitmapMasks
from mmengine import fileio
from mmseg.datasets import transforms as mmseg_transforms
from numpy.typing import NDArray
from PIL import Image

from ..registry import TRANSFORMS
from ..structures.data_samples import VOID_LABEL, WIDE_VOID_LABEL, void_label
from ..utils.errors import InputError, reason
from ..utils.images import decode_bands, decode_image, is_truncated


@TRANSFORMS.register_module()
class LoadImageFromFile(MMCVLoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, which also reads pixels of 10 to 16 bits, and more bands.

    Images of 8 bits are the same. See :func:`~hcformer_mm.utils.images.decode_image`. Pixels that
    are already there as ``img`` are taken as they are, without a file.

    Args:
        options: Arguments of mmcv's ``LoadImageFromFile``.
        bands: Number of bands of the images, which are read with the values that files store; see
            :func:`~hcformer_mm.utils.images.decode_bands`. ``color_type`` and ``imdecode_backend``
            do not apply then. None reads colors of 8 bits.
        rgb: The bands, from 0, that drawings show as red, green and blue; by default the first
            three, of three BGR.

    Attributes:
        rgb: The same, complete.

    Raises:
        ValueError: ``rgb`` does not name three of the bands.
    """

    def __init__(
        self, *options: Any, bands: int | None = None, rgb: Sequence[int] = (), **named: Any
    ) -> None:
        super().__init__(*options, **named)
        self.bands = bands
        number = 3 if bands is None else bands
        default = (2, 1, 0) if number == 3 else [min(band, number - 1) for band in range(3)]
        self.rgb = tuple(rgb or default)
        if number < 1 or len(self.rgb) != 3 or not set(self.rgb) <= set(range(number)):
            raise InputError(
                f"expected rgb of LoadImageFromFile to be three of the bands from 0 to "
                f"{number - 1}, got {self.rgb}; correct rgb or bands"
            )

    def decode(self, content: bytes, file: str) -> NDArray[Any]:
        """Pixels ``(H, W, bands)`` of a file: as ``bands`` says; by default uint8, BGR.

        Raises:
            ValueError: The file is truncated, cannot be read, or has other bands.
        """
        if self.bands is not None:
            return decode_bands(content, file, self.bands)
        if (self.color_type, self.imdecode_backend) == ("color", "cv2"):
            return decode_image(content, file)
        image = mmcv.imfrombytes(content, self.color_type, backend=self.imdecode_backend)
        if image is None or image.shape[2:] > (3,):
            found = "no image" if image is None else f"pixels of shape {image.shape}"
            raise InputError(
                f"expected an image of at most 3 bands in {file}, got {found}; to give more to the "
                "model, set bands of LoadImageFromFile"
            )
        return image

    def check(self, image: NDArray[Any], source: str) -> None:
        """Raise a ValueError unless an array is what :meth:`decode` could return.

        Args:
            image: Pixels.
            source: Where they come from.
        """
        bands = self.bands or 3
        kinds = ("uint8", "uint16", "float32") if self.bands else ("uint8",)
        if image.shape[2:] != (bands,) or image.dtype not in kinds:
            bgr, rgb = (", BGR,", ", RGB,") if bands == 3 else ("", ",")
            raise InputError(
                f"expected an array (H, W, {bands}){bgr} of {' or '.join(kinds)}, or a tensor "
                f"({bands}, H, W){rgb} as {source}, got {image.dtype} {image.shape}; select bands, "
                "scale values, or set bands of LoadImageFromFile in the config of the model"
            )

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Add ``img``, ``img_shape`` and ``ori_shape``.

        Raises:
            ValueError: As :meth:`decode`.
        """
        image = results.get("img")
        if image is None:
            file = results["img_path"]
            try:
                if self.file_client_args is None:
                    content = fileio.get(file, backend_args=self.backend_args)
                else:
                    client = fileio.FileClient.infer_client(self.file_client_args, file)
                    content = client.get(file)
                image = self.decode(content, file)
            except (OSError, ValueError):
                if self.ignore_empty:
                    return None
                raise
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadSemanticAnnotations(mmseg_transforms.LoadAnnotations):
    """mmseg's ``LoadAnnotations``, for label maps of 8 and of 16 bits.

    mmseg keeps the lower 8 bits of a label. Here void is 255 in files of 8 bits, and 65535 in files
    of 16; in these, 255 is void too if there are at most 255 classes. In samples, void is
    :func:`~hcformer_mm.structures.data_samples.void_label`.

    Samples without ``seg_fields``, as mmseg's inferencer makes them, are left as they are.

    Args:
        num_classes: Number of classes; ``tools/train.py`` and ``tools/test.py`` take it from the
            dataset. If None, labels are not checked, and files of 16 bits that can be read in two
            ways are refused.
        options: Arguments of mmseg's ``LoadAnnotations``.
    """

    def __init__(self, *, num_classes: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = num_classes

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add ``gt_seg_map`` ``(H, W)``: uint8; uint16 where void is 65535.

        Raises:
            ValueError: The image has no label map, or the map cannot be read, has colors, differs
                from the image in size, or contains a label that is neither a class nor void.
        """
        return super().transform(results) if "seg_fields" in results else results

    def _load_seg_map(self, results: dict[str, Any]) -> None:
        file = results.get("seg_map_path")
        if file is None:
            raise InputError(
                f"expected a label map of {results['img_path']}, got none; set "
                "data_prefix.seg_map_path of the dataset"
            )
        reduced = results["reduce_zero_label"]
        if self.reduce_zero_label not in (None, reduced):
            raise InputError(
                f"expected reduce_zero_label={self.reduce_zero_label} in the dataset of {file}, as "
                f"in its pipeline, got {reduced}; set it in the dataset alone"
            )
        labels = self._read(file, results["ori_shape"])
        void = self._void(file, labels, reduced)
        ignored = labels == np.iinfo(labels.dtype).max
        if void == VOID_LABEL:
            ignored |= labels == VOID_LABEL
        if reduced:
            ignored |= labels == 0
            labels = labels - labels.dtype.type(1)
        if results.get("label_map") is not None:
            if void != VOID_LABEL:
                raise InputError(
                    f"expected all classes of the dataset of {file}, in their order, got others in "
                    "metainfo; mmseg marks what is left out by 255, which is a class here"
                )
            of_file = labels.copy()
            for old, new in results["label_map"].items():
                labels[of_file == old] = new
            ignored |= labels == VOID_LABEL
        if self.num_classes is not None:
            top = np.where(ignored, 0, labels).max()
            if top >= self.num_classes:
                raise InputError(
                    f"expected labels below {self.num_classes}, the number of classes, in {file}, "
                    f"got {top}{' (1 less than in the file)' * reduced}; correct the file, or the "
                    "classes in metainfo of the dataset"
                )
        labels = labels.astype(np.uint8 if void == VOID_LABEL else np.uint16)
        labels[ignored] = void
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")

    def _read(self, file: str, size: tuple[int, int]) -> NDArray[np.unsignedinteger[Any]]:
        """Labels ``(H, W)`` as the file stores them, uint8 or uint16."""
        with _naming(file):
            content = fileio.get(file, backend_args=self.backend_args)
            labels = mmcv.imfrombytes(content, flag="unchanged", backend=self.imdecode_backend)
            if labels is None or is_truncated(content):  # OpenCV raises no error
                raise InputError("it is no image, or cut off")
        if labels.ndim == 3 and labels.shape[2] == 1:
            labels = labels[..., 0]
        if labels.ndim != 2:
            raise InputError(
                f"expected one class index per pixel in {file}, got {labels.shape[2]} channels; "
                "convert its colors to class indices"
            )
        check_size(file, labels.shape, size)
        if labels.dtype.itemsize == 1:
            return labels.astype(np.uint8)
        low, high = labels.min(), labels.max()
        if labels.dtype.kind not in "iu" or low < 0 or high > WIDE_VOID_LABEL:
            raise InputError(
                f"expected class indices of 8 or 16 bits in {file}, got {labels.dtype} from {low} "
                f"to {high}; save it as a gray PNG file"
            )
        return labels.astype(np.uint16)

    def _void(self, file: str, labels: NDArray[np.unsignedinteger[Any]], reduced: bool) -> int:
        """Void in the sample of a file."""
        wide = labels.dtype == np.uint16
        if self.num_classes is None:
            if not wide or labels.max() <= VOID_LABEL - reduced:
                return VOID_LABEL
            if ((labels > VOID_LABEL) & (labels < WIDE_VOID_LABEL)).any():
                return WIDE_VOID_LABEL
            raise InputError(
                f"expected num_classes in the step LoadSemanticAnnotations, got None: it tells "
                f"whether 255 is a class in {file}, a file of 16 bits; set it to the number of "
                "classes"
            )
        void = void_label(self.num_classes)
        if void != VOID_LABEL and not wide and (labels == VOID_LABEL).any():
            raise InputError(
                f"expected 16 bits in {file}, as there are {self.num_classes} classes, got 8 and "
                "the label 255, which may be a class or void; save it with 16 bits, and 65535 for "
                "void"
            )
        return void


@TRANSFORMS.register_module()
class LoadPanopticAnnotations(mmdet_transforms.LoadPanopticAnnotations):
    """mmdet's ``LoadPanopticAnnotations``, whose errors name the file."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add what mmdet's step adds.

        Raises:
            ValueError: The PNG file cannot be read, is truncated, or differs from its image in
                size.
        """
        file = results.get("seg_map_path")
        if file is None:  # a test set without ground truth
            return super().transform(results)
        with _naming(file):
            content = fileio.get(file, backend_args=self.backend_args)
            with Image.open(io.BytesIO(content)) as png:
                width, height = png.size
            if is_truncated(content):
                raise InputError(f"expected a complete PNG file, got {file}; replace it")
            # mmdet reshapes masks of another size, and squeezes a single row or column.
            check_size(file, (height, width), results["ori_shape"])
            if min(height, width) == 1:
                raise InputError(
                    f"expected {file} of two rows and two columns at least, got {(height, width)}, "
                    "which mmdet cannot read; leave the image out"
                )
            return super().transform(results)


@TRANSFORMS.register_module()
class LoadInstanceAnnotations(mmdet_transforms.LoadAnnotations):
    """mmdet's ``LoadAnnotations``, whose errors name the image."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add what mmdet's step adds.

        Raises:
            ValueError: A box or a mask cannot be read, or differs from the image in size.
        """
        annotations = f"the annotations of {results['img_path']}"
        if "height" in results and "width" in results:
            # mmdet draws polygons at the image's size, whatever size they were made for.
            check_size(annotations, (results["height"], results["width"]), results["ori_shape"])
        with _naming(annotations):
            return super().transform(results)

    def _poly2mask(self, mask_ann: Any, img_h: int, img_w: int) -> NDArray[np.uint8]:
        mask = super()._poly2mask(mask_ann, img_h, img_w)
        # mmdet reshapes masks of another size.
        check_size("the masks", mask.shape, (img_h, img_w))
        return mask


@TRANSFORMS.register_module()
class Resize(mmdet_transforms.Resize):
    """mmdet's ``Resize`` without the objects that vanish, which a loss would ask for in vain.

    A pixel of a mask or a label map takes the value at its center; mmcv takes that at its corner,
    which shifts them against the image by up to half a pixel of the larger of both sizes.

    Objects whose masks are empty at the new size are left out, and a warning names the first image
    of such. Masks of stuff and of semantic classes come from the resized label map, so none of them
    is empty.
    """

    _warned = False

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize the image and what is annotated in it.

        Raises:
            ValueError: A side of the image becomes shorter than half a pixel.
        """
        results = super().transform(results)
        masks = results.get("gt_masks")
        if masks is None:
            return results
        # Any pixel is found five times as fast as all are counted.
        bitmaps = isinstance(masks, BitmapMasks)
        visible = masks.masks.any((1, 2)) if bitmaps else masks.areas > 0
        if visible.all():
            return results
        # Masks that mmdet ignores may have been empty before.
        vanished = ~(visible | results.get("gt_ignore_flags", False))
        for key in ("gt_bboxes", "gt_bboxes_labels", "gt_masks", "gt_ignore_flags"):
            if key in results:
                results[key] = results[key][visible]
        if vanished.any() and not self._warned:
            self._warned = True
            warnings.warn(
                f"{vanished.sum()} of {len(vanished)} objects of {results['img_path']} have no "
                f"pixel left at {results['img_shape']}, its size in training; its file has "
                f"{results['ori_shape']}. Such objects are left out, in other images too; train on "
                "larger images or on crops to keep them",
                stacklevel=2,
            )
        return results

    def _resize_masks(self, results: dict[str, Any]) -> None:
        masks, size = results.get("gt_masks"), results["img_shape"]
        if not isinstance(masks, BitmapMasks) or not len(masks):
            super()._resize_masks(results)
            return
        resized = np.stack([_resize_labels(mask, size) for mask in masks.masks])
        results["gt_masks"] = BitmapMasks(resized, *size)

    def _resize_seg(self, results: dict[str, Any]) -> None:
        if results.get("gt_seg_map") is not None:
            results["gt_seg_map"] = _resize_labels(results["gt_seg_map"], results["img_shape"])

    def _resize_img(self, results: dict[str, Any]) -> None:
        height, width = results["img"].shape[:2]
        size = results["scale"]
        if self.keep_ratio:
            size = mmcv.rescale_size((width, height), size)
        if min(size) < 1:
            raise InputError(
                f"expected an image that can be resized, but {results['img_path']}, {width} × "
                f"{height} pixels, becomes {size[0]} × {size[1]}; cut it into pieces, or raise the "
                "scale in the pipeline"
            )
        super()._resize_img(results)


@TRANSFORMS.register_module()
class ResizeShortestEdge(mmseg_transforms.ResizeShortestEdge):
    """mmseg's ``ResizeShortestEdge``, which resizes by :class:`Resize` with a backend of mmcv."""

    def __init__(
        self, scale: int | tuple[int, int], max_size: int, *, backend: str = "cv2"
    ) -> None:
        super().__init__(scale, max_size)
        self.resize = Resize(scale=0, keep_ratio=True, backend=backend)


def _resize_labels(labels: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize labels ``(H, W)`` to a height and width by the value at the center of each pixel."""
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def check_size(file: str, found: tuple[int, ...], size: tuple[int, int]) -> None:
    """Raise an InputError unless annotations in a file have the height and width of their image."""
    if tuple(found) != tuple(size):
        raise InputError(
            f"expected {file} of the image's height and width, {tuple(size)}, got {found}; "
            "annotate it upright and at its size"
        )


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Name a file in the errors of decoders."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if file in str(error):
            raise
        raise InputError(f"expected {file} to be readable: {reason(error)}") from error
