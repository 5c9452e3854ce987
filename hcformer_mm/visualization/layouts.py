"""Sheets that show how one image was clustered and segmented, in several layouts.

A sheet has a column for each level of the hierarchy, finest first, and one for the whole image.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..evaluation.functional.label_maps import unique_inverse
from ..evaluation.functional.superpixels import (
    boundary_scores,
    explained_variation,
    majority_map,
    overlaps,
    undersegmentation_map,
)
from ..structures.arrays import Labels, RGBImage
from ..structures.panoptic import Classes, Panoptic
from .arrays import check_same_size, panel_size, resize_image, resize_map
from .clusters import draw_boundaries, draw_errors, draw_hierarchy, mean_colors, random_colors
from .panels import Panel, Score, sheet, text_height
from .panoptic import draw_panoptic


@dataclass(frozen=True)
class SheetLayout:
    """Panels of a sheet; those that need a missing ground truth or prediction are left out.

    Attributes:
        levels: Rows of the level columns: ``'boundaries'``, ``'errors'`` (undersegmentation in
            red), ``'random'`` and ``'means'`` (clusters in random and in mean colors).
        whole: Rows of the column of the whole image: ``'image'``, ``'prediction'``, ``'truth'``,
            ``'oracle'`` (the best labeling of the coarsest clusters) and ``'hierarchy'``
            (boundaries of all levels). Rows beyond those of the levels are cut off.
        whole_first: Whether this column is left of the levels instead of right.
    """

    levels: tuple[str, ...]
    whole: tuple[str, ...]
    whole_first: bool = False


LAYOUTS: Mapping[str, SheetLayout] = {
    "full": SheetLayout(
        levels=("boundaries", "errors", "random", "means"),
        whole=("image", "prediction", "truth", "oracle", "hierarchy"),
        whole_first=True,
    ),
    "figure-5": SheetLayout(levels=("boundaries", "errors"), whole=("truth", "prediction")),
    "figure-III": SheetLayout(levels=("boundaries", "errors"), whole=("prediction", "truth")),
    "figure-IV": SheetLayout(levels=("random", "boundaries"), whole=("prediction", "truth")),
}
"""All panels, and the layouts of Figures 5, III and IV of the paper."""


def cluster_sheet(
    image: RGBImage,
    clusters: Sequence[Labels],
    *,
    classes: Classes,
    prediction: Panoptic | None = None,
    ground_truth: Panoptic | None = None,
    layout: str | SheetLayout = "full",
    side: int = 1280,
) -> RGBImage:
    """Draw a sheet that shows the clusters of every level, their errors, and the segments.

    Each level has its scores underneath, in percent: undersegmentation error (of Neubert and
    Protzel, made up by the red pixels), achievable segmentation accuracy and boundary recall, or
    explained variation without ground truth; see
    :mod:`hcformer_mm.evaluation.functional.superpixels`.

    Args:
        image: The image, ``(H, W, 3)``.
        clusters: ``(H, W)`` labels from 0 of each level, finest first.
        classes: Names and colors of the classes.
        prediction: The model's prediction.
        ground_truth: The ground truth.
        layout: Name of one of :data:`LAYOUTS`, or a layout.
        side: Approximate longer side of each panel in pixels; see
            :func:`~hcformer_mm.visualization.arrays.panel_size`.

    Returns:
        The sheet, RGB uint8 ``(H', W', 3)``.

    Raises:
        ValueError: The layout is unknown, there are no clusters, or a map is not of the image's
            size.
    """
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise ValueError(f"expected a layout among {', '.join(LAYOUTS)}, got {layout!r}")
        layout = LAYOUTS[layout]
    if not clusters:
        raise ValueError("expected labels of at least one level, got none")
    given = [one.segments for one in (prediction, ground_truth) if one is not None]
    for labels in (*clusters, *given):
        check_same_size(image, labels)
    drawing = _Drawing(image, clusters, classes, prediction, ground_truth, side)
    rows = [kind for kind in layout.levels if kind != "errors" or ground_truth is not None]
    whole = [panel for kind in layout.whole if (panel := drawing.whole(kind)) is not None]
    columns = [
        [drawing.level(i, kind, titled=j == 0) for j, kind in enumerate(rows)]
        for i in range(len(clusters))
    ]
    margin = [drawing.scores(i) for i in range(len(clusters))]
    if whole:
        place = 0 if layout.whole_first else len(columns)
        columns.insert(place, whole[: len(rows)])
        margin.insert(place, [])
    return sheet(list(itertools.zip_longest(*columns)), margin=margin)


_LEVEL_TITLES = {
    "boundaries": "Boundaries",
    "errors": "Undersegmentation error",
    "random": "Random colors",
    "means": "Mean colors",
}


@dataclass(frozen=True)
class _Drawing:
    """Draws the panels of one image; scores refer to the size of the image, not of the panels."""

    image: RGBImage
    clusters: Sequence[Labels]
    classes: Classes
    prediction: Panoptic | None
    truth: Panoptic | None
    side: int

    @cached_property
    def size(self) -> tuple[int, int]:
        return panel_size(self.image.shape, target=self.side)

    @cached_property
    def large(self) -> RGBImage:
        return resize_image(self.image, self.size)

    def level(self, index: int, kind: str, *, titled: bool) -> Panel:
        """Panel of one level; the first of a column has the level as its title."""
        labels, title = self.clusters[index], _LEVEL_TITLES[kind]
        drawn = self._level_image(kind, labels)
        if not titled:
            return Panel(drawn, title)
        return Panel(drawn, f"Level {index + 1}", f"{len(np.unique(labels)):,} clusters")

    def _level_image(self, kind: str, labels: Labels) -> RGBImage:
        if kind == "boundaries":
            return draw_boundaries(self.large, resize_map(labels, self.size), halo=True)
        if kind == "errors" and self.truth is not None:
            errors = undersegmentation_map(labels, self.truth.segments, ignore=self.truth.ignore)
            return draw_errors(self.large, resize_map(errors, self.size))
        colors = random_colors(labels) if kind == "random" else mean_colors(self.image, labels)
        return resize_map(colors, self.size)

    def whole(self, kind: str) -> Panel | None:
        """Panel of the whole image; None if its prediction or ground truth is missing."""
        if kind == "image":
            return Panel(self.large, "Image", f"{self.image.shape[1]}×{self.image.shape[0]}")
        if kind == "hierarchy":
            levels = [resize_map(level, self.size) for level in self.clusters]
            return Panel(draw_hierarchy(self.large, levels), "Hierarchy", "all levels")
        if kind == "prediction" and self.prediction is not None:
            return self._segments("Prediction", self.prediction)
        if kind == "truth" and self.truth is not None:
            return self._segments("Ground truth", self.truth)
        if kind == "oracle" and self.truth is not None:
            ids, segments = unique_inverse(self.truth.segments)
            best = majority_map(self.clusters[-1], segments, ignore=self.truth.ignore, void=-1)
            known = self.truth.categories
            categories = {i: known[one] for i, one in enumerate(ids.tolist()) if one in known}
            title, note = "Best labeling", f"of the clusters of level {len(self.clusters)}"
            return replace(self._segments(title, Panoptic(best, categories)), note=note)
        return None

    def _segments(self, title: str, panoptic: Panoptic) -> Panel:
        drawn = draw_panoptic(
            self.large,
            self._enlarged(panoptic),
            self.classes,
            like=None if self.truth is None else self._enlarged(self.truth),
            text=round(1.1 * text_height(self.size[1])),
        )
        number = len(panoptic.categories)
        note = f"{number:,} segment{'s' * (number != 1)}" if number else "nothing found"
        return Panel(drawn, title, note)

    def _enlarged(self, panoptic: Panoptic) -> Panoptic:
        return replace(panoptic, segments=resize_map(panoptic.segments, self.size))

    def scores(self, index: int) -> list[Score]:
        """Scores of one level as printed."""
        labels, truth = self.clusters[index], self.truth
        if truth is None:
            return [("Explained variation", _percent(explained_variation(labels, self.image)))]
        table = overlaps(labels, truth.segments, ignore=truth.ignore)
        recall, _ = boundary_scores(labels, truth.segments, ignore=truth.ignore)
        return [
            ("Underseg. error", _percent(table.undersegmentation_error())),
            ("Achievable acc.", _percent(table.achievable_segmentation_accuracy())),
            ("Boundary recall", _percent(recall)),
        ]


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"
