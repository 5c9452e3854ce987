"""A segmentation of one image, and the names and colors of its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import Labels, Mask, RGBImage
from .palette import distinct_colors


@dataclass(frozen=True)
class Panoptic:
    """A segmentation of one image: panoptic, or what instances or classes amount to as such.

    Attributes:
        segments: ``(H, W)`` id of the segment that each pixel belongs to.
        categories: Index of the class of every segment id. Ids that are missing are void.
        ignore: ``(H, W)`` bool: pixels that scores leave out, as nobody knows what they are; None
            if there are none.
    """

    segments: Labels
    categories: Mapping[int, int]
    ignore: Mask | None = None


@dataclass(frozen=True)
class Classes:
    """How the classes of a data set are named and colored.

    Attributes:
        names: Name of each class.
        things: Names of those classes whose objects are countable. If there are none, every segment
            is taken for an object of its own.
        palette: RGB of each class; distinct colors are made up when it is None.
    """

    names: Sequence[str]
    things: frozenset[str] = frozenset()
    palette: Sequence[Sequence[int]] | None = None

    @classmethod
    def from_metainfo(cls, meta: Mapping[str, Any] | None) -> "Classes":
        """The classes that a dataset of either host names in its ``metainfo``.

        Raises:
            ValueError: It names none.
        """
        if not meta or not meta.get("classes"):
            raise ValueError(f"expected metainfo with 'classes', got {meta}")
        palette = meta.get("palette")
        return cls(
            names=meta["classes"],
            things=frozenset(meta.get("thing_classes", ())),
            palette=palette if isinstance(palette, list) else None,
        )

    def is_object(self, category: int) -> bool:
        """Whether segments of a class are told from each other."""
        return not self.things or self.names[category] in self.things

    def colors(self) -> RGBImage:
        """RGB of each class, ``(K, 3)``."""
        if self.palette is not None:
            return np.asarray(self.palette, dtype=np.uint8)
        return distinct_colors(len(self.names))
