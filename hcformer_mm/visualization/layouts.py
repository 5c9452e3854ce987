"""Sheets that show how one image was clustered and segmented, in several layouts.

The columns of a sheet are the levels of the hierarchy, finest first, and one more column for the
image as a whole.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..evaluation.functional import (
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
class Layout:
    """What a sheet shows, and where.

    Attributes:
        levels: Rows of the columns of the levels: ``'boundaries'``, ``'errors'`` (undersegmentation
            in red), ``'random'`` and ``'means'`` (clusters in random and in mean colors).
        whole: The column of the whole image: ``'image'``, ``'prediction'``, ``'truth'``,
            ``'oracle'`` (the coarsest clusters, labeled as well as they can be) and
            ``'hierarchy'`` (boundaries of all levels). It has at most as many rows.
        whole_first: Whether this column stands left of the levels, or right of them.

    What needs a ground truth or a prediction is left out where there is none.
    """

    levels: tuple[str, ...]
    whole: tuple[str, ...]
    whole_first: bool = False


LAYOUTS: Mapping[str, Layout] = {
    "full": Layout(
        levels=("boundaries", "errors", "random", "means"),
        whole=("image", "prediction", "truth", "oracle", "hierarchy"),
        whole_first=True,
    ),
    "figure-5": Layout(levels=("boundaries", "errors"), whole=("truth", "prediction")),
    "figure-III": Layout(levels=("boundaries", "errors"), whole=("prediction", "truth")),
    "figure-IV": Layout(levels=("random", "boundaries"), whole=("prediction", "truth")),
}
"""Everything, and the layouts of Figures 5, III and IV of the paper."""


def cluster_sheet(
    image: RGBImage,
    clusters: Sequence[Labels],
    *,
    classes: Classes,
    prediction: Panoptic | None = None,
    ground_truth: Panoptic | None = None,
    layout: str | Layout = "full",
    side: int = 1280,
) -> RGBImage:
    """One sheet that shows how an image was segmented, level by level, and where it went wrong.

    Under each level stand its scores, in percent: undersegmentation error (of Neubert and Protzel,
    which the red pixels make up), achievable segmentation accuracy and boundary recall; without
    ground truth the explained variation. See :mod:`hcformer_mm.evaluation.functional.superpixels`.

    Args:
        image: The image, ``(H, W, 3)``.
        clusters: For each level, finest first, ``(H, W)`` labels from 0.
        classes: Names and colors of the classes.
        prediction: What the model made of the image.
        ground_truth: What is there.
        layout: One of :data:`LAYOUTS`, or another.
        side: Longer side of each panel in pixels, about: small images are enlarged by an integer,
            large ones are divided by one.

    Raises:
        ValueError: There is no such layout, no cluster, or a map is not of the image's size.
    """
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise ValueError(f"expected a layout out of {', '.join(LAYOUTS)}, got {layout!r}")
        layout = LAYOUTS[layout]
    if not clusters:
        raise ValueError("expected the labels of one level at least, got none")
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


@dataclass(frozen=True)
class _Drawing:
    """The panels of one image. What is computed is computed at the image's own size."""

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
        """A panel of one level; the first of its column bears its title."""
        draw, title = _LEVEL_PANELS[kind]
        panel = draw(self, self.clusters[index])
        if not titled:
            return Panel(panel, title)
        number = len(np.unique(self.clusters[index]))
        return Panel(panel, f"Level {index + 1}", f"{number:,} clusters")

    def whole(self, kind: str) -> Panel | None:
        """A panel of the whole image, if what it shows is known."""
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
            void = int(self.truth.segments.min()) - 1
            best = majority_map(
                self.clusters[-1], self.truth.segments, ignore=self.truth.ignore, void=void
            )
            title, note = "Best labeling", f"of the clusters of level {len(self.clusters)}"
            return replace(self._segments(title, replace(self.truth, segments=best)), note=note)
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

    def boundaries(self, labels: Labels) -> RGBImage:
        return draw_boundaries(self.large, resize_map(labels, self.size), halo=True)

    def errors(self, labels: Labels) -> RGBImage:
        assert self.truth is not None
        errors = undersegmentation_map(labels, self.truth.segments, ignore=self.truth.ignore)
        return draw_errors(self.large, resize_map(errors, self.size))

    def random(self, labels: Labels) -> RGBImage:
        return resize_map(random_colors(labels), self.size)

    def means(self, labels: Labels) -> RGBImage:
        return resize_map(mean_colors(self.image, labels), self.size)

    def scores(self, index: int) -> list[Score]:
        """Scores of one level, as they are printed."""
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


_LEVEL_PANELS: Mapping[str, tuple[Callable[[_Drawing, Labels], RGBImage], str]] = {
    "boundaries": (_Drawing.boundaries, "Boundaries"),
    "errors": (_Drawing.errors, "Undersegmentation error"),
    "random": (_Drawing.random, "Random colors"),
    "means": (_Drawing.means, "Mean colors"),
}
