"""Pictures checked pixel by pixel where a pixel's value can be derived, by property elsewhere."""

import itertools

import numpy as np
import pytest
from skimage.color import rgb2lab

from hcformer_mm.visualization import (
    Classes,
    Panel,
    Panoptic,
    cluster_sheet,
    draw_boundaries,
    draw_panoptic,
    mean_colors,
    random_colors,
    resize_labels,
    sheet,
)
from hcformer_mm.visualization.drawing import BOUNDARY_COLOR, distinct_colors, enlarge, enlargement

RED = (255, 0, 0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def blocks(rows: int, cols: int, side: int) -> np.ndarray:
    """Label map of ``rows × cols`` square clusters."""
    return np.arange(rows * cols).reshape(rows, cols).repeat(side, 0).repeat(side, 1)


@pytest.mark.parametrize(
    ("width", "columns"), [(1, [3]), (2, [3, 4]), (3, [2, 3, 4]), (4, [2, 3, 4, 5])]
)
def test_boundary_lies_between_the_labels(
    rng: np.random.Generator, width: int, columns: list[int]
) -> None:
    image = picture(rng, 5, 9) // 2
    labels = np.zeros((5, 9), np.int64)
    labels[:, 4:] = 7  # the boundary runs between the columns 3 and 4
    expected = image.copy()
    expected[:, columns] = RED
    for map_ in (labels, labels.max() - labels):
        assert np.array_equal(draw_boundaries(image, map_, color=RED, width=width), expected)


def test_boundaries_of_small_clusters_are_thin() -> None:
    image = np.zeros((1280, 1280, 3), np.uint8)
    share = [
        (draw_boundaries(image, blocks(1280 // side, 1280 // side, side)) > 0).any(-1).mean()
        for side in (16, 32, 128)
    ]
    #   lines of 1, 2 and 4 pixels; 79, 39 and 9 inner boundaries in each direction
    line = [79 / 1280, 78 / 1280, 36 / 1280]
    assert share == pytest.approx([1 - (1 - x) ** 2 for x in line])


def test_no_boundary_in_one_cluster(rng: np.random.Generator) -> None:
    image = picture(rng, 4, 6)
    assert np.array_equal(draw_boundaries(image, np.full((4, 6), 3)), image)


def test_mean_colors_equal_loop(rng: np.random.Generator) -> None:
    image = picture(rng, 13, 17)
    labels = rng.integers(0, 6, (13, 17)) * 2  # with gaps
    result = mean_colors(image, labels)
    for label in np.unique(labels):
        expected = image[labels == label].astype(float).mean(0).round()
        assert (result[labels == label] == expected).all()


def test_random_colors_tell_neighbors_apart(rng: np.random.Generator) -> None:
    labels = rng.permutation(30 * 40).reshape(30, 40).repeat(2, 0).repeat(2, 1)
    result = random_colors(labels)
    lab = rgb2lab(result / 255.0)
    vertical = np.linalg.norm(lab[1:] - lab[:-1], axis=-1)[labels[1:] != labels[:-1]]
    horizontal = np.linalg.norm(lab[:, 1:] - lab[:, :-1], axis=-1)[labels[:, 1:] != labels[:, :-1]]
    assert min(vertical.min(), horizontal.min()) > 25  # about ten just noticeable differences
    # One colour for a cluster, and many colours in all.
    assert (result[::2, ::2] == result[1::2, 1::2]).all()
    assert len(np.unique(result.reshape(-1, 3), axis=0)) > 40


def test_random_colors_follow_the_seed() -> None:
    labels = blocks(6, 6, 2)
    assert np.array_equal(random_colors(labels, seed=3), random_colors(labels, seed=3))
    assert not np.array_equal(random_colors(labels, seed=3), random_colors(labels, seed=4))
    assert len(np.unique(random_colors(np.zeros((3, 3), int)).reshape(-1, 3), axis=0)) == 1


def test_distinct_colors_are_distinct() -> None:
    lab = rgb2lab(distinct_colors(40)[None] / 255.0)[0]
    for a, b in itertools.combinations(lab, 2):
        assert np.linalg.norm(a - b) > 15
    assert np.array_equal(distinct_colors(40)[:7], distinct_colors(7))
    assert distinct_colors(0).shape == (0, 3)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (14, 15), (20, 3), (13, 33)])
def test_resized_label_is_the_one_under_the_centre(
    rng: np.random.Generator, size: tuple[int, int]
) -> None:
    labels = rng.integers(0, 100, (7, 5))
    result = resize_labels(labels, size)
    assert result.shape == size
    for y, x in itertools.product(*map(range, size)):
        # Exact in integers: the centre y + 1/2 of a pixel lies at (2y + 1) · old / (2 · new).
        row, col = (2 * y + 1) * 7 // (2 * size[0]), (2 * x + 1) * 5 // (2 * size[1])
        assert result[y, x] == labels[row, col]


def test_enlargement() -> None:
    assert [enlargement((240, w), target=1280) for w in (320, 640, 1000, 4000)] == [4, 2, 1, 1]
    labels = blocks(3, 2, 1)
    assert np.array_equal(enlarge(labels, 4), blocks(3, 2, 4))
    flat = np.full((3, 5, 3), 77, np.uint8)
    assert np.array_equal(enlarge(flat, 3), np.full((9, 15, 3), 77))


@pytest.fixture
def scene() -> tuple[np.ndarray, Panoptic, Classes]:
    """Two cups and two patches of one field, and void, in five columns of 60 pixels."""
    segments = np.array([10, 20, 3, 7, 0])[None].repeat(100, 0).repeat(60, 1)
    panoptic = Panoptic(segments, {10: 0, 20: 0, 3: 1, 7: 1})
    classes = Classes(["cup", "field"], frozenset(["cup"]), [(200, 40, 40), (40, 160, 60)])
    return np.full((100, 300, 3), 128, np.uint8), panoptic, classes


def test_panoptic_colors(scene: tuple[np.ndarray, Panoptic, Classes]) -> None:
    image, panoptic, classes = scene
    drawn = draw_panoptic(image, panoptic, classes, opacity=0.5)
    first, second, field, same_field, void = drawn[10, 30::60]
    assert first.tolist() == [164, 84, 84]  # half (200, 40, 40), half grey
    assert field.tolist() == same_field.tolist() == [84, 144, 94]
    assert void.tolist() == [128, 128, 128]
    assert np.abs(first.astype(int) - second).max() > 10, "two objects look like one"
    assert (drawn[:, [59, 60, 119, 120, 179, 180]] == 255).all(), "no outline"


def test_panoptic_uses_no_color_of_the_picture(
    rng: np.random.Generator, scene: tuple[np.ndarray, Panoptic, Classes]
) -> None:
    _, panoptic, classes = scene
    drawn = draw_panoptic(picture(rng, 100, 300), panoptic, classes)
    void = drawn[:, 245:]
    assert (void == void[..., :1]).all()


def test_names_stand_in_their_segments(scene: tuple[np.ndarray, Panoptic, Classes]) -> None:
    image, panoptic, classes = scene
    nameless = Classes(["", ""], frozenset(), classes.palette)
    # Every object is named; the background of an object is its own colour with and without things.
    changed = draw_panoptic(image, panoptic, classes) != draw_panoptic(
        image, panoptic, Classes(["", "field"], frozenset([""]), classes.palette)
    )
    columns = np.flatnonzero(changed.any((0, 2)))
    assert set(columns // 60) == {0, 1}
    assert columns.min() > 5
    changed = draw_panoptic(image, panoptic, nameless) != draw_panoptic(
        image, panoptic, Classes(["", "field"], frozenset(), classes.palette)
    )
    assert set(np.flatnonzero(changed.any((0, 2))) // 60) == {2, 3}


def test_name_of_a_small_object_in_the_corner_is_whole() -> None:
    image = np.full((200, 300, 3), 100, np.uint8)

    def name_pixels(y: int, x: int) -> int:
        segments = np.zeros((200, 300), int)
        segments[y : y + 4, x : x + 4] = 1
        drawn = [
            draw_panoptic(image, Panoptic(segments, {1: 0}), Classes([name], palette=[(9, 9, 9)]))
            for name in ("cupboard", "")
        ]
        return int((drawn[0] != drawn[1]).any(-1).sum())

    inside = name_pixels(100, 150)
    assert inside > 100
    for corner in ((0, 0), (0, 296), (196, 0), (196, 296)):
        assert name_pixels(*corner) > 0.9 * inside


def test_sheet_places_panels(rng: np.random.Generator) -> None:
    images = [picture(rng, 40, 80) for _ in range(3)]
    panels = [Panel(image, f"Title {i}", "note") for i, image in enumerate(images)]
    result = sheet([[panels[0], None], [panels[1], panels[2]]])
    windows = np.lib.stride_tricks.sliding_window_view(result, (40, 80, 3))[:, :, 0]
    places = []
    for image in images:
        match = np.argwhere((windows[..., 0, 0, :] == image[0, 0]).all(-1))
        places += [(y, x) for y, x in match if np.array_equal(windows[y, x], image)]
    assert len(places) == 3
    (top, left), (below, left_again), (same_row, right) = places
    assert left == left_again
    assert below == same_row > top + 40
    assert right > left + 80
    # Titles stand above the panels; the empty place is white.
    assert (result[:top, left : left + 80] < 128).any()
    assert (result[: top + 40, right:] == 255).all()


def test_sheet_needs_panels_of_one_size(rng: np.random.Generator) -> None:
    panels = [Panel(picture(rng, 8, 9), "a"), Panel(picture(rng, 9, 9), "b")]
    with pytest.raises(ValueError, match=r"expected panels of one size, got \[\(8, 9\), \(9, 9\)"):
        sheet([panels])
    with pytest.raises(ValueError, match="no panel"):
        sheet([[None]])


def test_cluster_sheet_grows_with_what_is_known(
    rng: np.random.Generator, scene: tuple[np.ndarray, Panoptic, Classes]
) -> None:
    image, panoptic, classes = scene
    levels = [blocks(25, 75, 4), blocks(5, 15, 20)]
    small = cluster_sheet(image, levels, classes=classes, prediction=panoptic, factor=1)
    full = cluster_sheet(
        image, levels, classes=classes, prediction=panoptic, ground_truth=panoptic, factor=1
    )
    large = cluster_sheet(image, levels, classes=classes, prediction=panoptic, factor=2)
    assert small.shape[1] == full.shape[1] > 3 * 300
    assert 200 < small.shape[0] < full.shape[0] < 400
    assert large.shape[0] > 400
    # The finest level's yellow grid is drawn once, whatever the sheet's size.
    yellow = [(result == BOUNDARY_COLOR).all(-1).sum() for result in (small, full)]
    assert yellow[0] == yellow[1] > 1000


def test_wrong_arrays(rng: np.random.Generator) -> None:
    image = picture(rng, 4, 6)
    with pytest.raises(ValueError, match=r"expected labels of the picture's size \(4, 6\)"):
        draw_boundaries(image, np.zeros((4, 5), int))
    with pytest.raises(ValueError, match="expected a uint8 RGB picture"):
        mean_colors(image / 255.0, np.zeros((4, 6), int))
