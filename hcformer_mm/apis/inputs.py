"""Input images: files, folders, videos, arrays and streams of frames."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import IOBase
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import mmcv
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from skimage.exposure import rescale_intensity
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..utils.errors import InputError
from ..utils.images import decode_image, to_uint8

VIDEO_EXTENSIONS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")

Input: TypeAlias = str | Path | bytes | NDArray[Any] | Tensor | Image.Image | mmcv.VideoReader
"""Path of an image, a folder or a video; the bytes of an image file; an array ``(H, W, 3)``, BGR,
as mmcv reads it; a tensor ``(3, H, W)``, RGB, as ``torchvision.io`` reads it; an image of Pillow;
or an opened video. Other numbers of bands than three have the order that the model takes."""

_ONE = str | Path | bytes | np.ndarray | Tensor | Image.Image | mmcv.VideoReader

Inputs: TypeAlias = Input | Iterable[Input]

# Two letters at least: C:/ is no URL.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


@dataclass(frozen=True, eq=False)
class InputImage:
    """One input image; :meth:`read` reads its file.

    Attributes:
        name: Stem of the file name, after its folders if images of several folders have one name;
            ``<video>_<frame number>``, such as ``street_000012``, in a video file; the number in
            the input for images without a file.
        number: Number in the input, from 0.
        path: File of the image, if it has one. It is not opened if there is ``content``, and then
            only names the image, such as ``shard.tar/000012.jpg``.
        array: Pixels of an image without a file.
        content: Bytes of an encoded image file in memory, which are read like those of a file.
        decode: Makes pixels of the bytes of a file and its name, for errors.
        rgb: The bands that are red, green and blue.
    """

    name: str
    number: int
    path: Path | None = None
    array: NDArray[Any] | None = None
    content: bytes | None = None
    decode: Callable[[bytes, str], NDArray[Any]] = decode_image
    rgb: Sequence[int] = (2, 1, 0)

    @property
    def file_name(self) -> str:
        """Name of the file, after its folders if ``name`` has them; ``<name>.png`` if none."""
        if self.path is None:
            return f"{self.name}.png"
        return str(PurePosixPath(self.name).with_name(self.path.name))

    @property
    def source(self) -> str:
        """Where the image comes from, for messages."""
        return str(self.path or f"image {self.number} of the input")

    def read(self) -> NDArray[Any]:
        """Pixels, by default ``(H, W, 3)`` uint8, BGR; those that a model takes if it reads others.

        Raises:
            ValueError: The file is not a whole image, or ``decode`` refuses it.
        """
        if self.array is not None:
            return self.array
        try:
            content = self._encoded()
        except OSError as error:
            raise ValueError(f"expected an image, got {self.source}: {error.strerror}") from None
        return self.decode(content, self.source)

    def _encoded(self) -> bytes:
        """Bytes of the image file."""
        if self.content is not None:
            return self.content
        assert self.path is not None
        return self.path.read_bytes()

    def read_rgb(self) -> NDArray[np.uint8]:
        """Pixels to look at, ``(H, W, 3)`` uint8, RGB.

        Other types than uint8 are stretched from their least to their largest value.
        """
        pixels = np.atleast_3d(self.read())
        shown = pixels[..., [min(band, pixels.shape[2] - 1) for band in self.rgb]]
        if shown.dtype != np.uint8:
            shown = rescale_intensity(shown, out_range=np.uint8)
        return np.ascontiguousarray(shown)


@dataclass(frozen=True, eq=False)
class RefusedImage(InputImage):
    """An image that can have no result; its ``reason`` says why."""

    reason: str = ""

    def read(self) -> NDArray[Any]:
        """Raise a ValueError with the reason."""
        raise InputError(self.reason)


def open_images(inputs: Inputs) -> list[InputImage] | Iterator[InputImage]:
    """List the images of an input, in order; images of a folder are sorted by name.

    All items of a sequence are checked before the first image is read, and images of one name get
    different ones by their folders and suffixes. Videos and other iterables
    are read frame by frame and never held in memory as a whole.

    Args:
        inputs: One or more images, folders or videos.

    Returns:
        A list if all images are known in advance; otherwise an iterator, which raises errors when
        it reaches a faulty input.

    Raises:
        ValueError: An input is a URL, an empty folder, an array of the wrong shape, a video that
            cannot be opened, or of an unsupported type.
        FileNotFoundError: No such file or folder.
    """
    if isinstance(inputs, _ONE):
        inputs = [inputs]
    # Files are iterables of lines, and buffers of numbers.
    if not isinstance(inputs, Iterable) or isinstance(inputs, IOBase | bytearray | memoryview):
        raise ValueError(
            "expected images as a path, bytes, an array, a tensor, an image of Pillow, a video, or "
            f"several of these, got {type(inputs).__name__}; give the bytes of an open file"
        )
    if not isinstance(inputs, Sequence):
        return _numbered(chain.from_iterable(map(_expand, inputs)))
    expanded = [_expand(item) for item in inputs]
    images = _numbered(chain.from_iterable(expanded))
    if not all(isinstance(part, list) for part in expanded):
        return images
    return with_distinct_names(list(images))


def with_distinct_names(images: list[InputImage]) -> list[InputImage]:
    """If names collide, call files by their paths below a common folder, if need be with suffix."""
    if _distinct(images):
        return images
    files = {one.number: os.path.abspath(one.path) for one in images if one.path is not None}
    common = os.path.commonpath([os.path.dirname(file) for file in files.values()])
    paths = {number: Path(os.path.relpath(file, common)) for number, file in files.items()}
    for names in ({number: path.with_suffix("") for number, path in paths.items()}, paths):
        named = [
            replace(one, name=names[one.number].as_posix()) if one.number in names else one
            for one in images
        ]
        if _distinct(named):
            return named
    return images  # a file is given twice


def _distinct(images: list[InputImage]) -> bool:
    return len({image.name for image in images}) == len(images)


def with_unique_names(
    images: list[InputImage] | Iterator[InputImage],
) -> list[InputImage] | Iterator[InputImage]:
    """Check that image names are unique, because results are written under them.

    Args:
        images: A list, which is checked at once, or an iterator, which is checked while it runs.

    Returns:
        The images.

    Raises:
        ValueError: Two images share a name.
    """
    checked = _checked_names(images)
    return list(checked) if isinstance(images, list) else checked


def _checked_names(images: Iterable[InputImage]) -> Iterator[InputImage]:
    seen: dict[str, str] = {}
    for image in images:
        if image.name in seen:
            raise ValueError(
                f"expected images of different names, got {seen[image.name]} and {image.source}, "
                f"whose results would both be called {image.name}; run them separately, with "
                "different folders for their results"
            )
        seen[image.name] = image.source
        yield image


# An image before it is numbered: its name (None for the default), and its file or pixels.
_Part = tuple[str | None, Path | bytes | NDArray[Any]]


def _numbered(parts: Iterable[_Part]) -> Iterator[InputImage]:
    for number, (name, source) in enumerate(parts):
        if isinstance(source, Path):
            yield InputImage(name or source.stem, number, path=source)
        elif isinstance(source, bytes):
            yield InputImage(name or str(number), number, content=source)
        else:
            yield InputImage(name or str(number), number, array=source)


def _expand(item: Any) -> list[_Part] | Iterator[_Part]:
    """Images of one input: a list, or an iterator over the frames of a video."""
    if isinstance(item, np.ndarray | Tensor | Image.Image):
        return [(None, _pixels(item))]
    if isinstance(item, bytes):
        return [(None, item)]
    if isinstance(item, mmcv.VideoReader):
        return _frames(item, None)
    if not isinstance(item, str | Path):
        raise ValueError(f"expected a path, bytes or pixels as image, got {type(item).__name__}")
    if not str(item):
        raise ValueError("expected the path of an image, got an empty one")
    if _URL.match(str(item)):
        raise ValueError(
            f"expected the path of an image on this machine, got the URL {item}: nothing is "
            "downloaded; save the image and give its path"
        )
    path = Path(item)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if is_input(file, IMG_EXTENSIONS))
        if not found:
            raise ValueError(f"expected images ({', '.join(IMG_EXTENSIONS)}) in {path}, got none")
        return [(None, file) for file in found]
    if not path.is_file():
        raise FileNotFoundError(f"no such image: {path}")
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        return _frames(mmcv.VideoReader(str(path)), path)
    return [(None, path)]


def is_input(file: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file of a folder has one of these suffixes and is not hidden."""
    hidden = file.name.startswith(".")
    # A link to nothing is an image that cannot be read.
    there = file.is_file() or not file.exists()
    return file.suffix.lower() in suffixes and not hidden and there


