"""check_instances names every fault that is put into two images with three objects."""

import json

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from PIL import Image
from pycocotools import mask as mask_utils

from hcformer_mm.datasets.checks import check_instances, check_instances_json
from hcformer_mm.datasets.checks import instances as module

SIZE = (96, 128)
BOX = [70, 20, 30, 40]
OUTLINE = [70, 20, 100, 20, 100, 60, 70, 60]
NAN, INFINITE = float("nan"), float("inf")


def runs(size=SIZE, *, compress=True):
    """Run lengths of the box, compressed or not."""
    mask = np.zeros(size, np.uint8, order="F")
    mask[20:60, 70:100] = 1
    if compress:
        rle = mask_utils.encode(mask)
        return dict(size=rle["size"], counts=rle["counts"].decode())
    changes = np.flatnonzero(np.diff(mask.flatten(order="F"), prepend=0, append=0))
    counts = np.diff(changes, prepend=0).tolist()
    return dict(size=list(size), counts=[*counts, mask.size - sum(counts)])


class Faults:
    """Each method puts in one fault and returns its kind and a part of its message."""

    def __init__(self, root):
        self.img_dir = root / "images"
        self.img_dir.mkdir()
        self.ann_file = root / "instances.json"
        images, annotations = [], []
        for number in (1, 2):
            name = f"{number}.jpg"
            Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(self.img_dir / name)
            images.append(dict(id=number, file_name=name, height=SIZE[0], width=SIZE[1]))
        for number, image in enumerate((1, 1, 2), 1):
            ids = dict(id=number, image_id=image, category_id=90 if image == 1 else 5)
            shape = dict(bbox=BOX, area=1200, iscrowd=0, segmentation=[OUTLINE])
            annotations.append(ids | shape)
        categories = [dict(id=90, name="ninety"), dict(id=5, name="five")]
        self.content = dict(images=images, annotations=annotations, categories=categories)
        self.annotation, self.image = annotations[0], images[0]

    def check(self, **options):
        self.ann_file.write_text(json.dumps(self.content))
        return check_instances(self.ann_file, self.img_dir, **options)

    def put(self, **values):
        self.annotation.update(values)

    def two_points(self):
        self.put(segmentation=[[70, 20, 100, 60]])
        return "no polygon", "annotation 1 (image 1): expected a polygon of x, y of at least 3"

    def three_numbers(self):
        self.put(segmentation=[[70, 20, 100]])
        return "no polygon", "got [[70, 20, 100]]: training leaves the object out, and pycoco"

    def short_part(self):
        self.put(segmentation=[OUTLINE, [70, 20, 100, 60]])
        return "short polygon", "training leaves out [[70, 20, 100, 60]]"

    def short_first_part(self):
        self.put(segmentation=[[70, 20, 100, 60], OUTLINE])
        return (
            "short first polygon",
            "of at least 3 points before others, got [[70, 20, 100, 60], [",
        )

    def odd_part(self):
        self.put(segmentation=[OUTLINE, [*OUTLINE, 1]])
        return "short polygon", "which is no list of x, y of at least 3 points"

    def flat_polygon(self):
        self.put(segmentation=OUTLINE)
        return "polygon", "expected a list of polygons, each a list of numbers, got [70, 20"

    def polygon_of_text(self):
        self.put(segmentation=[["70", "20", "100", "20", "100", "60"]])
        return "polygon", "each a list of numbers"

    def segmentation_of_text(self):
        self.put(segmentation=json.dumps([OUTLINE]))
        return "polygon", "each a list of numbers"

    def no_segmentation(self):
        del self.annotation["segmentation"]
        return "no mask", "as segmentation, got None, and mmdet stops"

    def empty_segmentation(self):
        self.put(segmentation=[])
        return "no mask", "as segmentation, got [], and mmdet stops"

    def nan(self):
        self.put(segmentation=[[NAN, *OUTLINE[1:]]])
        return "polygon", "a coordinate is not finite"

    def infinite(self):
        self.put(segmentation=[[INFINITE, *OUTLINE[1:]]])
        return "polygon", "a coordinate is not finite"

    def far_outside(self):
        self.put(segmentation=[[1e9, *OUTLINE[1:]]])
        return "polygon", "far outside the image"

    def fractions(self):
        self.put(segmentation=[[0.5, 0.2, 0.8, 0.2, 0.8, 0.6]])
        return "polygon", "expected pixels, not fractions"

    def no_area(self):
        self.put(segmentation=[[10, 10] * 3], bbox=[10, 10, 1, 1])
        return "empty mask", "annotation 1 (image 1): the mask has no pixel"

    def runs_of_another_size(self):
        self.put(segmentation=runs(SIZE[::-1]))
        return "mask of another size", "of the size [96, 128], height and width"

    def runs_too_short(self):
        self.put(segmentation=dict(size=list(SIZE), counts=[100, 50]))
        return "run lengths", "add up to 12288 pixels, got 150"

    def negative_runs(self):
        self.put(segmentation=dict(size=list(SIZE), counts=[-5, 12293]))
        return "run lengths", "expected counts from 0 on"

    def compressed_runs_too_short(self):
        self.put(segmentation=runs() | dict(counts="0"))
        return "run lengths", "expected run lengths of all pixels of the size (96, 128), got"

    def compressed_runs_too_long(self):
        big = np.zeros((200, 200), np.uint8, order="F")
        self.put(segmentation=runs() | dict(counts=mask_utils.encode(big)["counts"].decode()))
        return "run lengths", "expected run lengths of all pixels of the size (96, 128), got"

    def bytes_as_text(self):
        self.put(segmentation=runs() | dict(counts=str(runs()["counts"].encode())))
        return "run lengths", "expected counts without b''"

    def no_counts(self):
        self.put(segmentation=dict(size=list(SIZE)))
        return "run lengths", "expected counts as text or numbers, got None"

    def box_of_runs_as_corners(self):
        self.put(segmentation=runs(), bbox=[70, 20, 100, 60])
        return "box as corners", "expected left, top, width and height"

    def box_as_corners(self):
        self.put(bbox=[70, 20, 100, 60])
        return "box as corners", "the box [70, 20, 100, 60] seems to be left, top, right and bottom"

    def another_box(self):
        self.put(bbox=[10, 10, 30, 40])
        return "box", "which the box [10, 10, 30, 40] does not fit"

    def box_outside(self):
        self.put(bbox=[128, 20, 30, 40])
        return "box outside the image", "mmdet leaves out objects whose box [128, 20, 30, 40] is"

    def negative_box(self):
        self.put(bbox=[70, 20, -30, 40])
        return "empty box", "below 1 pixel"

    def box_of_nan(self):
        self.put(bbox=[NAN, 20, 30, 40])
        return "no box", "expected left, top, width and height as bbox, got [nan, 20, 30, 40]"

    def box_of_text(self):
        self.put(bbox="70 20 30 40")
        return "no box", "got 70 20 30 40"

    def zero_area(self):
        self.put(area=0)
        return "empty box", "or whose area, 0, is 0"

    def area_missing(self):
        del self.annotation["area"]
        return "incomplete annotation", "it lacks area, and mmdet or pycocotools stops"

    def iscrowd_missing(self):
        del self.annotation["iscrowd"]
        return "incomplete annotation", "it lacks iscrowd"

    def iscrowd_of_text(self):
        self.put(iscrowd="0")
        return "incomplete annotation", "expected iscrowd, 0 or 1, got '0'"

    def iscrowd_of_a_list(self):
        self.put(iscrowd=[0])
        return "incomplete annotation", "expected iscrowd, 0 or 1, got [0]"

    def unknown_category(self):
        self.put(category_id=7)
        return "unknown category", "category 7 is not among the categories"

    def category_of_text(self):
        self.put(category_id="90")
        return "unknown category", "category '90' is not among the categories"

    def category_twice(self):
        self.content["categories"].append(dict(id=90, name="more"))
        return "duplicate id", "several categories have the id 90"

    def name_twice(self):
        self.content["categories"].append(dict(id=91, name="five"))
        return "duplicate id", "several categories have the name five"

    def annotation_twice(self):
        self.content["annotations"].append(dict(self.annotation))
        return "duplicate id", "several annotations have the id 1: mmdet stops"

    def annotation_zero(self):
        self.put(id=0)
        return "annotation id 0", "pycocotools takes the object of id 0 for missed"

    def image_twice(self):
        self.content["images"].append(dict(self.image))
        return "duplicate id", "several images have the id 1: all but the last one are lost"

    def file_twice(self):
        self.image["file_name"] = "2.jpg"
        return "file in several images", "several images have the file 2.jpg"

    def unknown_image(self):
        self.put(image_id=77)
        return "annotation without image", "an annotation is of the image 77"

    def image_of_text(self):
        for image in self.content["images"]:
            image["id"] = str(image["id"])
        return "type of ids", "annotations are of the image 1, and the image's id is '1'"

    def size_of_text(self):
        self.image["height"] = "96"
        return "size", "image 1: expected height and width in pixels, got ('96', 128)"

    def nothing_left(self):
        for annotation in self.content["annotations"]:
            annotation.update(bbox=[0.5, 0.2, 0.3, 0.4])
        return "no objects", "mmdet leaves out all 3 annotations"

    def no_images(self):
        self.content.update(images=[], annotations=[])
        return "no image", "expected at least one image, got none"

    def no_categories(self):
        self.content["categories"] = []
        return "no category", "expected at least one category, got none"


