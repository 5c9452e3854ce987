"""Files that are no COCO files are refused; files with any wrong value are checked to the end."""

import json

import pytest

from hcformer_mm.datasets.checks import (
    check_instances_json,
    check_masks,
    check_panoptic_json,
    read_coco,
)
from hcformer_mm.datasets.checks.faults import NOTES, WARNINGS, Fault
from hcformer_mm.utils.errors import InputError

NAN, INFINITE = float("nan"), float("inf")
IMAGES = [dict(id=1, file_name="1.jpg", height=8, width=9)]
CATEGORIES = [dict(id=1, name="disc", isthing=1)]
SEGMENT = dict(id=7, category_id=1, iscrowd=0, bbox=[1, 1, 4, 4], area=16)
PANOPTIC = [dict(image_id=1, file_name="1.png", segments_info=[SEGMENT])]
INSTANCES = [SEGMENT | dict(image_id=1, segmentation=[[1, 1, 5, 1, 5, 5, 1, 5]])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "to be a COCO JSON file; it is damaged or another file: Expecting value"),
        ("", "it is damaged or another file: Expecting value"),
        (b"\x89PNG\r\n", "to be a COCO JSON file"),
        ("[" * 100_000, "it is damaged or another file: "),
        ("[]", "to have a list of images, each with id, file_name, height, width"),
        ("{}", "got annotations"),
        ('{"images": {}, "categories": []}', "to have a list of images"),
        ('{"images": [1], "categories": []}', "entry 0 is 1"),
        ('{"images": [{"id": 1}], "categories": []}', "entry 0 is {'id': 1}"),
        ('{"images": [], "categories": [{"id": [], "name": "a"}]}', "to have a list of categories"),
        ('{"images": [], "categories": [{"id": 1, "name": 2}]}', "each with id, name"),
        ('{"images": [], "annotations": [{}], "categories": []}', "each with image_id"),
    ],
)
def test_no_coco_file(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as raised:
        read_coco(path)
    assert f"expected {path} to " in str(raised.value)
    assert message in str(raised.value)


def test_a_file_without_annotations_is_a_test_set(tmp_path):
    path = tmp_path / "image_info_test.json"
    path.write_text(json.dumps(dict(images=IMAGES, categories=CATEGORIES)))
    assert read_coco(path)["annotations"] == []


@pytest.mark.parametrize(
    ("check", "annotations"), [(check_panoptic_json, INSTANCES), (check_instances_json, PANOPTIC)]
)
def test_the_other_form_is_refused(check, annotations):
    content = dict(images=IMAGES, annotations=annotations, categories=CATEGORIES)
    with pytest.raises(InputError, match=r"expected a\.json to have a list of annotations"):
        check(content, "a.json")


def places(value, path=()):
    """Keys and indices that lead to each value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


WRONG = [None, "x", "1", -1, 0, 1.5, 1e18, NAN, INFINITE, True, [], {}, [[]], [None], ["a"]]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@pytest.mark.parametrize(
    ("check", "annotations"), [(check_panoptic_json, PANOPTIC), (check_instances_json, INSTANCES)]
)
def test_any_wrong_value_is_a_fault_or_refused(tmp_path, check, annotations, wrong):
    """Each value in turn is replaced; nothing but an InputError comes out."""
    path = tmp_path / "a.json"
    text = json.dumps(dict(images=IMAGES, annotations=annotations, categories=CATEGORIES))
    assert check(json.loads(text), path) == []
    for *keys, last in places(json.loads(text)):
        content = parent = json.loads(text)
        for key in keys:
            parent = parent[key]
        parent[last] = wrong
        path.write_text(json.dumps(content))
        try:
            content = read_coco(path)
            faults = check(content, path)
        except InputError:
            continue
        if check is check_instances_json:
            for image in content["images"]:
                faults += check_masks(image, content["annotations"], path)
        assert all(isinstance(fault, Fault) for fault in faults)


def test_severity_follows_from_the_kind():
    severities = {Fault(kind, "a", "b").severity for kind in WARNINGS}
    assert severities == {"warning"}
    assert {Fault(kind, "a", "b").severity for kind in NOTES} == {"note"}
    assert Fault("duplicate id", "a", "b").severity == "error"
