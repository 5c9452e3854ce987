"""Tiles: how a large image is cut, and which tile each pixel belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

TILE_OVERLAP = 128
"""Default minimum number of pixels that neighboring tiles share, in each direction."""
TILE_IOU_THR = 0.5
"""Default minimum IoU, in the strip that two tiles share, of two parts of one object."""


@dataclass(frozen=True)
class Tiling:
    r"""How a large image is cut into tiles, and how their results become one.

    All tiles have one size. They are spread evenly, so that neighbors share ``overlap`` pixels or
    more. Each goes through the test pipeline like an image of its own: if that resizes images to
    800×1333, so it does each tile. An image that fits a tile is not cut.

    **Pixels.** A pixel belongs to the tile in which it lies further from the border: the cut runs
    through the middle of what two tiles share.

    **Objects.** The *strip* of two neighbors is the middle of what they share, ``overlap`` pixels
    wide. An object of one tile and one of its neighbor, of one class, are parts of one object if
    the IoU of their masks within the strip is at least ``iou_thr``; if several could be, the pairs
    of the largest total IoU are taken (mmdet's panoptic segments and instances alike). Objects are
    the connected components of these pairs. An object consists of the pixels of its parts in their
    own tiles; its score is the mean of its parts' scores, weighted by these pixels. Stuff of one
    class is one segment, as in mmdet.

    **Class scores.** Logits of mmseg's models are blended across the strip by weights that fall
    linearly from one tile to the other. mmdet's semantic maps and confidences, which hold no
    logits, are taken pixel by pixel.

    Args:
        size: Height and width of a tile, or both as one number, in pixels of the image.
        overlap: Minimum number of pixels that neighbors share.
        iou_thr: See above; from 0, which no pair without a common pixel reaches, to 1.

    Raises:
        ValueError: An argument is out of range.
    """

    size: int | Sequence[int]
    overlap: int = TILE_OVERLAP
    iou_thr: float = TILE_IOU_THR

    def __post_init__(self) -> None:
        sides = [self.size] * 2 if isinstance(self.size, int | float | np.number) else self.size
        if len(sides) != 2 or not all(isinstance(side, int | np.integer) for side in sides):
            raise ValueError(
                f"expected tile_size as a side or as height and width, got {self.size}"
            )
        smallest = min(sides)
        if smallest < 2:
            raise ValueError(f"expected tile_size of at least 2 pixels a side, got {self.size}")
        whole = isinstance(self.overlap, int | np.integer)
        if not (whole and 1 <= self.overlap < smallest):
            raise ValueError(
                f"expected tile_overlap from 1 to {smallest - 1}, less than a side of a tile of "
                f"{self.shape}, got {self.overlap}; share an eighth of a tile, say"
            )
        if not 0 <= self.iou_thr <= 1:
            raise ValueError(f"expected tile_iou_thr from 0 to 1, got {self.iou_thr}")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a tile."""
        height, width = [self.size] * 2 if isinstance(self.size, int | np.integer) else self.size
        return height, width


@dataclass(frozen=True)
class Span:
    """One side of a tile: what it covers of the rows, or of the columns, of an image.

    Attributes:
        index: Number of the tile along this side.
        whole: What the tile covers.
        owned: What belongs to it.
        before: The strip that it shares with the tile before, if there is one.
        after: The strip that it shares with the next tile, if there is one.
    """

    index: int
    whole: slice
    owned: slice
    before: slice | None
    after: slice | None

    @property
    def used(self) -> slice:
        """What the tile covers, up to the far ends of its strips."""
        return slice(
            self.before.start if self.before else self.whole.start,
            self.after.stop if self.after else self.whole.stop,
        )

    def within(self, part: slice) -> slice:
        """A part of the image as a part of the tile."""
        return slice(part.start - self.whole.start, part.stop - self.whole.start)

    def weights(self) -> Tensor:
        """Weight of each position of ``used``; the weights of all tiles sum to 1."""
        used = self.used
        weights = torch.ones(used.stop - used.start)
        for strip, falls in ((self.before, False), (self.after, True)):
            if strip is not None:
                width = strip.stop - strip.start
                ramp = (torch.arange(width) + 0.5) / width
                place = slice(strip.start - used.start, strip.stop - used.start)
                weights[place] = 1 - ramp if falls else ramp
        return weights


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Spread tiles evenly along a side of an image.

    Args:
        length: Length of the side.
        tile: Length of a tile; a shorter side is one tile.
        overlap: Minimum number of positions that neighbors share.

    Returns:
        The fewest tiles that cover the side. Strips are ``overlap`` wide, or narrower if they would
        reach a tile that is no neighbor.
    """
    tile = min(tile, length)
    last = -(-(length - tile) // (tile - overlap)) if length > tile else 0
    starts = [number * (length - tile) // max(last, 1) for number in range(last + 1)]
    cuts = [(left + tile + right) // 2 for left, right in pairwise(starts)]
    width = min([overlap, *(right - left for left, right in pairwise(cuts))])
    strips = [slice(cut - width // 2, cut - width // 2 + width) for cut in cuts]
    ends = [0, *cuts, length]
    return [
        Span(
            number,
            whole=slice(start, start + tile),
            owned=slice(ends[number], ends[number + 1]),
            before=strips[number - 1] if number else None,
            after=strips[number] if number < last else None,
        )
        for number, start in enumerate(starts)
    ]


@dataclass(frozen=True)
class Tile:
    """A tile of an image: slices of rows and columns of the image, or of the tile (``within``)."""

    rows: Span
    columns: Span

    @property
    def whole(self) -> tuple[slice, slice]:
        """All its pixels in the image."""
        return self.rows.whole, self.columns.whole

    @property
    def owned(self) -> tuple[slice, slice]:
        """The pixels of the image that belong to it."""
        return self.rows.owned, self.columns.owned

    def within(self, rows: slice, columns: slice) -> tuple[Any, ...]:
        """Index of a part of the image in maps ``(…, h, w)`` of the tile."""
        return ..., self.rows.within(rows), self.columns.within(columns)
