"""Images of segmentations: colors, outlines and names."""

import numpy as np
import pytest

from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.visualization import draw_panoptic

Scene = tuple[np.ndarray, Panoptic, Classes]


@pytest.fixture
def scene() -> Scene:
    """Two cups and two patches of one field, and void, in five columns of 60 pixels."""
    segments = np.array([10, 20, 3, 7, 0])[None].repeat(100, 0).repeat(60, 1)
    panoptic = Panoptic(segments, {10: 0, 20: 0, 3: 1, 7: 1})
    classes = Classes(["cup", "field"], frozenset(["cup"]), [(200, 40, 40), (40, 160, 60)])
    return np.full((100, 300, 3), 128, np.uint8), panoptic, classes


def nameless(classes: Classes) -> Classes:
    """The same classes, of which nothing is written."""
    names = ["" for _ in classes.names]
    return Classes(names, frozenset(names[:1]), classes.palette)


def written(image: np.ndarray, panoptic: Panoptic, classes: Classes, **options) -> np.ndarray:
    """Pixels that names cover."""
    # Made of spaces, a name is written, but not seen.
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
    """Of a truth with two cups, a prediction finds the second, and one where there is none."""
    image, truth, classes = scene
    segments = np.array([1, 4, 3, 3, 5])[None].repeat(100, 0).repeat(60, 1)
    prediction = Panoptic(segments, {4: 0, 5: 0, 3: 1})
    true = draw_panoptic(image, truth, classes)[10, 30::60]
    drawn = draw_panoptic(image, prediction, classes, like=truth)[10, 30::60]
    assert (drawn[1] == true[1]).all()
    assert (drawn[2] == true[2]).all()
    assert not any((drawn[4] == one).all() for one in true)
    # Without the truth, the first cup that was found gets the color of the first one.
    alone = draw_panoptic(image, prediction, classes)[10, 30::60]
    assert (alone[1] == true[0]).all()


def test_the_larger_overlap_decides_which_object_is_which(scene: Scene) -> None:
    image, truth, classes = scene
    segments = np.zeros((100, 300), int)
    segments[:, 20:80] = 1  # 40 columns of the first cup, 20 of the second
    segments[:, 80:120] = 2  # 40 columns of the second
    prediction = Panoptic(segments, {1: 0, 2: 0})
    true = draw_panoptic(image, truth, classes)[10, 30::60]
    drawn = draw_panoptic(image, prediction, classes, like=truth)[10]
    assert (drawn[50] == true[0]).all() and (drawn[100] == true[1]).all()


def test_every_segment_is_an_object_where_no_things_are_known(scene: Scene) -> None:
    image, panoptic, classes = scene
    drawn = draw_panoptic(image, panoptic, Classes(classes.names, palette=classes.palette))
    colors = {tuple(color) for color in drawn[10, 30::60].tolist()}
    assert len(colors) == 5


def test_panoptic_uses_no_color_of_the_image(scene: Scene) -> None:
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


def test_name_of_a_small_object_does_not_hide_it() -> None:
    image = np.full((200, 300, 3), 100, np.uint8)
    for y, below in ((100, False), (0, True)):
        segments = np.zeros((200, 300), int)
        segments[y : y + 4, 150:154] = 1
        classes = Classes(["cup"], palette=[(9, 9, 9)])
        text = written(image, Panoptic(segments, {1: 0}), classes)
        rows = np.flatnonzero(text.any(1))
        assert len(rows) and (rows.min() > y + 3 if below else rows.max() < y)


def test_name_of_a_pole_from_top_to_bottom_stands_on_it() -> None:
    image = np.full((200, 300, 3), 100, np.uint8)
    segments = np.zeros((200, 300), int)
    segments[:, 150:154] = 1
    text = written(image, Panoptic(segments, {1: 0}), Classes(["pole"], palette=[(9, 9, 9)]))
    assert text[:, 150:154].any()


def test_name_of_a_small_object_in_the_corner_is_whole() -> None:
    image = np.full((200, 300, 3), 100, np.uint8)

    def name_pixels(y: int, x: int) -> int:
        segments = np.zeros((200, 300), int)
        segments[y : y + 4, x : x + 4] = 1
        classes = Classes(["cupboard"], palette=[(9, 9, 9)])
        return int(written(image, Panoptic(segments, {1: 0}), classes).sum())

    inside = name_pixels(100, 150)
    assert inside > 100
    for corner in ((0, 0), (0, 296), (196, 0), (196, 296)):
        assert name_pixels(*corner) > 0.9 * inside


def test_a_crowd_is_seen_under_its_names() -> None:
    """Of 20 × 20 objects of one class some are named, and the single one of another is."""
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


def test_classes_of_metainfo() -> None:
    meta = dict(classes=("a", "b"), thing_classes=("b",), palette=[(1, 2, 3), (4, 5, 6)])
    classes = Classes.from_metainfo(meta)
    assert (classes.names, classes.things) == (("a", "b"), {"b"})
    assert classes.colors().tolist() == [[1, 2, 3], [4, 5, 6]]
    made_up = Classes.from_metainfo(dict(classes=("a", "b"), palette="random"))
    assert made_up.things == frozenset() and made_up.colors().shape == (2, 3)
    for nothing in (None, {}, dict(classes=None)):
        with pytest.raises(ValueError, match="expected metainfo with 'classes'"):
            Classes.from_metainfo(nothing)
