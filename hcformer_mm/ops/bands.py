"""Bands of rows: parts of a map that fit the processor's cache.

Norms, projections and similarities pass over the channels of every pixel several times. Done for
the whole map, each pass reads and writes main memory; done band by band, only the first does.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CACHED = 2**20
"""Numbers of a map in a band that is worked on: 4 MiB of float32."""


def bands(
    shape: Sequence[int], device: torch.device, height: int = 1, copies: int = 1
) -> list[slice]:
    """Rows of every band of a map, from the first to the last.

    Args:
        shape: Of the largest map that is worked on, ``(B, H, W, C)``.
        device: Where it is.
        height: Bands begin at multiples of this number of rows.
        copies: How many times as many numbers as that map has are worked on.

    Returns:
        Slices of dim 1; a single one where bands are no use: on a GPU, which idles unless it gets
        the whole map, and in a model that is compiled or exported.
    """
    batch, rows, width, channels = shape
    if device.type != "cpu" or torch.compiler.is_compiling():
        return [slice(0, rows)]
    step = max(1, CACHED // max(1, batch * height * width * channels * copies)) * height
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def gradients_with_graph(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    grad: Tensor,
) -> list[Tensor | None]:
    """Gradients of a function that can be differentiated again.

    For backward passes written by hand, which autograd does not see into.

    Args:
        function: Of ``inputs``, in operations that autograd knows.
        inputs: As saved in the forward pass.
        wanted: Which of them need a gradient.
        grad: Gradient of the function's value.

    Returns:
        A gradient for every input, None for those not wanted.
    """
    chosen = [x for x, needed in zip(inputs, wanted, strict=True) if needed]
    results = iter(torch.autograd.grad(function(*inputs), chosen, grad, create_graph=True))
    return [next(results) if needed else None for needed in wanted]
