"""Names and colors of classes."""

import itertools

import numpy as np
import pytest
from skimage.color import rgb2lab

from hcformer_mm.structures.palette import distinct_colors
from hcformer_mm.structures.panoptic import Classes


def test_classes_of_metainfo() -> None:
    meta = dict(classes=("a", "b"), thing_classes=("b",), palette=[(1, 2, 3), (4, 5, 6)])
    classes = Classes.from_metainfo(meta)
    assert (classes.names, classes.things) == (("a", "b"), {"b"})
    assert classes.colors().tolist() == [[1, 2, 3], [4, 5, 6]]
    made_up = Classes.from_metainfo(dict(classes=("a", "b"), palette="random"))
    assert made_up.things == frozenset() and made_up.colors().shape == (2, 3)
    for palette in ([], [(1, 2, 3)]):
        few = Classes.from_metainfo(dict(classes=("a", "b"), palette=palette))
        assert np.array_equal(few.colors(), distinct_colors(2))
    for nothing in (None, {}, dict(classes=None)):
        with pytest.raises(ValueError, match="expected metainfo with 'classes'"):
            Classes.from_metainfo(nothing)


def test_distinct_colors_are_distinct() -> None:
    lab = rgb2lab(distinct_colors(40)[None] / 255.0)[0]
    for a, b in itertools.combinations(lab, 2):
        assert np.linalg.norm(a - b) > 15
    assert np.array_equal(distinct_colors(40)[:7], distinct_colors(7))
    assert distinct_colors(0).shape == (0, 3)
