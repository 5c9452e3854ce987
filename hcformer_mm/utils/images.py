"""Image files as pixels of 8 bits."""

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError


def decode_image(content: bytes, file: str | Path) -> NDArray[np.uint8]:
    """Decode an image as ``mmcv.imread`` does, but for pixels of 16 bits; see :func:`to_uint8`.

    Args:
        content: Bytes of the file.
        file: Its name, for errors.

    Returns:
        Pixels ``(H, W, 3)``, BGR, turned upright by the orientation of their EXIF data.

    Raises:
        ValueError: OpenCV cannot decode the file, the file is truncated, or its pixels are no
            integers of at most 16 bits.
    """
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
