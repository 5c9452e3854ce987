"""Sizes of images and maps."""

import itertools

import numpy as np
import pytest

from hcformer_mm.visualization.arrays import gray_image, panel_size, resize_image, resize_map


@pytest.mark.parametrize(
    ("size", "panel"),
    [
        ((240, 320), (960, 1280)),  # 4 times
        ((240, 640), (480, 1280)),
        ((1000, 240), (1000, 240)),
        ((1024, 2048), (512, 1024)),  # a half
        ((240, 4001), (80, 1333)),  # a third
        ((1, 9000), (1, 1285)),
        ((1, 1), (1280, 1280)),
    ],
)
def test_panels_are_near_their_target(size: tuple[int, int], panel: tuple[int, int]) -> None:
    assert panel_size(size, target=1280) == panel


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (14, 15), (20, 3), (13, 33), (3, 2)])
def test_resized_label_is_that_at_the_center(size: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(-1 << 63, (1 << 63) - 1, (7, 5))
    result = resize_map(labels, size)
    assert result.shape == size and result.dtype == labels.dtype
    for y, x in itertools.product(*map(range, size)):
        # Exact in integers: the center y + 1/2 of a pixel lies at (2y + 1) · old / (2 · new).
        row, col = (2 * y + 1) * 7 // (2 * size[0]), (2 * x + 1) * 5 // (2 * size[1])
        assert result[y, x] == labels[row, col]


def test_flags_and_flat_colors_are_repeated() -> None:
    random = np.random.default_rng(0)
    flags, colors = random.random((3, 4)) < 0.5, random.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    for array in (flags, colors):
        result = resize_map(array, (6, 12))
        assert result.dtype == array.dtype
        assert np.array_equal(result, array.repeat(2, 0).repeat(3, 1))


def test_images_grow_and_shrink() -> None:
    flat = np.full((3, 5, 3), 77, np.uint8)
    assert np.array_equal(resize_image(flat, (9, 15)), np.full((9, 15, 3), 77))
    checkers = np.zeros((6, 8, 3), np.uint8)
    checkers[::2, ::2] = checkers[1::2, 1::2] = 200
    assert (resize_image(checkers, (3, 4)) == 100).all()
    assert resize_image(checkers, (6, 8)) is checkers


def test_gray_image() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0], [40, 40, 40]]], np.uint8)
    gray = gray_image(image)
    assert gray.shape == image.shape and (gray == gray[..., :1]).all()
    assert gray[0, :, 0].tolist() == [76, 150, 40]  # weights of ITU-R BT.601