class Notes(Faults):
    """Sets that are right as they are."""

    def crowds_only(self):
        for annotation in self.content["annotations"]:
            annotation.update(iscrowd=1)
        return "crowds only", "all objects are crowds"

    def empty_image(self):
        del self.content["annotations"][2]
        return "image without objects", "1 of 2 images have no annotation"


FAULTS = [
    name for name in vars(Faults) if not name.startswith("_") and name not in ("check", "put")
]


@pytest.fixture
def faults(tmp_path):
    return Faults(tmp_path)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_clean(faults, num_workers):
    assert faults.check(num_workers=num_workers) == []


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("crowd", [0, 1])
def test_run_lengths_are_clean(faults, compress, crowd):
    faults.put(segmentation=runs(compress=compress), iscrowd=crowd)
    assert faults.check() == []


def test_other_clean_annotations(faults):
    """Polygons of crowds, folders, categories from 0 on and boxes a little outside are fine."""
    faults.put(iscrowd=1, category_id=0, bbox=[70.4, 19, 30.2, 42])
    faults.content["categories"].append(dict(id=0, name="zero"))
    (faults.img_dir / "folder").mkdir()
    (faults.img_dir / "1.jpg").rename(faults.img_dir / "folder/1.jpg")
    faults.image["file_name"] = "folder/1.jpg"
    assert faults.check() == []


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(faults, name):
    kind, message = getattr(faults, name)()
    found = faults.check()
    assert [f for f in found if f.kind == kind and message in f.message], found
    assert all(f.severity != "note" for f in found if f.kind == kind)


