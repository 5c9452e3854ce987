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


def is_recorded() -> bool:
    """Whether a model is being traced, compiled or exported."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def bands(x: Tensor, *, backward: bool = False) -> list[tuple[slice, slice]]:
    """Images and rows of every band of a map, from the first to the last.

    Args:
        x: Map ``(B, H, W, C)``.
        backward: Whether derivatives are worked on beside it.

    Returns:
        Slices of dims 0 and 1: some rows of an image, which lie together in memory and begin at an
        even one. A single band of everything where they are no use: for a small map, on a GPU,
        which idles unless it gets the whole map, and in a model that is recorded.
    """
    batch, rows, width, channels = x.shape
    cached = CACHED_BACKWARD if backward else CACHED
    if x.device.type != "cpu" or is_recorded() or x.numel() <= cached:
        return [(slice(0, batch), slice(0, rows))]
    step = 2 * max(1, cached // max(1, 2 * width * channels))
    return [
        (slice(image, image + 1), slice(start, min(start + step, rows)))
        for image in range(batch)
        for start in range(0, rows, step)
    ]
