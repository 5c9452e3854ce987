"""Figures: modes, palettes, enlargement, legends and scale bars."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib import color_sequences
from skimage.color import rgb2lab

from hcformer_mm.structures.palette import named_colors
from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.visualization import FigureStyle, draw_figure, draw_panoptic
from hcformer_mm.visualization.panoptic import MODES
from tests.helpers.label_maps import SIZES, label_maps

Scene = tuple[np.ndarray, Panoptic, Classes]
CUP, FIELD = (200, 40, 40), (40, 160, 60)
COLOR_BLIND = {
    # Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB.
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.fixture
def scene() -> Scene:
    """Two touching cups, field, and void, in four columns of 75 pixels, on a color image."""
    segments = np.array([10, 20, 3, 0])[None].repeat(100, 0).repeat(75, 1)
    classes = Classes(["cup", "field"], frozenset(["cup"]), [CUP, FIELD])
    image = np.full((100, 300, 3), (120, 90, 200), np.uint8)
    return image, Panoptic(segments, {10: 0, 20: 0, 3: 1}), classes


def test_default_style_is_the_plain_drawing(scene: Scene) -> None:
    drawn = draw_figure(*scene)
    assert np.array_equal(drawn, draw_panoptic(*scene))
    scored = replace(scene[1], scores={3: 0.5})
    expected = draw_panoptic(scene[0], scored, scene[2], scores=True)
    assert np.array_equal(draw_figure(scene[0], scored, scene[2], scores=True), expected)


def test_contours_leave_the_image_as_it_is(scene: Scene) -> None:
    """Lines are as wide on either side of a border, each of its segment's color."""
    image, panoptic, classes = scene
    style = FigureStyle("contours", names=False)
    drawn = draw_figure(image, panoptic, classes, style)
    lines = (drawn != image).any(-1)
    assert np.flatnonzero(lines.any(0)).tolist() == [74, 75, 149, 150, 224]
    assert lines[:, [74, 75, 149, 150, 224]].all()
    assert (drawn[:, [74, 224]] == (CUP, FIELD)).all()
    assert (drawn[:, 150] == FIELD).all()
    assert (drawn[:, 75] == drawn[:, 149]).all() and (drawn[:, 75] != CUP).any()


def test_fill_keeps_the_colors_of_the_image(scene: Scene) -> None:
    image, panoptic, classes = scene
    drawn = draw_figure(image, panoptic, classes, FigureStyle("fill", names=False))
    assert drawn[10, 30].tolist() == [168, 60, 104]  # 0.6 (200, 40, 40) + 0.4 (120, 90, 200)
    assert (drawn[:, 226:] == image[:, 226:]).all(), "void is colored"
    assert (drawn[:, [74, 75, 149, 150, 224, 225]] == 255).all()


@pytest.mark.parametrize("mode", MODES)
def test_touching_objects_of_one_color_are_told_apart(mode: str, scene: Scene) -> None:
    drawn = draw_figure(*scene, FigureStyle(mode, palette="petroff10", names=False))
    first, border, second = drawn[50, [40, 74, 110]].astype(int)
    assert (first == second).all()
    assert np.abs(border - first).max() > 50


@pytest.mark.parametrize("mode", ["gray", "fill"])
def test_palettes_color_by_class(mode: str, scene: Scene) -> None:
    """Whatever else is in the image; beyond the colors of a palette they begin again."""
    image, panoptic, _ = scene
    names = [f"class {i}" for i in range(133)]
    colors = named_colors("petroff10")
    one = Panoptic(panoptic.segments, {3: 9 * len(colors) + 2})
    style = FigureStyle(mode, palette="petroff10", names=False)
    gray = draw_figure(np.zeros_like(image), one, Classes(names), style)
    assert (gray[10, 180] == (0.6 * colors[2]).round()).all()


@pytest.mark.parametrize(
    "name", [name for name in color_sequences if name.startswith(("okabe", "petroff"))]
)
def test_palettes_for_every_color_vision(name: str) -> None:
    """Tritan, deutan and protan eyes see other colors for other classes; tab10 would fail."""
    colors = named_colors(name) / 255.0
    assert len(colors) >= 5
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    for matrix in (np.eye(3), *COLOR_BLIND.values()):
        seen = np.clip(linear @ np.transpose(matrix), 0, 1)
        encoded = np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = rgb2lab(encoded[None])[0]
        pairs = itertools.combinations(lab, 2)
        assert min(np.linalg.norm(a - b) for a, b in pairs) > 15


def test_small_images_are_enlarged_and_large_ones_are_not(scene: Scene) -> None:
    image = scene[0]
    plain = FigureStyle("contours", names=False)
    assert np.array_equal(draw_figure(*scene, replace(plain, side=200)), draw_figure(*scene, plain))
    drawn = draw_figure(*scene, replace(plain, side=900))
    assert drawn.shape == (300, 900, 3)
    lines = np.flatnonzero((drawn[150] != image[0, 0]).any(-1))
    assert lines.tolist() == [*range(222, 228), *range(447, 453), *range(672, 675)]