@pytest.mark.parametrize("name", ["crowds_only", "empty_image"])
def test_note(tmp_path, name):
    notes = Notes(tmp_path)
    kind, message = getattr(notes, name)()
    (note,) = notes.check()
    assert note.severity == "note" and note.kind == kind and message in note.message


def test_outlines_of_many_annotations_are_sampled(faults, monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE", 1)
    for annotation in faults.content["annotations"]:
        annotation["bbox"] = [70, 20, 100, 60]
    sampled = check_instances_json(faults.content, faults.ann_file)
    assert 0 < len(sampled) < 3
    assert len(faults.check()) == 3


DROPPED = ["box_outside", "zero_area", "unknown_category"]
STOPS = ["area_missing", "no_segmentation", "annotation_twice"]


@pytest.mark.parametrize("name", [*DROPPED, *STOPS, "two_points"])
def test_mmdet_does_what_the_messages_say(faults, name):
    getattr(faults, name)()
    faults.ann_file.write_text(json.dumps(faults.content))

    def load():
        dataset = CocoDataset(
            ann_file=str(faults.ann_file),
            data_prefix=dict(img=str(faults.img_dir)),
            metainfo=dict(classes=("ninety", "five")),
        )
        data = dataset.get_data_info(0)
        return LoadAnnotations(with_mask=True)({**data, "ori_shape": SIZE})["gt_ignore_flags"]

    if name in STOPS:
        with pytest.raises((KeyError, AssertionError)):
            load()
    else:
        assert (load() == 0).sum() == 1
