"""Bands of rows that fit a CPU's cache.

Norms, projections and similarities read the channels of every pixel several times. Over a whole map
each pass goes through main memory; band by band, only the first does.
"""

import torch
from torch import Tensor

BAND_NUMEL = 2**20
"""Elements of a map in one band: 4 MiB of float32."""
BACKWARD_BAND_NUMEL = 2**19
"""Elements of a map in one band of a backward pass, which holds gradients as well."""


def is_eager_cpu(x: Tensor) -> bool:
    """Whether to use code tuned for CPUs: ``x`` is on a CPU, and no model is being recorded.

    Recording would unroll a loop over bands. Bands are too small to occupy a GPU.
    """
    return x.device.type == "cpu" and not is_recorded()


def is_recorded() -> bool:
    """Whether a model is being traced, compiled or exported."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def row_bands(rows: int, row_numel: int, band_numel: int, *, multiple: int = 1) -> list[slice]:
    """Split rows into bands of at most ``band_numel`` elements, but at least ``multiple`` rows.

    Args:
        rows: Number of rows.
        row_numel: Number of elements in one row.
        band_numel: Maximum number of elements in a band.
        multiple: The rows of every band but the last are a multiple of this number.

    Returns:
        Consecutive slices that cover the rows.
    """
    step = multiple * max(1, band_numel // max(1, row_numel * multiple))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def bands(x: Tensor, *, backward: bool = False) -> list[tuple[slice, slice]]:
    """Slices of dims 0 and 1 that cover a map band by band; see :func:`image_bands`.

    A map off the CPU, or in a model that is traced, compiled or exported, is a single band.

    Args:
        x: Map ``(B, H, W, C)``.
        backward: Whether gradients are computed beside the map.
    """
    batch, rows, width, channels = x.shape
    if not is_eager_cpu(x):
        return [(slice(0, batch), slice(0, rows))]
    numel = BACKWARD_BAND_NUMEL if backward else BAND_NUMEL
    return image_bands(batch, rows, width * channels, numel)


def image_bands(
    batch: int, rows: int, row_numel: int, band_numel: int
) -> list[tuple[slice, slice]]:
    """Split the rows of a batch of images into bands, the largest one first.

    Args:
        batch: Number of images.
        rows: Number of rows of an image.
        row_numel: Number of elements in one row.
        band_numel: Maximum number of elements in a band, but at least two rows.

    Returns:
        Slices of images and rows; each band starts at an even row. A band lies in one image, except
        that small images are a single band.
    """
    if batch * rows * row_numel <= band_numel:
        return [(slice(0, batch), slice(0, rows))]
    split = row_bands(rows, row_numel, band_numel, multiple=2)
    return [(slice(image, image + 1), band) for image in range(batch) for band in split]
