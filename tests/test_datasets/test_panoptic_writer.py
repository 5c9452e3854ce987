"""The writer of panoptic sets, and instances made from panoptic annotations."""

import json
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as coco_mask

from hcformer_mm.datasets.checks import check_instances, check_panoptic, check_semantic
from hcformer_mm.datasets.panoptic_writer import (
    AnnotatedImage,
    coco_categories,
    write_instances,
    write_panoptic_set,
)
from hcformer_mm.structures.panoptic import Panoptic
from tests.helpers.panoptic_sets import GROUND, SKY, THING, drawing
from tests.helpers.panoptic_sets import write_panoptic_set as by_hand

CATEGORIES = coco_categories(("box", "ball"), ("ground", "sky"))
LABELS = {THING: 0, GROUND: 2, SKY: 3}
BALL = 256**3 - 1


def annotated(name, *segments, image=None, shift=0, crowds=frozenset()):
    """The segments of the drawing that are named, among void, and a ball in its corner."""
    ids = drawing(*segments, shift=shift)
    ids[40:, 60:] = BALL
    pixels = np.repeat(ids[..., None] % 200, 3, axis=2).astype(np.uint8)
    labels = {one: LABELS[one] for one in segments} | {BALL: 1}
    return AnnotatedImage(name, pixels if image is None else image, Panoptic(ids, labels), crowds)


def identity(image):
    return image


def write(out, train, val=None, **kwargs):
    val = [annotated("v.jpg", SKY)] if val is None else val
    options = dict(load=identity, categories=CATEGORIES)
    write_panoptic_set(out, {"train": train, "val": val}, **{**options, **kwargs})


def check(root, split="train"):
    annotations = root / "annotations"
    faults = check_panoptic(
        annotations / f"panoptic_{split}.json", annotations / f"panoptic_{split}", root / split
    )
    faults += check_instances(annotations / f"instances_{split}.json", root / split)
    return [fault for fault in faults if fault.severity != "note"]


@pytest.mark.parametrize("workers", [1, 2])
def test_files_hold_the_segments(tmp_path, workers):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), "red").save(photo)
    images = [
        annotated("deep/a.jpg", THING, GROUND, SKY, shift=2, crowds={THING}),
        annotated("b.tif", THING, image=photo),
    ]
    root = tmp_path / "set"
    write(root, images, workers=workers, info={"train": {"year": 2026}})
    assert not check(root)
    assert not check(root, "val")
    annotations = root / "annotations"
    content, instances = (
        json.loads((annotations / f"{kind}_train.json").read_text())
        for kind in ("panoptic", "instances")
    )
    assert content["info"] == instances["info"] == {"year": 2026}
    assert content["categories"] == CATEGORIES
    assert instances["categories"] == CATEGORIES[:2]
    assert [one["id"] for one in instances["annotations"]] == [1, 2, 3, 4]
    assert (root / "train/b.tif").read_bytes() == photo.read_bytes()
    pairs = zip(images, content["annotations"], content["images"], strict=True)
    for one, annotation, image in pairs:
        assert image["file_name"] == one.file_name
        assert annotation["file_name"] == one.file_name.replace(".jpg", ".png")
        stored = annotations / "panoptic_train" / annotation["file_name"]
        found = rgb2id(np.asarray(Image.open(stored)))
        assert np.array_equal(found, one.panoptic.segments)
        semantic = root / "semantic/train" / Path(one.file_name).with_suffix(".png")
        semantic = np.asarray(Image.open(semantic))
        infos = {info["id"]: info for info in annotation["segments_info"]}
        assert list(infos) == list(one.panoptic.categories)
        for number, label in one.panoptic.categories.items():
            mask = found == number
            assert infos[number]["category_id"] == CATEGORIES[label]["id"]
            assert infos[number]["iscrowd"] == (number in one.crowds)
            assert (semantic[mask] == label).all()
        assert (semantic[found == 0] == 255).all()
        things = [info for info in infos.values() if info["category_id"] < 3]
        masks = [one for one in instances["annotations"] if one["image_id"] == image["id"]]
        for thing, entry in zip(things, masks, strict=True):
            mask = coco_mask.decode(entry["segmentation"])
            assert np.array_equal(mask, found == thing["id"])
            same = ("category_id", "iscrowd", "bbox", "area")
            assert [entry[key] for key in same] == [thing[key] for key in same]