def _frames(video: mmcv.VideoReader, path: Path | None) -> Iterator[_Part]:
    if not video.opened:
        raise ValueError(f"expected a video that OpenCV can read, got {path or 'a closed one'}")
    return _read_frames(video, path)


def _read_frames(video: mmcv.VideoReader, path: Path | None) -> Iterator[_Part]:
    number = 0
    for number, frame in enumerate(video, start=1):
        yield (None if path is None else f"{path.stem}_{number - 1:06}"), frame
    name = path or "the video"
    if number == 0:
        raise ValueError(f"expected frames in {name}, got none")
    if number < video.frame_cnt:  # an estimate in some formats
        warnings.warn(
            f"expected {video.frame_cnt} frames in {name}, read {number}",
            stacklevel=2,
        )


def _pixels(given: NDArray[Any] | Tensor | Image.Image) -> NDArray[Any]:
    """Pixels ``(H, W, bands)``, three of them BGR, of an image in memory."""
    if isinstance(given, Image.Image):
        try:
            given = ImageOps.exif_transpose(given)  # as files are read
        except (OSError, ValueError) as error:  # it is read here, if it was not before
            raise ValueError(f"expected a whole image of Pillow, got {given}: {error}") from None
        if given.mode[0] in "IF":
            return np.repeat(to_uint8(np.asarray(given))[..., None], 3, axis=2)
        return np.ascontiguousarray(np.asarray(given.convert("RGB"))[..., ::-1])
    layout = "(3, H, W) per tensor" if isinstance(given, Tensor) else "(H, W, 3) per array"
    if given.ndim != 3 or 0 in given.shape:
        raise ValueError(
            f"expected one image {layout}, got {given.dtype} {tuple(given.shape)}; give several as "
            "a list"
        )
    if not isinstance(given, Tensor):
        return given
    array = given.detach().cpu().numpy().transpose(1, 2, 0)
    return np.ascontiguousarray(array[..., ::-1] if array.shape[2] == 3 else array)
