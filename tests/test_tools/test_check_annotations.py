"""check_panoptic names every fault that is put into a tiny Shapes set."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from hcformer_mm.datasets.checks import check_panoptic

ROOT = Path(__file__).parents[2]
TOOL = "dataset_converters/check_panoptic.py"
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

    def category_id_twice(self):
        self.content["categories"].append({**self.content["categories"][-1], "name": "mud"})
        return self.ann_file, "several categories have the id 10"

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

    def image_id_twice(self):
        self.content["images"].append(dict(self.content["images"][1]))
        return self.ann_file, "several images have the id 2"

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

    def no_image(self):
        del self.content["images"][1]
        return self.ann_file, "an annotation is of the image 2, which is not among the images"

    def png_of_another_size(self):
        ids = np.pad(self.ids(), ((0, 1), (0, 0)))
        self.repaint(ids)
        image = self.content["images"][1]
        height, width = image["height"], image["width"]
        return self.png, f"expected height and width {(height, width)}, got {ids.shape}"

    def image_of_another_size(self):
        image = self.img_dir / self.content["images"][1]["file_name"]
        Image.new("RGB", (7, 5)).save(image)
        return image, "got (5, 7)"

    def image_on_its_side(self):
        """mmdet turns it, and then it does not fit."""
        image = self.img_dir / self.content["images"][1]["file_name"]
        pixels = Image.open(image).convert("RGB")
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels.save(image, exif=exif)
        return image, f"got {pixels.size}"

    def no_png(self):
        self.png.unlink()
        return self.png, "the file does not exist"

    def no_image_file(self):
        image = self.img_dir / self.content["images"][1]["file_name"]
        image.unlink()
        return image, "the file does not exist"

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


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"images": [], "annotations": []}', '{"images": [1]}']
)
def test_no_panoptic_json(run_tool, shapes, text):
    shapes.ann_file.write_text(text)
    with pytest.raises(SystemExit, match=f"check_panoptic: expected {shapes.ann_file} to "):
        run_tool(TOOL, shapes.ann_file, shapes.seg_dir)


def test_instance_json_is_no_panoptic_json(shapes):
    instances = shapes.ann_file.with_name("instances_train.json")
    with pytest.raises(ValueError, match="list of annotations, each with image_id, file_name, segments_info"):
        check_panoptic(instances, shapes.seg_dir)


def test_tool_on_a_clean_set(run_tool, shapes, capsys):
    options = ("--img-dir", shapes.img_dir, "--num-workers", 1)
    run_tool(TOOL, shapes.ann_file, shapes.seg_dir, *options)
    assert "are clean" in capsys.readouterr().out


def test_tool_names_and_counts_what_is_wrong(run_tool, shapes, capsys):
    for annotation in shapes.content["annotations"]:
        (shapes.seg_dir / annotation["file_name"]).unlink()
    del shapes.content["categories"][0]["isthing"]
    shapes.ann_file.write_text(json.dumps(shapes.content))
    with pytest.raises(SystemExit, match=f"check_panoptic: 4 findings in {shapes.ann_file}"):
        run_tool(TOOL, shapes.ann_file, shapes.seg_dir, "--limit", 2)
    out = capsys.readouterr().out
    assert f"{shapes.ann_file}: category 1 (disc): expected isthing" in out
    assert f"{shapes.seg_dir / '000001.png'}: the file" in out
    assert f"{shapes.seg_dir / '000002.png'}: the file" not in out
    assert "... and 1 more of this kind" in out
    assert "       3  missing file" in out


def test_tool_needs_files(run_tool, shapes, tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        run_tool(TOOL, shapes.ann_file, tmp_path / "nowhere")
    assert raised.value.code == 2
    assert f"expected a folder, got {tmp_path / 'nowhere'}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    not (SAMPLE / "annotations/panoptic_val2017.json").is_file(),
    reason="needs COCO images with panoptic ground truth: name their folder in "
    "HCFORMER_MM_COCO_SAMPLE",
)
def test_coco_is_clean():
    annotations = SAMPLE / "annotations/panoptic_val2017"
    assert check_panoptic(f"{annotations}.json", annotations, SAMPLE / "val2017") == []
