"""Tables of segments: rows, and outlines that are rasterized again."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import points_in_poly

from hcformer_mm.apis.object_table import COLUMNS, object_rows, to_geojson
from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.utils.strict_json import dumps
from tests.helpers.label_maps import SIZES, label_maps

CLASSES = Classes(["cup", "field"], frozenset(["cup"]), [(200, 40, 40), (40, 160, 60)])


def rasterize(geometry, size):
    """Pixels whose centers lie in an odd number of rings."""
    parts = geometry["coordinates"]
    if geometry["type"] == "Polygon":
        parts = [parts]
    else:
        assert geometry["type"] == "MultiPolygon"
    rows, columns = np.indices(size)
    centers = np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5], 1)
    mask = np.zeros(centers.shape[:1], bool)
    for ring in (ring for part in parts for ring in part):
        assert ring[0] == ring[-1]
        mask ^= points_in_poly(centers, ring)
    return mask.reshape(size)


def area(geometry):
    """Area by the shoelace formula: outer rings less holes."""
    parts = geometry["coordinates"]
    total = 0.0
    for outer, *holes in [parts] if geometry["type"] == "Polygon" else parts:
        for ring, sign in ((outer, 1), *((hole, -1) for hole in holes)):
            (x, y), (u, v) = np.transpose(ring[:-1]), np.transpose(ring[1:])
            total += sign * abs((x * v - u * y).sum()) / 2
    return total


def check(panoptic):
    """Compare rows and outlines with loops over the segments."""
    rows = object_rows(panoptic, CLASSES)
    content = json.loads(dumps(to_geojson(panoptic, CLASSES)))
    assert content["type"] == "FeatureCollection"
    size = panoptic.segments.shape
    ids = [i for i in np.unique(panoptic.segments).tolist() if i in panoptic.categories]
    assert len(rows) == len(content["features"]) == len(ids)
    for number, (i, row, feature) in enumerate(
        zip(ids, rows, content["features"], strict=True), start=1
    ):
        mask = panoptic.segments == i
        y, x = np.nonzero(mask)
        name = CLASSES.names[panoptic.categories[i]]
        assert {*row} <= {*COLUMNS}
        assert row["id"] == number
        assert (row["class"], row["thing"], row["area"]) == (name, name == "cup", mask.sum())
        box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        assert [row[key] for key in ("left", "top", "width", "height")] == box
        np.testing.assert_allclose(
            [row["x"], row["y"]], [x.mean() + 0.5, y.mean() + 0.5], atol=0.005
        )
        assert row.get("score") == panoptic.scores.get(i)
        assert feature["type"] == "Feature"
        assert np.array_equal(rasterize(feature["geometry"], size), mask)
        assert area(feature["geometry"]) == mask.sum()
        properties = feature["properties"]
        assert properties["id"] == number
        assert properties["objectType"] == ("detection" if name == "cup" else "annotation")
        color = list(CLASSES.palette[panoptic.categories[i]])
        assert properties["classification"] == dict(name=name, color=color)
        assert properties["measurements"].get("score") == panoptic.scores.get(i)


def test_rings_parts_and_corners():
    """A ring around another segment, which touches itself in a corner, and one of two parts."""
    drawing = """
        11111.2
        1...1.2
        1.3.1..
        1..11.2
        11111.2
    """
    rows = [[".123".index(one) for one in line] for line in drawing.split()]
    panoptic = Panoptic(np.array(rows) * 1000, {1000: 0, 2000: 1, 3000: 0}, scores={1000: 0.25})
    check(panoptic)
    first, second, third = to_geojson(panoptic, CLASSES)["features"]
    assert first["geometry"]["type"] == third["geometry"]["type"] == "Polygon"
    assert len(first["geometry"]["coordinates"]) == 2, "no hole"
    assert [len(part) for part in second["geometry"]["coordinates"]] == [1, 1]
    assert len(third["geometry"]["coordinates"][0]) == 5, "corners on straight edges"


@given(st.data(), SIZES)
def test_any_segments(data, size):
    """With gaps, parts that touch in corners, and void."""
    labels = data.draw(label_maps(size))
    ids = np.unique(labels).tolist()
    categories = {i: data.draw(st.integers(0, 1)) for i in ids if data.draw(st.booleans())}
    check(Panoptic(labels, categories, scores=dict.fromkeys(list(categories)[::2], 0.5)))


@pytest.mark.parametrize("size", [(1, 1), (60, 80)])
def test_noise_and_nothing(size):
    labels = np.random.default_rng(0).integers(0, 3, size)
    check(Panoptic(labels, {0: 0, 1: 1}))
    check(Panoptic(labels, {}))
