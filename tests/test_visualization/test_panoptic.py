"""Images of segmentations: colors, outlines and names."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from skimage.color import rgb2lab

from hcformer_mm.structures.palette import distinct_colors
from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.visualization import draw_panoptic
from hcformer_mm.visualization.panoptic import shade

Scene = tuple[np.ndarray, Panoptic, Classes]


@pytest.fixture
def scene() -> Scene:
    """Two cups and two patches of one field, and void, in five columns of 60 pixels."""
    segments = np.array([10, 20, 3, 7, 0])[None].repeat(100, 0).repeat(60, 1)
    panoptic = Panoptic(segments, {10: 0, 20: 0, 3: 1, 7: 1})
    classes = Classes(["cup", "field"], frozenset(["cup"]), [(200, 40, 40), (40, 160, 60)])
    return np.full((100, 300, 3), 128, np.uint8), panoptic, classes


def test_tracks_have_colors_and_numbers_that_stay(scene: Scene) -> None:
    """Whatever the ids of the segments in a frame; stuff keeps the color of its class."""
    image, panoptic, classes = scene
    drawn = draw_panoptic(image, panoptic, classes, opacity=1, tracks={10: 3, 20: 70})
    swapped = Panoptic(panoptic.segments, {20: 0, 10: 0, 3: 1, 7: 1})
    other = draw_panoptic(image, swapped, classes, opacity=1, tracks={20: 3, 10: 70})
    assert (drawn[10, 30] == other[10, 90]).all() and (drawn[10, 90] == other[10, 30]).all()
    assert (drawn[10, 30] == distinct_colors(4)[3]).all()
    assert (drawn[10, 90] == distinct_colors(7)[6]).all()  # 70 - 64
    assert drawn[10, 150].tolist() == list(classes.palette[1])
    others = draw_panoptic(image, panoptic, classes, opacity=1, tracks={10: 3 + 64, 20: 70})
    assert (drawn != others)[:, :60].any(), "two tracks of one color have one number"
    assert (drawn == others)[:, 60:].all()


def test_scores_follow_names(scene: Scene) -> None:
    """If they are asked for and known: as a class of that name would be written."""
    image, panoptic, classes = scene
    scored = replace(panoptic, scores={3: 0.876, 7: 0.876, 99: 0.5})
    plain = draw_panoptic(image, panoptic, classes)
    assert np.array_equal(draw_panoptic(image, scored, classes), plain)
    assert np.array_equal(draw_panoptic(image, panoptic, classes, scores=True), plain)
    drawn = draw_panoptic(image, scored, classes, scores=True)
    names = [classes.names[0], f"{classes.names[1]} 0.88"]
    wanted = draw_panoptic(image, panoptic, replace(classes, names=names))
    changed = (drawn != plain).any(-1)
    assert changed.any()
    both = draw_panoptic(image, scored, classes, scores=True, tracks={3: 12})
    assert (both != drawn).any()
    assert np.array_equal(drawn[:, 120:], wanted[:, 120:])


def written(image: np.ndarray, panoptic: Panoptic, classes: Classes, **options) -> np.ndarray:
    """Pixels that names cover."""
    # Names of spaces take room, and cover nothing.
    blank = Classes(
        [" " * (i + 1) for i in range(len(classes.names))],
        frozenset(" " * (i + 1) for i, n in enumerate(classes.names) if n in classes.things),
        classes.palette,
    )
    drawn = [draw_panoptic(image, panoptic, one, **options) for one in (classes, blank)]
    return (drawn[0] != drawn[1]).any(-1)


def test_panoptic_colors(scene: Scene) -> None:
    image, panoptic, classes = scene
    drawn = draw_panoptic(image, panoptic, classes, opacity=0.5)
    first, second, field, same_field, void = drawn[10, 30::60]
    assert first.tolist() == [164, 84, 84]  # half (200, 40, 40), half gray
    assert field.tolist() == same_field.tolist() == [84, 144, 94]
    assert void.tolist() == [128, 128, 128]
    assert np.abs(first.astype(int) - second).max() > 10, "two objects look like one"
    assert (drawn[:, [59, 60, 119, 120, 179, 180]] == 255).all(), "no outline"


def test_objects_keep_the_colors_they_have_elsewhere(scene: Scene) -> None:
    """Of two true cups, the prediction finds the second, and another where there is none."""
    image, truth, classes = scene
    segments = np.array([1, 4, 3, 3, 5])[None].repeat(100, 0).repeat(60, 1)
    prediction = Panoptic(segments, {4: 0, 5: 0, 3: 1})
    true = draw_panoptic(image, truth, classes)[10, 30::60]
    drawn = draw_panoptic(image, prediction, classes, like=truth)[10, 30::60]
    assert (drawn[1] == true[1]).all()
    assert (drawn[2] == true[2]).all()
    assert not any((drawn[4] == one).all() for one in true)
    # Without the ground truth, the first cup found has the first color.
    alone = draw_panoptic(image, prediction, classes)[10, 30::60]
    assert (alone[1] == true[0]).all()


def test_objects_are_matched_by_the_larger_overlap(scene: Scene) -> None:
    image, truth, classes = scene
    segments = np.zeros((100, 300), int)
    segments[:, 20:80] = 1  # 40 columns of the first cup, 20 of the second
    segments[:, 80:120] = 2  # 40 columns of the second
    prediction = Panoptic(segments, {1: 0, 2: 0})
    true = draw_panoptic(image, truth, classes)[10, 30::60]
    drawn = draw_panoptic(image, prediction, classes, like=truth)[10]
    assert (drawn[50] == true[0]).all() and (drawn[100] == true[1]).all()


def test_shades_are_relatives_of_a_color() -> None:
    color = np.array([200, 40, 40], np.uint8)
    assert np.array_equal(shade(color, 0), color)
    shades = rgb2lab(np.stack([shade(color, nth) for nth in range(8)])[None] / 255.0)[0]
    for a, b in itertools.combinations(shades, 2):
        assert np.linalg.norm(a - b) > 5
    assert np.linalg.norm(shades - shades[0], axis=-1).max() < 60


def test_without_thing_classes_every_segment_is_an_object(scene: Scene) -> None:
    image, panoptic, classes = scene
    drawn = draw_panoptic(image, panoptic, Classes(classes.names, palette=classes.palette))
    colors = {tuple(color) for color in drawn[10, 30::60].tolist()}
    assert len(colors) == 5


def test_image_is_gray_under_the_segments(scene: Scene) -> None:
    _, panoptic, classes = scene
    image = np.random.default_rng(0).integers(0, 256, (100, 300, 3), dtype=np.uint8)
    void = draw_panoptic(image, panoptic, classes)[:, 245:]
    assert (void == void[..., :1]).all()


def test_names_stand_in_their_segments(scene: Scene) -> None:
    image, panoptic, classes = scene
    columns = np.flatnonzero(written(image, panoptic, classes).any(0))
    # Every object and stuff is named within its 60 columns, and void is not.
    assert set(columns // 60) == {0, 1, 2, 3}
    assert columns.min() > 0 and not set(columns) & {59, 60, 119, 120, 179, 180}


def name_of_a_box(rows: slice, columns: slice, name: str = "cup") -> np.ndarray:
    """Pixels of the name of one box in an image of 200 × 300."""
    segments = np.zeros((200, 300), int)
    segments[rows, columns] = 1
    image = np.full((200, 300, 3), 100, np.uint8)
    return written(image, Panoptic(segments, {1: 0}), Classes([name], palette=[(9, 9, 9)]))


@pytest.mark.parametrize(("y", "below"), [(100, False), (0, True)])
def test_name_of_a_small_object_does_not_hide_it(y: int, below: bool) -> None:
    rows = np.flatnonzero(name_of_a_box(slice(y, y + 4), slice(150, 154)).any(1))
    assert len(rows) and (rows.min() > y + 3 if below else rows.max() < y)


def test_name_of_a_pole_from_top_to_bottom_stands_on_it() -> None:
    assert name_of_a_box(slice(None), slice(150, 154))[:, 150:154].any()


@pytest.mark.parametrize("y", [0, 196])
@pytest.mark.parametrize("x", [0, 296])
def test_name_of_a_small_object_in_the_corner_is_whole(y: int, x: int) -> None:
    inside, corner = (
        name_of_a_box(slice(top, top + 4), slice(left, left + 4), "cupboard").sum()
        for top, left in ((100, 150), (y, x))
    )
    assert corner > 0.9 * inside > 90


def test_a_crowd_is_seen_under_its_names() -> None:
    """Some of 20 × 20 objects of one class are named, and the only one of another class is."""
    image = np.full((400, 400, 3), 100, np.uint8)
    segments = np.arange(400).reshape(20, 20).repeat(20, 0).repeat(20, 1)
    categories = {i: 0 for i in range(400)} | {399: 1}
    classes = Classes(["sheep", "dog"], palette=[(9, 9, 9), (200, 200, 9)])
    panoptic = Panoptic(segments, categories)
    text = written(image, panoptic, classes, text=14)
    assert 0.02 < text.mean() < 0.13
    dogless = Classes(["sheep", " "], palette=classes.palette)
    assert (written(image, panoptic, dogless, text=14) != text)[350:, 350:].any()


def test_text_height_is_followed(scene: Scene) -> None:
    image, panoptic, classes = scene
    rows = [
        np.flatnonzero(written(image, panoptic, classes, text=size).any(1)) for size in (12, 20)
    ]
    small, large = (row.max() - row.min() + 1 for row in rows)
    assert 1.3 < large / small < 2
