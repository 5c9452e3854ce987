"""Checks of image files, whatever their annotations are."""

from pathlib import Path

from PIL import ExifTags, Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ...utils.errors import InputError
from ...utils.images import decode_image, stored_pixels
from .faults import Fault

_TURNED = range(5, 9)  # EXIF orientations for which MMCV swaps height and width


class UnreadableError(InputError):
    """An image cannot be read; ``fault`` tells why, and the message its file too."""

    def __init__(self, kind: str, file: Path, message: str) -> None:
        super().__init__(kind, file, message)  # as a pickle calls it again
        self.fault = Fault(kind, file, message)

    def __str__(self) -> str:
        return str(self.fault)


def check_image(path: Path, size: tuple[int, int] | None = None) -> list[Fault]:
    """Find out whether an image is missing, damaged, or of another size than its annotations.

    Args:
        path: The image.
        size: Its height and width in the annotations, in pixels; None accepts any.
    """
    try:
        found = image_size(path)
    except UnreadableError as error:
        return [error.fault]
    return check_size(path, found, size)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, in pixels, after it is turned as its EXIF data asks.

    Raises:
        UnreadableError: The image is missing or damaged.
    """
    try:
        opened = open_file(path)
    except UnreadableError as error:
        if error.fault.kind != "unreadable file":
            raise
        try:  # Pillow opens no TIFF file of several bands.
            pixels, orientation = stored_pixels(path.read_bytes())
        except Exception:  # decoders raise any kind
            raise error from None
        height, width, _ = pixels.shape
        return (width, height) if orientation in _TURNED else (height, width)
    with opened as image:
        width, height = image.size
        image.draft("L", (1, 1))  # decodes a JPEG at an eighth of its size
        decode(path, image)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if image.format == "WEBP" and orientation in _TURNED:  # not every version of OpenCV turns it
        height, width, _ = decode_image(path.read_bytes(), path).shape
        return height, width
    return (width, height) if orientation in _TURNED else (height, width)


def open_file(path: Path) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        UnreadableError: The image is missing or has no readable header.
    """
    if not path.is_file():
        raise UnreadableError("missing file", path, f"the file does not exist{_elsewhere(path)}")
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:  # OpenCV reads more
        raise UnreadableError("too large to check", path, str(error)) from error
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise UnreadableError("unreadable file", path, f"expected an image: {error}") from error


def decode(path: Path, image: Image.Image) -> None:
    """Decode an image to its end.

    Raises:
        UnreadableError: It is truncated or damaged.
    """
    try:
        image.load()
    except Exception as error:  # as above
        raise UnreadableError(
            "unreadable file", path, f"expected a whole image: {error}"
        ) from error


def check_size(path: Path, found: tuple[int, ...], size: tuple[int, int] | None) -> list[Fault]:
    """Compare the height and width of a file with those that are expected, if any."""
    if size is None or tuple(found) == tuple(size):
        return []
    return [Fault("size", path, f"expected height and width {tuple(size)}, got {tuple(found)}")]


def _elsewhere(path: Path) -> str:
    """Where a missing file is instead, if it is near."""
    suffixes = (*IMG_EXTENSIONS, *map(str.upper, IMG_EXTENSIONS))
    places = (path.parent.parent / path.name, *map(path.with_suffix, suffixes))
    return next((f", but {near} does" for near in places if near.is_file()), "")
