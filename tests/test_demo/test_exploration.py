"""Levels, paths and drawings of the explorer, compared with loops over pixels and cells."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from exploration import (
    FRAME,
    MARK,
    OVERLAYS,
    PANEL_CELLS,
    PANEL_SIDE,
    draw_level,
    explore,
    light_up,
    trace,
)
from torch.nn import functional as F

from hcformer_mm.ops import soft_assign
from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.visualization import draw_boundaries, draw_panoptic, mean_colors

CLASSES = Classes(["cup", "field"], frozenset(["cup"]), [(200, 40, 40), (40, 160, 60)])


def assignments(height, width, levels):
    """A hierarchy over a finest map of this size, from random features."""
    generator = torch.Generator().manual_seed(0)
    maps = []
    for _ in range(levels + 1):
        features = torch.randn(1, 4, height, width, generator=generator, dtype=torch.float64)
        maps.append(F.normalize(features, dim=1))
        height, width = (height + 1) // 2, (width + 1) // 2
    return [soft_assign(fine, coarse, 0.5)[0] for fine, coarse in itertools.pairwise(maps)]


def exploration(size=(24, 32), *, input_size=None, stride=4, padding=(0, 0), levels=3):
    """A random image whose left half is a cup, the right one a field and the last row void."""
    input_size = input_size or size
    image = np.random.default_rng(0).integers(256, size=(*size, 3), dtype=np.uint8)
    segments = np.zeros(size, np.int64)
    segments[:, size[1] // 2 :] = 1
    segments[-1] = 7
    rows, cols = (-(-side // stride) for side in input_size)
    return explore(
        image,
        assignments(rows + padding[0], cols + padding[1], levels),
        stride=stride,
        input_size=input_size,
        classes=CLASSES,
        prediction=Panoptic(segments, {0: 0, 1: 1}),
        confidence=np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size),
    )


def best_parent(assignment, row, col):
    """Candidate inside the map with the largest weight of a cell."""
    rows, cols = -(-assignment.shape[1] // 2), -(-assignment.shape[2] // 2)
    best = None
    for k in range(9):
        place = (row // 2 + k // 3 - 1, col // 2 + k % 3 - 1)
        weight = float(assignment[k, row, col])
        inside = 0 <= place[0] < rows and 0 <= place[1] < cols
        assert inside or weight == 0
        if inside and (best is None or weight > best[0]):
            best = (weight, place)
    return best[1]


SIZES = [
    dict(size=(24, 32)),
    dict(size=(19, 7), stride=2),
    dict(size=(20, 30), input_size=(41, 61), padding=(3, 2)),
    dict(size=(1, 1), stride=1, levels=1),
    dict(size=(1, 30)),
    dict(size=(70, 90), input_size=(33, 43), stride=8, levels=2),
]


@pytest.mark.parametrize("options", SIZES, ids=str)
def test_path_and_maps_are_those_of_a_loop(options):
    seen = exploration(**options)
    height, width = seen.image.shape[:2]
    stride = options.get("stride", 4)
    input_size = options.get("input_size") or options["size"]
    random = np.random.default_rng(0)
    pixels = [(0, 0), (height - 1, width - 1), (0, width - 1), (height - 1, 0)]
    pixels += zip(random.integers(height, size=30), random.integers(width, size=30), strict=True)
    for y, x in pixels:
        # Exact in integers: the center of the pixel in the input of the network.
        cell = (
            (2 * int(y) + 1) * input_size[0] // (2 * height * stride),
            (2 * int(x) + 1) * input_size[1] // (2 * width * stride),
        )
        steps = trace(seen, (y, x))
        assert len(steps) == seen.num_levels == len(seen.assignments)
        assert seen.maps[0][y, x] == cell[0] * seen.assignments[0].shape[2] + cell[1]
        for level, step in enumerate(steps, start=1):
            assignment = seen.assignments[level - 1]
            assert step.level == level
            assert step.cell == cell
            assert step.candidates == (cell[0] // 2 - 1, cell[1] // 2 - 1)
            weights = assignment[:, cell[0], cell[1]].numpy()
            assert np.array_equal(step.weights.ravel(), weights)
            assert step.weights.sum() == pytest.approx(1)
            for i, j in itertools.product(range(3), range(3)):
                place = (step.candidates[0] + i, step.candidates[1] + j)
                inside = 0 <= place[0] < step.size[0] and 0 <= place[1] < step.size[1]
                assert step.inside[i, j] == inside
            cell = best_parent(assignment, *cell)
            assert step.chosen == cell
            assert seen.maps[level][y, x] == cell[0] * step.size[1] + cell[1]


def test_counts():
    seen = exploration((24, 32))
    assert seen.counts() == tuple(len(set(level.ravel().tolist())) for level in seen.maps)
    assert seen.counts()[0] == 6 * 8
    assert seen.counts()[-1] == 3
    # Without a prediction there are no segments.
    maps = explore(
        np.zeros((24, 32, 3), np.uint8),
        assignments(6, 8, 2),
        stride=4,
        input_size=(24, 32),
        classes=CLASSES,
    ).maps
    assert len(maps) == 3


@pytest.mark.parametrize("size", [(2, 4), (24, 32), (600, 800), (3000, 2000)])
def test_images_are_shown_at_a_handy_size(size):
    stride = max(1, max(size) // 64)
    seen = exploration(size, stride=stride, levels=2)
    height, width = seen.image.shape[:2]
    assert 640 <= max(height, width) <= 1440
    assert height / width == pytest.approx(size[0] / size[1], rel=0.01)
    assert {level.shape for level in seen.maps} == {(height, width)}
    # The prediction is resized with the image.
    assert (seen.prediction.segments[:, : width // 2 - 2][: height // 2] == 0).all()
    assert (seen.prediction.segments[:, width // 2 + 2 :][: height // 2] == 1).all()


def test_opacity_blends_overlay_and_image(monkeypatch):
    monkeypatch.setattr("exploration.SHOWN_SIDE", 160)
    seen = exploration()
    for level, overlay in itertools.product(range(5), OVERLAYS):
        full = draw_level(seen, level, overlay).astype(float)
        half = draw_level(seen, level, overlay, opacity=0.5)
        assert np.array_equal(draw_level(seen, level, overlay, opacity=0), seen.image)
        assert np.abs(half - (full + seen.image) / 2).max() <= 0.5


def test_overlays(monkeypatch):
    monkeypatch.setattr("exploration.SHOWN_SIDE", 160)
    seen = exploration()
    for level, labels in enumerate(seen.maps):
        drawn = {overlay: draw_level(seen, level, overlay) for overlay in OVERLAYS}
        assert np.array_equal(drawn["boundaries"], draw_boundaries(seen.image, labels))
        assert np.array_equal(drawn["mean colors"], mean_colors(seen.image, labels))
        for label in np.unique(labels):
            assert len(np.unique(drawn["random colors"][labels == label], axis=0)) == 1
        segments = draw_panoptic(seen.image, seen.prediction, CLASSES, opacity=1)
        changed = (drawn["prediction"] != segments).any(-1)
        # The boundaries of the level over the segments; the segments have outlines of their own.
        lines = (drawn["boundaries"] != seen.image).any(-1)
        assert changed.any() == (level < 4 and len(np.unique(labels)) > 1)
        assert (lines | ~changed).all()
        # From blue to yellow.
        inside = drawn["confidence"][~lines].astype(int)
        assert inside[0, 2] > inside[0, 0] and inside[-1, 0] > inside[-1, 2]


def test_selected_pixel_is_marked_and_its_cluster_outlined():
    seen = exploration()
    pixel = (401, 333)
    for level, labels in enumerate(seen.maps):
        without = draw_level(seen, level, "mean colors")
        drawn = draw_level(seen, level, "mean colors", pixel=pixel)
        changed = (drawn != without).any(-1)
        near = np.hypot(*(np.indices(changed.shape) - np.reshape(pixel, (2, 1, 1)))) < 20
        mask = (labels == labels[pixel]).astype(np.uint8)
        around = np.ones((7, 7), np.uint8)
        outline = (cv2.dilate(mask, around) > 0) & (cv2.dilate(1 - mask, around) > 0)
        assert not (changed & ~near & ~outline).any()
        # One cluster that fills the image has no outline.
        white = (drawn == 255).all(-1) & ~near
        assert (white.sum() > 50) == (not mask.all())
        assert (drawn[near] == MARK).all(-1).any()


@pytest.mark.parametrize("level", range(5))
def test_lit_cluster_keeps_its_colors(level):
    seen = exploration((24, 32))
    green = np.zeros_like(seen.image)
    green[...] = (40, 200, 60)
    seen = replace(seen, image=green)
    pixel = (401, 333)
    panel = light_up(seen, level, pixel)
    assert panel.shape == (270, PANEL_SIDE, 3)
    lit = (panel == (40, 200, 60)).all(-1)
    # What is not lit is gray; lines and the mark are the rest.
    gray = (panel == panel[..., :1]).all(-1) & (panel[..., 0] > 40) & (panel[..., 0] < 80)
    assert (lit | gray).mean() > 0.75
    # The cluster's share of the cut-out is lit, but for thin lines.
    cells = PANEL_CELLS * 2**level / 6  # of 6x8 cells in all
    share = 1 if level == 4 else min(1, cells)
    part = [slice(0, side) for side in seen.maps[0].shape]
    if share < 1:
        sides = [round(side * share) for side in seen.maps[0].shape]
        starts = [p - s // 2 for p, s in zip(pixel, sides, strict=True)]
        part = [slice(a, a + s) for a, s in zip(starts, sides, strict=True)]
    labels = seen.maps[level]
    expected = (labels[tuple(part)] == labels[pixel]).mean()
    assert lit.mean() == pytest.approx(expected, abs=0.12)
    assert lit.mean() <= expected + 0.01


def test_panels_come_nearer_at_finer_levels():
    """A cell of each level is drawn at the same size, until the whole image fits."""
    seen = exploration((512, 640), stride=4, levels=3)
    pixel = (500, 700)
    black = replace(seen, image=np.zeros_like(seen.image))
    zoom = PANEL_SIDE * 512 / 640 / PANEL_CELLS  # pixels of a cell
    for level in (1, 2, 3):
        panel = light_up(black, level, pixel)
        frame = (panel == FRAME).all(-1)
        rows, cols = np.nonzero(frame)
        for extent in (np.ptp(rows), np.ptp(cols)):
            assert extent == pytest.approx(3 * zoom, abs=3)
    for level in (0, 4):
        assert not (light_up(black, level, pixel) == FRAME).all(-1).any()


def test_frame_lies_on_the_candidates():
    """In a panel of the whole image, the frame lies on the cells of the map."""
    seen = exploration((24, 32), levels=3)
    pixel = (401, 333)
    panel = light_up(replace(seen, image=np.zeros_like(seen.image)), 2, pixel)
    rows, cols = np.nonzero((panel == FRAME).all(-1))
    step = trace(seen, pixel)[1]
    cell = 4 * 4 * PANEL_SIDE / 32  # stride 4, level 2, in pixels of the panel
    top, left = (max(0, place * cell) for place in step.candidates)
    bottom, right = (
        min(edge, (place + 3) * cell)
        for place, edge in zip(step.candidates, panel.shape, strict=False)
    )
    assert (rows.min(), rows.max()) == pytest.approx((top, bottom), abs=2)
    assert (cols.min(), cols.max()) == pytest.approx((left, right), abs=2)


@pytest.mark.parametrize("options", SIZES, ids=str)
def test_panels_of_all_sizes(options):
    seen = exploration(**options)
    height, width = seen.image.shape[:2]
    for level, pixel in itertools.product(
        range(len(seen.maps)), [(0, 0), (height - 1, width - 1), (height // 2, width // 2)]
    ):
        panel = light_up(seen, level, pixel)
        assert max(panel.shape[:2]) == PANEL_SIDE
        assert panel.shape[0] / panel.shape[1] == pytest.approx(height / width, rel=0.1)
        draw_level(seen, level, "boundaries", pixel=pixel)


def test_half_precision():
    single = exploration()
    half = explore(
        single.image,
        [assignment.half() for assignment in single.assignments],
        stride=120,
        input_size=single.image.shape[:2],
        classes=CLASSES,
    )
    assert trace(half, (3, 4))[0].weights.sum() == pytest.approx(1, abs=1e-2)


def test_wrong_requests():
    seen = exploration()
    height, width = seen.image.shape[:2]
    with pytest.raises(ValueError, match="a level from 0 to 4, got 5"):
        draw_level(seen, 5, "boundaries")
    with pytest.raises(ValueError, match="a level from 0 to 4, got -1"):
        light_up(seen, -1, (0, 0))
    with pytest.raises(ValueError, match=r"as overlay, got 'colors'"):
        draw_level(seen, 1, "colors")
    with pytest.raises(ValueError, match=r"opacity from 0 to 1, got 1\.5"):
        draw_level(seen, 1, "boundaries", opacity=1.5)
    for pixel in [(height, 0), (0, width), (-1, 0)]:
        for call in (trace, lambda *given: light_up(given[0], 1, given[1])):
            with pytest.raises(ValueError, match=rf"of an image of {height}x{width}, got"):
                call(seen, pixel)
    with pytest.raises(ValueError, match="the model made none"):
        draw_level(replace(seen, prediction=None), 1, "prediction")
    with pytest.raises(ValueError, match="expected a confidence to draw, and the model made none"):
        draw_level(replace(seen, confidence=None), 1, "confidence")
    with pytest.raises(ValueError, match=r"image's size \(24, 32\), got \(24, 31\)"):
        explore(
            np.zeros((24, 32, 3), np.uint8),
            assignments(6, 8, 1),
            stride=4,
            input_size=(24, 32),
            classes=CLASSES,
            prediction=Panoptic(np.zeros((24, 31), np.int64), {}),
        )
