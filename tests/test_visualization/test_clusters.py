"""Images of clusters, checked pixel by pixel where the value can be derived."""

import numpy as np
import pytest
from skimage.color import rgb2lab

from hcformer_mm.visualization import (
    draw_boundaries,
    draw_errors,
    draw_hierarchy,
    mean_colors,
    random_colors,
)
from hcformer_mm.visualization.clusters import BOUNDARY_COLOR, ERROR_COLOR

RED = (255, 0, 0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def random_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
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
    image = random_image(rng, 5, 9) // 2
    labels = np.zeros((5, 9), np.int64)
    labels[:, 4:] = 7  # the boundary runs between the columns 3 and 4
    expected = image.copy()
    expected[:, columns] = RED
    for map_ in (labels, labels.max() - labels):
        assert np.array_equal(draw_boundaries(image, map_, color=RED, width=width), expected)
    assert np.array_equal(draw_boundaries(image, 0 * labels, halo=True), image)


@pytest.mark.parametrize(("width", "dark"), [(1, []), (2, []), (3, [3, 7]), (6, [0, 1, 8, 9])])
def test_halo_darkens_both_sides_of_wide_lines(width: int, dark: list[int]) -> None:
    image = np.full((3, 11, 3), 100, np.uint8)
    labels = np.zeros((3, 11), np.int64)
    labels[:, 5:] = 1  # the boundary runs between the columns 4 and 5
    if width == 3:
        labels[:, 5] = 0  # and with an odd width, one further to the right
    drawn = draw_boundaries(image, labels, color=RED, width=width, halo=True)
    assert np.flatnonzero((drawn[0] == 60).all(-1)).tolist() == dark
    line = (drawn[0] == RED).all(-1)
    assert line.sum() == width
    assert (drawn[0, ~line & (drawn[0, :, 1] != 60)] == 100).all()


def test_boundaries_of_small_clusters_are_thin() -> None:
    image = np.zeros((1280, 1280, 3), np.uint8)
    share = [
        (draw_boundaries(image, blocks(1280 // side, 1280 // side, side)) > 0).any(-1).mean()
        for side in (16, 32, 128)
    ]
    #   lines of 1, 2 and 4 pixels; 79, 39 and 9 inner boundaries in each direction
    line = [79 / 1280, 78 / 1280, 36 / 1280]
    assert share == pytest.approx([1 - (1 - x) ** 2 for x in line])


def test_coarser_levels_of_a_hierarchy_lie_on_top(rng: np.random.Generator) -> None:
    image = random_image(rng, 640, 640)
    levels = [blocks(40, 40, 16), blocks(10, 10, 64), blocks(2, 2, 320)]
    drawn = draw_hierarchy(image, levels)
    # The boundary of the coarsest level, between the columns 319 and 320, is 4 pixels wide.
    assert (drawn[:, 318:322] == BOUNDARY_COLOR).all()
    middle, fine = drawn[8, 63], drawn[8, 15]
    assert (drawn[8, 63:65] == middle).all() and not (drawn[8, 62] == middle).all()
    lightness = rgb2lab(np.stack([fine, middle, drawn[8, 319]])[None] / 255.0)[0, :, 0]
    assert (np.diff(lightness) > 15).all()


def test_errors_are_red_on_a_pale_image(rng: np.random.Generator) -> None:
    image, errors = random_image(rng, 7, 5), rng.random((7, 5)) < 0.3
    drawn = draw_errors(image, errors)
    assert (drawn[errors] == ERROR_COLOR).all()
    right = drawn[~errors]
    assert (right == right[:, :1]).all() and right.min() >= 127
    # They also differ in lightness.
    lab = rgb2lab(np.stack([np.array(ERROR_COLOR), [127, 127, 127]])[None] / 255.0)[0]
    assert lab[1, 0] - lab[0, 0] > 5


def test_mean_colors_equal_loop(rng: np.random.Generator) -> None:
    image = random_image(rng, 13, 17)
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
    # One color for a cluster, and many colors in all.
    assert (result[::2, ::2] == result[1::2, 1::2]).all()
    assert len(np.unique(result.reshape(-1, 3), axis=0)) > 40


@pytest.mark.parametrize("seed", range(8))
def test_random_colors_tell_neighbors_of_long_borders_apart(seed: int) -> None:
    colors = random_colors(blocks(2, 16, 256), seed=seed)[::256, ::256]
    lab = rgb2lab(colors / 255.0)
    assert np.linalg.norm(lab[1] - lab[0], axis=-1).min() > 25
    assert np.linalg.norm(lab[:, 1:] - lab[:, :-1], axis=-1).min() > 25


def test_random_colors_follow_the_seed() -> None:
    labels = blocks(6, 6, 2)
    assert np.array_equal(random_colors(labels, seed=3), random_colors(labels, seed=3))
    assert not np.array_equal(random_colors(labels, seed=3), random_colors(labels, seed=4))
    assert len(np.unique(random_colors(np.zeros((3, 3), int)).reshape(-1, 3), axis=0)) == 1


def test_wrong_arrays(rng: np.random.Generator) -> None:
    image = random_image(rng, 4, 6)
    with pytest.raises(ValueError, match=r"expected labels of the image's size \(4, 6\)"):
        draw_boundaries(image, np.zeros((4, 5), int))
    with pytest.raises(ValueError, match="expected a uint8 RGB image"):
        mean_colors(image / 255.0, np.zeros((4, 6), int))
