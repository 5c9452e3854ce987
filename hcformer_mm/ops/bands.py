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

    Recording is tracing, compilation or export, which would unroll a loop over bands. Bands are too
    small to occupy a GPU.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and not recorded


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
    """Slices of dims 0 and 1 that cover a map band by band; each band starts at an even row.

    Args:
        x: Map ``(B, H, W, C)``.
        backward: Whether gradients are computed beside the map.

    Returns:
        Slices of images and rows. A band lies in one image, except that a small map is a single
        band, as is any map off the CPU or in a model that is traced, compiled or exported.
    """
    batch, rows, width, channels = x.shape
    numel = BACKWARD_BAND_NUMEL if backward else BAND_NUMEL
    if not is_eager_cpu(x) or x.numel() <= numel:
        return [(slice(0, batch), slice(0, rows))]
    split = row_bands(rows, width * channels, numel, multiple=2)
    return [(slice(image, image + 1), band) for image in range(batch) for band in split]
