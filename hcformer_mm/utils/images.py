"""Pixels of image files as 8 bits."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Reduce the pixels of an image to 8 bits.

    16-bit files often hold the 10, 12 or 14 bits of a sensor. Their bits are counted by the largest
    value of the file, and the upper 8 are kept; OpenCV keeps those of 16 bits, which are black. A
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
        warnings.warn(
            f"an image has 16-bit pixels of at most {high}: they are read as {bits} bits",
            stacklevel=2,
        )
    return (image >> (bits - 8)).astype(np.uint8)
