"""Ground truth of COCO instances: masks, crowds and overlaps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from hcformer_mm.datasets.ground_truth import open_ground_truth
from hcformer_mm.evaluation.measures import MaskAP
from hcformer_mm.structures.panoptic import Classes
from tests.helpers.ground_truth import (
    CLASSES,
    rle,
    write_instances,
    write_json,
)
from tests.helpers.label_maps import SIZES


def test_instances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = open_ground_truth(write_instances(tmp_path), CLASSES)
    panoptic = truth.read("a.jpg", (4, 6))
    large, small = 1002, 2002
    edge, middle = [large] * 3 + [0] * 3, [large, small, large] + [0] * 3
    assert panoptic.segments.tolist() == [edge, middle, middle, edge]
    assert panoptic.categories == {large: 2, small: 2}
    # Pixels of two instances, and the crowd.
    ignore = np.zeros((4, 6), bool)
    ignore[1:3, 1] = ignore[:, 2:5] = True
    assert np.array_equal(panoptic.ignore, ignore)
    assert capsys.readouterr().out == ""


def test_instances_agree_with_the_metric(tmp_path: Path) -> None:
    path = write_instances(tmp_path)
    panoptic = open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    truth = MaskAP(str(path), ("sand", "disc")).truth(dict(img_id=3))
    assert np.array_equal(truth.void, panoptic.ignore)
    scored = np.stack([truth.segments, panoptic.segments])[:, ~truth.void]
    assert len(np.unique(scored, axis=1).T) == len(np.unique(scored[0])) == 2


def test_instances_of_other_classes_are_left_out(tmp_path: Path) -> None:
    path = write_instances(tmp_path)
    sand = open_ground_truth(path, Classes(["sand"])).read("a.jpg", (4, 6))
    assert sand.segments.tolist() == [[0] * 6] * 4
    assert sand.ignore[:, 2:5].all()
    with pytest.raises(ValueError, match="no class for any category of"):
        open_ground_truth(path, Classes(["cow"]))


def test_image_without_instances(tmp_path: Path) -> None:
    content = json.loads(write_instances(tmp_path).read_text())
    content["images"] += [{"id": 4, "file_name": "empty.jpg", "height": 2, "width": 3}]
    truth = open_ground_truth(write_json(tmp_path, **content), CLASSES)
    panoptic = truth.read("empty.jpg", (2, 3))
    assert panoptic.segments.tolist() == [[0] * 3] * 2
    assert panoptic.categories == {}
    assert not panoptic.ignore.any()


@given(
    SIZES.flatmap(lambda size: arrays(np.bool_, st.tuples(st.integers(0, 4), *map(st.just, size)))),
    st.data(),
)
def test_instances_of_any_masks(tmp_path: Path, masks: Any, data: st.DataObject) -> None:
    """The smallest of several instances is on top, and pixels of several, and crowds, are void."""
    size = masks.shape[1:]
    crowds = [data.draw(st.booleans()) for _ in masks]
    encoded = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    content = dict(
        images=[dict(id=1, file_name="a.jpg", height=size[0], width=size[1])],
        annotations=[
            dict(
                id=number,
                image_id=1,
                category_id=71,
                iscrowd=int(crowd),
                segmentation={**one, "counts": one["counts"].decode()},
            )
            for number, (one, crowd) in enumerate(zip(encoded, crowds, strict=True), start=1)
        ],
    )
    content["annotations"].append(  # of another image, so that the file is one of instances
        dict(id=9, image_id=2, category_id=71, iscrowd=0, segmentation=rle(0))
    )
    content["images"].append(dict(id=2, file_name="b.jpg", height=4, width=6))
    path = write_json(tmp_path, **content)
    found = open_ground_truth(path, CLASSES).read("a.jpg", size)
    objects = [mask for mask, crowd in zip(masks, crowds, strict=True) if not crowd]
    claims = np.sum([np.zeros(size, int), *objects], axis=0)
    hidden = np.any([np.zeros(size, bool), *masks[np.array(crowds, bool)]], axis=0)
    assert np.array_equal(found.ignore, (claims > 1) | hidden)
    assert np.array_equal(found.segments > 0, claims > 0)
    for y, x in zip(*np.nonzero(claims), strict=True):
        area = min(mask.sum() for mask in objects if mask[y, x])
        visible = found.segments == found.segments[y, x]
        assert any(mask.sum() == area and mask[visible].all() for mask in objects if mask[y, x])


BOX = [1, 0, 5, 0, 5, 3, 1, 3]


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param([[0, 0, 3, 3]], id="two points, a box for pycocotools"),
        pytest.param([[0, 0, 3]], id="odd"),
        pytest.param([[0, 0, 3, 0, 3, 3, 1]], id="odd and long"),
        pytest.param([[]], id="no point"),
        pytest.param([], id="no polygon"),
        pytest.param(None, id="none"),
        pytest.param(BOX, id="no list of lists"),
        pytest.param("box", id="text"),
        pytest.param(dict(counts=[24]), id="no size"),
        pytest.param(dict(size=[6, 4], counts=[24]), id="other size"),
        pytest.param(dict(size=[4, 6], counts=[20]), id="short runs"),
        pytest.param(dict(size=[4, 6], counts=[20, 20]), id="long runs"),
        pytest.param(dict(size=[4, 6], counts=[26, -2]), id="negative runs"),
        pytest.param(dict(size=[4, 6], counts=rle(1)["counts"] + "a0"), id="compressed, too long"),
    ],
)
def test_instances_that_pycocotools_misreads(segmentation: Any, tmp_path: Path) -> None:
    content = json.loads(write_instances(tmp_path).read_text())
    content["annotations"][1]["segmentation"] = segmentation
    path = write_json(tmp_path, **content)
    message = r"truth\.json: expected .*, got .*; correct annotation 2, or leave it out"
    with pytest.raises(ValueError, match=message):
        open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    with pytest.raises(ValueError, match=message):
        MaskAP(str(path), ("sand", "disc")).truth(dict(img_id=3))


@pytest.mark.parametrize(
    "segmentation",
    [
        [BOX],
        [[1.0, 0.0, 5.0, 0.0, 5.0, 3.0, 1.0, 3.0]],
        [[1, 0, 3, 0, 3, 3, 1, 3], [3, 0, 5, 0, 5, 3, 3, 3]],
        dict(size=[4, 6], counts=[4, 3, 1, 3, 1, 3, 1, 3, 5]),
        rle(),
        [[2, 2, 2, 2, 2, 2]],
    ],
    ids=["polygon", "floats", "parts", "runs", "empty", "no area"],
)
def test_instances_are_those_of_pycocotools(segmentation: Any, tmp_path: Path) -> None:
    content = json.loads(write_instances(tmp_path).read_text())
    content["annotations"] = [
        dict(id=1, image_id=3, category_id=71, segmentation=segmentation, iscrowd=0)
    ]
    path = write_json(tmp_path, **content)
    expected = COCO(path).annToMask(content["annotations"][0])
    found = open_ground_truth(path, CLASSES).read("a.jpg", (4, 6))
    assert np.array_equal(found.segments > 0, expected)
    assert np.array_equal(MaskAP(str(path), ("disc",)).truth(dict(img_id=3)).segments, expected)
