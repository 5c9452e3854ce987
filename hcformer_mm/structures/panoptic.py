"""Panoptic segmentation of one image, and the names and colors of its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import Labels, Mask, RGBImage
from .palette import distinct_colors


@dataclass(frozen=True)
class Panoptic:
    """Segmentation of one image: panoptic, or derived from instances or semantic regions.

    Attributes:
        segments: Segment id of each pixel, ``(H, W)``.
        categories: Class index of every segment id; other ids are void.
        ignore: Pixels of unknown class, which scores leave out, bool ``(H, W)``; None if there are
            none.
        scores: Confidence, 0 to 1, of each segment id of which it is known.
    """

    segments: Labels
    categories: Mapping[int, int]
    ignore: Mask | None = None
    scores: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Classes:
    """Names and colors of the classes of a dataset.

    Attributes:
        names: Name of each class.
        things: Names of the classes with countable objects. If empty, every segment is an object.
        palette: RGB color of each class; None for :func:`~.palette.distinct_colors`.
        font: Font file in which drawings write the names; by default DejaVu Sans, or for names with
            other characters a font of the system that has them.
    """

    names: Sequence[str]
    things: frozenset[str] = frozenset()
    palette: Sequence[Sequence[int]] | None = None
    font: str | None = None

    @classmethod
    def from_metainfo(cls, meta: Mapping[str, Any] | None) -> "Classes":
        """Read the ``metainfo`` of a dataset of mmdet or mmseg.

        Raises:
            ValueError: ``meta`` is empty or has no classes.
        """
        if not meta or not meta.get("classes"):
            raise ValueError(f"expected metainfo with 'classes', got {meta}")
        names, palette = meta["classes"], meta.get("palette")
        # Datasets keep the palette of their type when their classes are replaced.
        fits = isinstance(palette, list) and len(palette) >= len(names)
        return cls(
            names=names,
            things=frozenset(meta.get("thing_classes", ())),
            palette=palette if fits else None,
        )

    def is_object(self, category: int) -> bool:
        """Whether each segment of a class is an object of its own."""
        return not self.things or self.names[category] in self.things

    def colors(self) -> RGBImage:
        """RGB of each class, ``(K, 3)``."""
        if self.palette is not None:
            return np.asarray(self.palette, dtype=np.uint8)
        return distinct_colors(len(self.names))
