"""Bands of rows: parts of a map that fit the processor's cache.

Norms, projections and similarities pass over the channels of every pixel several times. Done for
the whole map, each pass reads and writes main memory; done band by band, only the first does.
"""

import torch
from torch import Tensor

CACHED = 2**20
"""Numbers of a map in a band that is worked on: 4 MiB of float32."""
CACHED_BACKWARD = 2**19
"""The same where derivatives are worked on beside it."""


def bands(x: Tensor, *, backward: bool = False) -> list[slice]:
    """Rows of every band of a map, from the first to the last; they begin at even rows.

    Args:
        x: Map ``(B, H, W, C)``.
        backward: Whether derivatives are worked on beside it.

    Returns:
        Slices of dim 1; a single one where bands are no use: on a GPU, which idles unless it gets
        the whole map, and in a model that is compiled or exported.
    """
    batch, rows, width, channels = x.shape
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, rows)]
    cached = CACHED_BACKWARD if backward else CACHED
    step = 2 * max(1, cached // max(1, 2 * batch * width * channels))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
