"""Image files as pixels of 8 bits, or as the bands that they store."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError, reason


def decode_image(content: bytes, file: str | Path) -> NDArray[np.uint8]:
    """Decode an image as ``mmcv.imread`` does, but for pixels of 16 bits; see :func:`to_uint8`.

    Args:
        content: Bytes of the file.
        file: Its name, for errors.

    Returns:
        Pixels ``(H, W, 3)``, BGR, turned upright by the orientation of their EXIF data.

    Raises:
        ValueError: OpenCV cannot decode the file, the file is truncated, its pixels are no
            integers of at most 16 bits, or it is a TIFF file of several pages, of separate planes,
            or of two or more than four bands.
    """
    _refuse_bands(content, file)
    try:
        image = cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
        )
    except cv2.error:  # of an empty file, or of too many pixels
        image = None
    if image is None or is_truncated(content):
        raise InputError(
            f"expected a complete image that OpenCV can read, got {file}; replace the file"
        )
    try:
        return to_uint8(image)
    except ValueError as error:
        raise InputError(f"{error}: {file}") from None


_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _refuse_bands(content: bytes, file: str | Path) -> None:
    """Refuse TIFF files of which OpenCV reads one page or 8 bits alone, or wrong pixels."""
    if not content.startswith(_TIFF):
        return
    try:
        with tifffile.TiffFile(BytesIO(content)) as tiff:
            axes, shape = tiff.series[0].axes, tiff.series[0].shape
    except Exception:  # tifffile raises any kind; OpenCV decides whether this is an image
        return
    if axes != "YX" and (axes != "YXS" or shape[2] not in (3, 4)):
        raise InputError(
            f"expected colors of {file} in one page of 1, 3 or 4 interleaved bands, got {shape} "
            f"(axes {axes}); a model takes all bands if its config sets bands of LoadImageFromFile"
        )


def decode_bands(content: bytes, file: str | Path, bands: int) -> NDArray[Any]:
    """Decode all bands of an image file, with the values that it stores.

    Args:
        content: Bytes of the file. In TIFF files, bands may be interleaved, planes or pages.
        file: Its name, for errors.
        bands: Number of bands that is expected.

    Returns:
        Pixels ``(H, W, bands)`` uint8 or uint16; float32 if the file stores another type. Bands are
        in the order of the file, but three are BGR, as everywhere in OpenMMLab.

    Raises:
        ValueError: The file is not a whole image, has another number of bands or complex numbers,
            or is to be turned by its EXIF data.
    """
    try:
        image, orientation = stored_pixels(content)
    # Decoders raise any kind of error for a damaged file.
    except Exception as error:
        raise InputError(
            f"expected a complete image, got {file}: {reason(error)}; replace the file"
        ) from error
    if image.ndim != 3 or image.shape[2] != bands:
        raise InputError(
            f"expected {bands} bands in {file}, as set in LoadImageFromFile, got pixels of shape "
            f"{image.shape}; leave the file out, or set bands to its number of bands"
        )
    # Some cameras write an orientation of 0, which is none.
    if orientation in range(2, 9) or image.dtype.kind == "c":
        raise InputError(
            f"expected upright pixels of real numbers in {file}, got {image.dtype} of orientation "
            f"{orientation}; save it without orientation or complex numbers"
        )
    kind = image.dtype if image.dtype in (np.uint8, np.uint16) else np.float32
    return np.ascontiguousarray(image, kind)


def stored_pixels(content: bytes) -> tuple[NDArray[Any], int]:
    """Pixels ``(H, W, bands)`` as a file stores them, three BGR, and their EXIF orientation.

    Raises:
        Exception: Of any kind, if the content is not a whole image.
    """
    if content.startswith(_TIFF):
        with tifffile.TiffFile(BytesIO(content)) as tiff:
            image, axes = tiff.series[0].asarray(), tiff.series[0].axes
            orientation = tiff.pages.first.tags.valueof("Orientation", 1)
        if axes == "YX":
            image = image[..., None]
        elif axes.endswith("YX"):
            image = np.moveaxis(image, 0, -1)
        return (image[..., ::-1] if image.shape[-1] == 3 else image), orientation
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or is_truncated(content):
        raise ValueError("OpenCV cannot read it, or it is truncated")
    with Image.open(BytesIO(content)) as header:
        orientation = header.getexif().get(0x0112, 1)
    image = np.atleast_3d(image)
    return (image[..., [2, 1, 0, 3]] if image.shape[2] == 4 else image), orientation


def is_truncated(content: bytes) -> bool:
    """Whether the bytes of a JPEG or PNG file end before its image does.

    Versions of OpenCV differ in what they make of such a file: an error, or gray and black pixels.
    """
    if content.startswith(b"\xff\xd8"):
        # The scan has no marker in it. The thumbnail of the EXIF data comes before, in a segment
        # whose length is given; the video of a moving photograph comes after.
        start = 2
        while (marker := content[start : start + 2])[:1] == b"\xff" and marker != b"\xff\xda":
            padded = marker == b"\xff\xff"
            start += 1 if padded else 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        return content.find(b"\xff\xd9", start) < 0
    return content.startswith(b"\x89PNG") and content.rfind(b"IEND") < 0


def to_uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Reduce the pixels of an image to 8 bits.

    16-bit files often hold the 10, 12 or 14 bits of a sensor. Their bits are counted by the largest
    value of the image, and the upper 8 are kept; OpenCV keeps the upper 8 of 16, which are black. A
    warning says when the two differ.

    Args:
        image: Pixels of any shape, bool or integers from 0 to 65535, as read from a file without
            conversion.

    Returns:
        Pixels of the same shape; ``image`` itself if it is uint8. False is 0 and True is 255.

    Raises:
        ValueError: The pixels have another type, or are out of range.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.bool_:
        return image * np.uint8(255)
    if not np.issubdtype(image.dtype, np.integer):
        raise ValueError(
            f"expected an image of 8- or 16-bit integers, got {image.dtype}; scale its values to "
            "0...255 and save them as 8 bits"
        )
    low, high = (int(image.min()), int(image.max())) if image.size else (0, 0)
    if low < 0 or high > 65535:
        raise ValueError(f"expected pixels from 0 to 65535, got values from {low} to {high}")
    bits = max(8, high.bit_length())
    if 8 < bits < 16:
        # Without the file or the value, so that Python shows it once.
        warnings.warn(
            f"16-bit pixels of an image use {bits} bits: they are stretched to 8 bits",
            stacklevel=2,
        )
    return (image >> (bits - 8)).astype(np.uint8)
