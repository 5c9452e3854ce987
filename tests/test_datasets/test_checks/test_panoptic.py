"""check_panoptic names every fault that is put into a tiny Shapes set."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from hcformer_mm.datasets.checks import check_panoptic

ROOT = Path(__file__).parents[3]
SAMPLE = Path(os.environ.get("HCFORMER_MM_COCO_SAMPLE", ROOT / "../shared/data/coco_sample"))


class Shapes:
    """A copy of the training split to spoil."""

    def __init__(self, root):
        self.ann_file = root / "annotations/panoptic_train.json"
        self.seg_dir = root / "annotations/panoptic_train"
        self.img_dir = root / "train"
        self.content = json.loads(self.ann_file.read_text())
        self.annotation = self.content["annotations"][1]
        self.segment = self.annotation["segments_info"][0]
        self.png = self.seg_dir / self.annotation["file_name"]

    def check(self, **options):
        self.ann_file.write_text(json.dumps(self.content))
        return check_panoptic(self.ann_file, self.seg_dir, self.img_dir, **options)

    def ids(self):
        return rgb2id(np.asarray(Image.open(self.png)))

    def repaint(self, ids):
        Image.fromarray(id2rgb(ids)).save(self.png)


@pytest.fixture
def shapes(shapes, tmp_path):
    return Faults(shutil.copytree(shapes, tmp_path / "shapes"))


class Faults(Shapes):
    """Each method puts in one fault and returns the file and the message that name it."""

    def no_isthing(self):
        category = self.content["categories"][2]
        del category["isthing"]
        return self.ann_file, f"category 3 ({category['name']}): expected isthing"

    def stuff_first(self):
        self.content["categories"].insert(0, self.content["categories"].pop())
        return self.ann_file, "category 1 (disc), a thing, follows stuff"

    def unknown_category(self):
        self.segment["category_id"] = 77
        return self.ann_file, f"segment {self.segment['id']}: category 77 is not among"

    def json_id_not_in_png(self):
        thing = {**self.segment, "id": 123, "category_id": 1}
        self.annotation["segments_info"].append(thing)
        return self.png, "id 123 of the JSON has no pixel"

    def png_id_not_in_json(self):
        self.annotation["segments_info"].remove(self.segment)
        pixels = self.segment["area"]
        return self.png, f"id {self.segment['id']}, of {pixels} pixels, is not in the JSON"

    def segment_id_twice(self):
        self.annotation["segments_info"].append(dict(self.segment))
        return self.ann_file, f"image 2: several segments have the id {self.segment['id']}"

    def segment_is_void(self):
        ids = self.ids()
        ids[ids == self.segment["id"]] = 0
        self.repaint(ids)
        self.segment["id"] = 0
        return self.ann_file, "image 2, segment 0: expected an id from 1 on, since 0 means void"

    def png_twice(self):
        """Two images share a PNG: it has the ids of one of them."""
        self.content["annotations"][2]["file_name"] = self.annotation["file_name"]
        return self.ann_file, f"several annotations have the file {self.annotation['file_name']}"

    def annotated_twice(self):
        self.content["annotations"].append(dict(self.annotation))
        return self.ann_file, "several annotations are of the image 2"

    def no_annotation(self):
        self.content["annotations"].remove(self.annotation)
        return self.ann_file, "image 2 has no annotation"

    def png_of_another_size(self):
        ids = np.pad(self.ids(), ((0, 1), (0, 0)))
        self.repaint(ids)
        image = self.content["images"][1]
        height, width = image["height"], image["width"]
        return self.png, f"expected height and width {(height, width)}, got {ids.shape}"

    def no_png(self):
        self.png.unlink()
        return self.png, "the file does not exist"

    def broken_png(self):
        self.png.write_bytes(self.png.read_bytes()[:60])
        return self.png, "expected a whole image"

    def gray_png(self):
        Image.open(self.png).convert("L").save(self.png)
        return self.png, "expected an RGB PNG, whose colors are ids, got mode L"

    def no_iscrowd(self):
        del self.segment["iscrowd"]
        return self.ann_file, f"image 2, segment {self.segment['id']}: it lacks iscrowd"

    def wrong_area(self):
        pixels = self.segment["area"]
        self.segment["area"] = 1
        return self.png, f"id {self.segment['id']} has {pixels} pixels, and the area 1 in the JSON"

    def empty_box(self):
        self.segment["bbox"] = [0, 0, 0, 0]
        return self.ann_file, "mmdet leaves out segments whose box [0, 0, 0, 0] is below 1 pixel"

    def box_of_text(self):
        self.segment["bbox"] = list("0123")
        return self.ann_file, "expected left, top, width and height as bbox, got ['0', '1'"

    def area_of_text(self):
        self.segment["area"] = "12"
        return self.ann_file, "expected the area in pixels, got '12'"

    def iscrowd_of_text(self):
        """mmdet takes the text "0" for true, and leaves the segment out of training."""
        self.segment["iscrowd"] = "0"
        return self.ann_file, "expected iscrowd, 0 or 1, got '0'"

    def id_of_text(self):
        """Text never equals the number that the PNG holds."""
        self.segment["id"] = str(self.segment["id"])
        return self.ann_file, "expected an id from 1 to 16777215, which a color holds, got '"

    def id_too_large(self):
        self.segment["id"] = 256**3
        return self.ann_file, "which a color holds, got 16777216"

    def no_segment(self):
        self.annotation["segments_info"][0] = 7
        return self.ann_file, "image 2, segment 7: it lacks area, bbox, category_id, id, iscrowd"

    def ids_of_another_type(self):
        for annotation in self.content["annotations"]:
            annotation["image_id"] = str(annotation["image_id"])
        return self.ann_file, "annotations are of the image '1', and the image's id is 1"

    def jpeg_image_names(self):
        """mmdet replaces .jpg alone, so it reads the image as its PNG."""
        image = self.content["images"][1]
        (self.img_dir / image["file_name"]).rename(self.img_dir / "000001.jpeg")
        image["file_name"] = "000001.jpeg"
        return self.ann_file, "mmdet reads 000001.jpeg for 000001.jpeg, but the annotation names"

    def jpeg_for_a_png(self):
        Image.open(self.png).save(self.png, format="JPEG")
        return self.png, "expected a PNG, whose colors are exact, got JPEG"

    def png_of_16_bits(self):
        cv2.imwrite(str(self.png), cv2.imread(str(self.png)).astype(np.uint16) * 256)
        return self.png, "expected 8 bits per color, got 16"

    def no_box(self):
        self.segment["bbox"] = None
        return self.ann_file, "expected left, top, width and height as bbox, got None"

    def stuff_in_parts(self):
        (category, *_) = [c for c in self.content["categories"] if c["isthing"] == 0]
        segments = self.annotation["segments_info"]
        for segment in segments[:2]:
            segment["category_id"] = category["id"]
        return self.ann_file, f"image 2: several segments are of the stuff {category['id']}"

    def png_of_another_name(self):
        self.annotation["file_name"] = "renamed.png"
        self.png.rename(self.seg_dir / "renamed.png")
        return self.ann_file, "image 2: mmdet reads 000001.png for 000001.jpg"


FAULTS = [name for name in vars(Faults) if not name.startswith("_")]
# Faults that no other check reports too.
ALONE = {
    "no_isthing",
    "unknown_category",
    "json_id_not_in_png",
    "png_id_not_in_json",
    "no_png",
    "wrong_area",
}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_clean(shapes, num_workers):
    assert shapes.check(num_workers=num_workers) == []


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(shapes, name):
    file, message = getattr(shapes, name)()
    faults = shapes.check()
    assert [f for f in faults if f.file == file and message in f.message], faults
    if name in ALONE:
        assert len(faults) == 1


def test_faults_come_in_order_of_annotations(shapes):
    for annotation in shapes.content["annotations"]:
        (shapes.seg_dir / annotation["file_name"]).unlink()
    names = [a["file_name"] for a in shapes.content["annotations"]]
    assert [fault.file.name for fault in shapes.check(num_workers=2)] == names


def test_images_are_checked_on_demand(shapes):
    shutil.rmtree(shapes.img_dir)
    assert check_panoptic(shapes.ann_file, shapes.seg_dir) == []


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_palettes_and_alpha_are_read_like_mmdet(shapes, mode):
    png = Image.open(shapes.png)
    png.convert(mode, palette=Image.Palette.ADAPTIVE).save(shapes.png)
    assert Image.open(shapes.png).mode == mode
    assert np.array_equal(rgb2id(cv2.imread(str(shapes.png))[..., ::-1]), rgb2id(np.asarray(png)))
    assert shapes.check() == []


def keep(shapes, kept, categories=None):
    """Leave only some segments of the set, given by a function of a segment and its category."""
    by_id = {category["id"]: category for category in shapes.content["categories"]}
    for annotation in shapes.content["annotations"]:
        png = shapes.seg_dir / annotation["file_name"]
        ids = rgb2id(np.asarray(Image.open(png)))
        infos = annotation["segments_info"]
        infos[:] = [info for info in infos if kept(by_id[info["category_id"]])]
        ids[~np.isin(ids, [info["id"] for info in infos])] = 0
        Image.fromarray(id2rgb(ids)).save(png)
    if categories is not None:
        shapes.content["categories"] = [one for one in by_id.values() if categories(one)]


@pytest.mark.parametrize("isthing", [0, 1])
def test_things_or_stuff_alone_are_clean(shapes, isthing):
    def of_kind(category):
        return category["isthing"] == isthing

    keep(shapes, of_kind, of_kind)
    assert shapes.check() == []


def test_one_class_is_clean(shapes):
    name = shapes.content["categories"][-1]["name"]
    keep(shapes, lambda one: one["name"] == name, lambda one: one["name"] == name)
    assert not [fault for fault in shapes.check() if fault.severity != "note"]


def test_no_segments_are_a_note(shapes):
    keep(shapes, lambda category: False)
    (note,) = shapes.check()
    assert (note.kind, note.severity) == ("no segments", "note")


def test_crowds_only_are_a_note(shapes):
    keep(shapes, lambda category: category["isthing"] == 1)
    for annotation in shapes.content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["iscrowd"] = 1
    (note,) = shapes.check()
    assert (note.kind, note.severity) == ("crowds only", "note")


def test_names_in_folders_are_clean(shapes):
    """Images of one name in two folders are images of their own."""
    for number, (image, annotation) in enumerate(
        zip(shapes.content["images"], shapes.content["annotations"], strict=True)
    ):
        for folder, entry, name in (
            (shapes.img_dir, image, f"{number}/1.jpg"),
            (shapes.seg_dir, annotation, f"{number}/1.png"),
        ):
            (folder / name).parent.mkdir()
            (folder / entry["file_name"]).rename(folder / name)
            entry["file_name"] = name
    assert shapes.check() == []


@pytest.mark.slow
@pytest.mark.skipif(
    not (SAMPLE / "annotations/panoptic_val2017.json").is_file(),
    reason="needs COCO images with panoptic ground truth: name their folder in "
    "HCFORMER_MM_COCO_SAMPLE",
)
def test_coco_is_clean():
    annotations = SAMPLE / "annotations/panoptic_val2017"
    assert check_panoptic(f"{annotations}.json", annotations, SAMPLE / "val2017") == []