def test_names_that_an_image_has_no_room_for_are_left_out() -> None:
    image = np.full((30, 20, 3), 90, np.uint8)
    panoptic = Panoptic(np.ones((30, 20), int), {1: 0})
    drawn = draw_figure(image, panoptic, Classes(["hippopotamus"], palette=[CUP]))
    assert (drawn == drawn[0, 0]).all()
    large = draw_figure(
        image, panoptic, Classes(["hippopotamus"], palette=[CUP]), FigureStyle(side=600)
    )
    assert (large != large[0, 0]).any()


def margin(drawn: np.ndarray, height: int) -> np.ndarray:
    """What is below the drawing of an image."""
    below = drawn[height:]
    assert (below[:, -1] == 255).all(), "text is clipped on the right"
    assert (below[0] == 255).all() and (below[-1] == 255).all()
    return below


def test_legend_shows_the_classes_of_the_image(scene: Scene) -> None:
    image, panoptic, classes = scene
    classes = replace(classes, names=[*classes.names, "sky"], palette=[CUP, FIELD, (1, 2, 250)])
    drawn = draw_figure(image, panoptic, classes, FigureStyle(legend=True))
    assert np.array_equal(drawn[:100], draw_panoptic(image, panoptic, classes))
    below = margin(drawn, 100)
    numbers = [(below == color).all(-1).sum() for color in (CUP, FIELD, (1, 2, 250))]
    assert numbers == [121, 121, 0]  # squares as high as the text, 11 pixels
    empty = Panoptic(panoptic.segments, {})
    alone = draw_figure(image, empty, classes, FigureStyle(legend=True))
    assert len(alone) == 100


def test_legend_of_all_classes_of_coco() -> None:
    """In as many lines as it takes, beside nothing that is not a class."""
    segments = np.arange(133).reshape(7, 19).repeat(20, 0).repeat(20, 1)
    image = np.full((*segments.shape, 3), 90, np.uint8)
    classes = Classes([f"class {i}" for i in range(133)])
    panoptic = Panoptic(segments, {i: i for i in range(133)})
    style = FigureStyle(names=False, legend=True)
    below = margin(draw_figure(image, panoptic, classes, style), 140)
    assert all((below == color).all(-1).sum() >= 100 for color in classes.colors())


@pytest.mark.parametrize(
    ("pixels", "side", "expected"),
    [(4.0, None, 40), (4.0, 600, 80), (1.0, None, 50), (150.0, None, 75), (0.001, None, 50)],
)
def test_scale_bar_has_its_length(
    pixels: float, side: int | None, expected: int, scene: Scene
) -> None:
    """10 µm, the same enlarged, 50, 0.5, and 50,000 µm; at most a quarter of the image."""
    style = FigureStyle(side=side, scale_bar=(pixels, "µm"))
    drawn = draw_figure(*scene, style)
    black = (margin(drawn, 200 if side else 100) == 0).all(-1)
    assert black.sum(1).max() == expected
    assert (drawn[: len(drawn) - len(black)] == draw_figure(*scene, FigureStyle(side=side))).all()


def test_scale_bar_of_a_length_just_below_a_power_of_ten() -> None:
    """56 / 4 / 0.14 is 99.99999999999999, whose logarithm is 2."""
    image = np.zeros((40, 56, 3), np.uint8)
    panoptic, style = Panoptic(np.zeros((40, 56), int), {}), FigureStyle(scale_bar=(0.14, "µm"))
    drawn = draw_figure(image, panoptic, Classes(["cup"]), style)
    assert (drawn[40:] == 0).all(-1).sum(1).max() == 7


STYLES = st.builds(
    FigureStyle,
    mode=st.sampled_from(MODES),
    palette=st.sampled_from([None, "petroff10"]),
    side=st.sampled_from([None, 40]),
    names=st.booleans(),
    legend=st.booleans(),
    scale_bar=st.sampled_from([None, (0.3, "µm"), (1e9, "px")]),
)


@pytest.mark.filterwarnings("ignore:no font of this system")
@given(st.data(), SIZES, STYLES)
def test_any_image_in_any_style(data, size, style):
    image, labels = data.draw(arrays(np.uint8, (*size, 3))), data.draw(label_maps(size))
    ids = np.unique(labels).tolist()
    categories = {i: data.draw(st.integers(0, 2)) for i in ids if data.draw(st.booleans())}
    classes = Classes(["cup", "field", "猫 \n"], frozenset(["cup"]))
    before = image.copy()
    drawn = draw_figure(image, Panoptic(labels, categories), classes, style)
    assert drawn.dtype == np.uint8 and drawn.ndim == 3
    assert drawn.shape[0] >= size[0] and drawn.shape[1] >= size[1]
    again = draw_figure(image, Panoptic(labels, categories), classes, style)
    assert np.array_equal(drawn, again) and np.array_equal(image, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mode="lines"), "a mode among gray, fill, contours, got 'lines'"),
        (dict(palette="rainbow"), "a palette of matplotlib, tab10, .*, got 'rainbow'"),
        (dict(side=0), "a side of 1 pixel or more, got 0"),
        (dict(scale_bar=(0, "µm")), "pixels per unit above 0, got 0"),
        (dict(scale_bar=(float("nan"), "µm")), "pixels per unit above 0, got nan"),
    ],
)
def test_styles_that_do_not_exist(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FigureStyle(**options)