def test_label_maps_are_clean(tmp_path):
    write(tmp_path / "set", [annotated("a.jpg", GROUND, SKY), annotated("b.jpg", THING)])
    root = tmp_path / "set"
    assert not check_semantic(root / "train", root / "semantic/train", len(CATEGORIES))


def test_a_set_without_things_has_no_instances(tmp_path):
    image = AnnotatedImage(
        "a.jpg", np.zeros((48, 64, 3), np.uint8), Panoptic(drawing(SKY), {SKY: 0})
    )
    write(tmp_path / "set", [image], [image], categories=coco_categories((), ("sky",)))
    assert not list(tmp_path.glob("set/annotations/instances*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(train=[]), "expected images for the split train, got none"),
        (dict(categories=[]), "expected 1 to 255 classes, .* got 0"),
        (dict(categories=256 * CATEGORIES[:1]), "expected 1 to 255 classes, .* got 256"),
        (
            dict(train=[annotated("a.jpg", SKY), annotated("a.png", SKY)]),
            r"different names in train, got several whose annotation is a\.png; rename",
        ),
        (
            dict(train=[annotated("a.jpg", SKY), annotated("a.jpeg", SKY)]),
            r"different names in train, got several whose annotation is a\.png; rename",
        ),
        (dict(train=[annotated("/a.jpg", SKY)]), "below the folder of their split, .*/a.jpg"),
        (
            dict(train=[annotated("a.jpg", SKY, image=np.zeros((48, 63, 3), np.uint8))]),
            r"size \(48, 63\) of a\.jpg, .* got the size \(48, 64\)",
        ),
        (
            dict(
                train=[
                    AnnotatedImage(
                        "a.jpg",
                        np.zeros((48, 64, 3), np.uint8),
                        Panoptic(drawing(SKY) * 256**2 * 32, {SKY * 256**2 * 32: 3}),
                    )
                ]
            ),
            "ids from 1 to 16777215, got .* ids 16777216",
        ),
        (
            dict(train=[annotated("a.jpg", SKY, image=Path("nowhere.jpg"))]),
            "nowhere.jpg: the file does not exist",
        ),
    ],
)
def test_refusals_leave_nothing(tmp_path, changes, message):
    options = dict(train=[annotated("a.jpg", SKY)]) | changes
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "set", **options)
    assert not list(tmp_path.iterdir())


class TestInstances:
    def test_equal_those_of_the_writer(self, tmp_path):
        images = [annotated("a.jpg", THING, GROUND, crowds={BALL}), annotated("b.jpg", SKY)]
        write(tmp_path / "set", images)
        annotations = tmp_path / "set/annotations"
        panoptic, out = annotations / "panoptic_train.json", tmp_path / "new/instances.json"
        assert write_instances(panoptic, panoptic.with_suffix(""), out) == 3
        expected = (annotations / "instances_train.json").read_text()
        assert json.loads(out.read_text()) == json.loads(expected)

    def test_of_shapes(self, shapes, tmp_path):
        panoptic = shapes / "annotations/panoptic_val.json"
        write_instances(panoptic, panoptic.with_suffix(""), tmp_path / "instances.json")
        expected = (shapes / "annotations/instances_val.json").read_text()
        assert json.loads((tmp_path / "instances.json").read_text()) == json.loads(expected)

    def test_bad_sets(self, tmp_path):
        """Faults of the JSON file, of a PNG file and of the classes."""
        out = tmp_path / "instances.json"
        images = {"1.jpg": drawing(THING, GROUND)}
        file, pngs = by_hand(tmp_path / "ids", "train", images)
        Image.new("RGB", (64, 48)).save(f"{pngs}/1.png")
        with pytest.raises(ValueError, match=r"1\.png: id 7 of the JSON has no pixel; check_panop"):
            write_instances(file, pngs, out)
        file, pngs = by_hand(tmp_path / "file", "train", images, categories=(GROUND,))
        with pytest.raises(ValueError, match="category 1 is not among the categories; check_pan"):
            write_instances(file, pngs, out)
        images = {"1.jpg": drawing(GROUND)}
        file, pngs = by_hand(tmp_path / "stuff", "train", images, categories=(GROUND,))
        with pytest.raises(ValueError, match="expected a category with isthing=1"):
            write_instances(file, pngs, out)
        assert not out.exists()
