"""Config, classes and annotation files of a COCO set fit each other, or the run is refused."""

import json

import pytest
from pycocotools.coco import COCO
from torch import nn

from hcformer_mm.engine.run_checks import check_run
from tests.helpers.panoptic_sets import GROUND, SETS, SKY, THING, drawing, metainfo
from tests.helpers.run_configs import (
    edit,
    faults,
    instance_config,
    instances,
    maskformer,
    panoptic_config,
    warnings,
    write_sets,
)

TRAIN, VAL = "annotations/panoptic_train.json", "annotations/panoptic_val.json"


@pytest.fixture
def root(tmp_path):
    write_sets(tmp_path)
    return tmp_path


def swap(content):
    """Exchange two stuff categories in the list; their ids stay."""
    content["categories"][1:] = content["categories"][:0:-1]


def test_what_fits_passes(root):
    assert faults(panoptic_config(root)) == []
    assert warnings(panoptic_config(root)) == []


@pytest.mark.parametrize("name", SETS)
def test_sets_without_some_kind_pass(tmp_path, name):
    categories, segments, crowds = SETS[name]
    images = {f"{number}.jpg": drawing(*segments) for number in range(2)}
    write_sets(tmp_path, images, categories=categories, crowds=crowds)
    meta = metainfo(categories)
    model = maskformer(len(meta["thing_classes"]), len(meta["stuff_classes"]))
    assert faults(panoptic_config(tmp_path, meta), model) == []


def test_order_of_the_file(root):
    """Labels follow the file and names follow metainfo: sky and ground would change places."""
    meta = dict(metainfo(), classes=("box", "sky", "ground"), stuff_classes=("sky", "ground"))
    found = faults(panoptic_config(root, meta))
    assert len(found) == 2  # the metric reads the file of the validation set
    for sentence, file in zip(found, (TRAIN, VAL), strict=True):
        assert f"{root}/{file}, which numbers labels, got 'sky' in place of 'ground'" in sentence
        assert sentence.endswith(
            "metainfo to classes=('box', 'ground', 'sky'), thing_classes=('box',), "
            "stuff_classes=('ground', 'sky')"
        )


@pytest.mark.parametrize("file", [TRAIN, VAL])
def test_files_of_different_orders(root, file):
    edit(root / file, swap)
    found = faults(panoptic_config(root))
    assert found
    for sentence in found:
        assert f"{root}/{file}" in sentence
        assert sentence.endswith("list their categories in one order")


def test_files_of_different_orders_with_metainfo_of_their_own(root):
    """Each file fits its metainfo, and both contradict each other."""
    edit(root / VAL, swap)
    config = panoptic_config(root)
    meta = dict(metainfo(), classes=("box", "sky", "ground"), stuff_classes=("sky", "ground"))
    config.val_dataloader.dataset.metainfo = meta
    assert any("to be the same in the same order" in sentence for sentence in faults(config))


def test_class_that_the_file_lacks(root):
    meta = dict(metainfo(), classes=("box", "grund", "sky"), stuff_classes=("grund", "sky"))
    unnamed, absent = faults(panoptic_config(root, meta), splits=["train"])
    assert "got ground; add them to its classes" in unnamed
    assert f"among the categories of {root}/{TRAIN}, got no grund; set train_dataloader" in absent


def test_category_that_metainfo_lacks(root):
    """mmdet stops with KeyError for its segments, and leaves its objects out of instances."""
    meta = dict(classes=("box", "ground"), thing_classes=("box",), stuff_classes=("ground",))
    (found,) = faults(panoptic_config(root, meta), maskformer(1, 1), ["train"])
    assert "expected no segments" in found
    assert "got sky; add them to its classes" in found


def test_category_without_segments_passes(tmp_path):
    write_sets(tmp_path, {"0.jpg": drawing(THING, GROUND)})
    meta = dict(classes=("box", "ground"), thing_classes=("box",), stuff_classes=("ground",))
    assert faults(panoptic_config(tmp_path, meta), maskformer(1, 1)) == []


def test_instances_of_a_part_of_the_categories_pass(root):
    for split in ("train", "val"):
        instances(root, split, ("box", "bag", "cup"))
    assert faults(instance_config(root, dict(classes=("box", "cup"))), maskformer(2, 0)) == []
    found = faults(instance_config(root, dict(classes=("cup", "box"))), maskformer(2, 0))
    assert len(found) == 2
    assert all(s.endswith("metainfo to classes=('box', 'cup')") for s in found)


def test_kind_of_class(root):
    edit(root / TRAIN, lambda content: content["categories"][0].update(isthing=0))
    found = faults(panoptic_config(root), splits=["train"])
    assert any("expected isthing=1 of the category 'box'" in sentence for sentence in found)


def test_annotations_of_another_kind(root):
    for split in ("train", "val"):
        instances(root, split)
    config = panoptic_config(root)
    config.train_dataloader.dataset.ann_file = "annotations/instances_train.json"
    assert any("expected panoptic annotations in" in s for s in faults(config))
    config = instance_config(root, dict(classes=("box",)))
    config.train_dataloader.dataset.ann_file = TRAIN
    assert any("expected instance annotations in" in s for s in faults(config, maskformer(1, 0)))


def test_missing_files(root):
    (root / "train/1.jpg").unlink()
    (root / "annotations/panoptic_train/2.png").unlink()
    config = panoptic_config(root)
    config.val_dataloader.dataset.ann_file = "annotations/panoptic_vel.json"
    image, png, file = sorted(faults(config), key=len, reverse=True)
    image, png = sorted((image, png), key=lambda sentence: "2.png" in sentence)
    assert "expected 3 files of the dataset in" in image
    assert "got all but 1, such as 1.jpg" in image
    assert "got all but 1, such as 2.png" in png
    assert "panoptic_vel.json: No such file" in file


def test_missing_folder(root):
    config = panoptic_config(root)
    config.train_dataloader.dataset.data_prefix.img = "pictures/"
    (found,) = faults(config)
    assert found == (
        f"expected a folder as train_dataloader.dataset.data_prefix.img, got {root}/pictures/, "
        "which does not exist; correct the path"
    )


def test_damaged_file(root):
    (root / TRAIN).write_text('{"images": [')
    (found,) = faults(panoptic_config(root))
    assert f"expected {root / TRAIN}" in found


def test_no_image(root):
    edit(root / TRAIN, lambda content: content.update(images=[], annotations=[]))
    assert any("expected at least one image" in s for s in faults(panoptic_config(root)))


@pytest.mark.parametrize("filter_cfg", [dict(filter_empty_gt=True), dict(min_size=49)])
def test_filter_that_leaves_no_image(tmp_path, filter_cfg):
    """The sampler of an empty set never ends."""
    write_sets(tmp_path, {"0.jpg": drawing(GROUND, SKY)})
    config = panoptic_config(tmp_path)
    config.train_dataloader.dataset.filter_cfg = filter_cfg
    config.val_dataloader.dataset.filter_cfg = filter_cfg  # has no effect in test mode
    (found,) = faults(config)
    assert f"train_dataloader.dataset.filter_cfg keeps, got none with {filter_cfg}; set" in found


def test_images_that_the_filter_leaves_out_may_be_missing(tmp_path):
    write_sets(tmp_path, {"0.jpg": drawing(THING, GROUND), "1.jpg": drawing(GROUND, SKY)})
    config = panoptic_config(tmp_path)
    config.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=32)
    (tmp_path / "train/1.jpg").unlink()
    assert faults(config) == []


def test_faults_of_the_checkers(root):
    """An error of the checker refuses, and many of a kind are one sentence."""

    def change(content):
        for annotation in content["annotations"]:
            annotation["segments_info"][0]["category_id"] = 99

    edit(root / TRAIN, change)
    (found,) = [s for s in faults(panoptic_config(root)) if "99" in s]
    assert str(root / TRAIN) in found
    assert "(3 faults of this kind; tools/dataset_converters/check_panoptic.py lists them)" in found


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("images", dict(height="48"), "expected height and width in pixels, got ('48', 64)"),
        ("segments", dict(category_id=[1]), "category [1] is not among the categories"),
        ("segments", None, "segment None: it lacks area"),
    ],
)
def test_values_of_another_type(root, part, change, sentence):
    """They are named, although nothing else can be known of such an image or segment."""

    def spoil(content):
        entries = content["annotations"][0]["segments_info"]
        entries = entries if part == "segments" else content[part]
        entries[0] = change and {**entries[0], **change}

    for file in (TRAIN, VAL):
        edit(root / file, spoil)
    for file in (TRAIN, VAL):
        assert any(str(root / file) in s and sentence in s for s in faults(panoptic_config(root)))


def test_a_fault_counts_once(root):
    """The rules of the file and those of the first images both compare outlines with boxes."""
    file = instances(root, "train")

    def corners(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = [16, 12, 40, 36]

    edit(file, corners)
    (found,) = faults(instance_config(root, dict(classes=("box",))), maskformer(1, 0), ["train"])
    assert "(3 faults of this kind;" in found


def test_first_images(root):
    """A PNG with other ids than the JSON file makes PQ zero; a wrong area is worth a warning."""

    def change(content):
        content["annotations"][0]["segments_info"][0]["id"] += 1000
        content["annotations"][1]["segments_info"][0]["area"] += 1

    edit(root / TRAIN, change)
    config = panoptic_config(root)
    assert all(f"{root}/annotations/panoptic_train/0.png" in s for s in faults(config))
    assert faults(config)
    (warning,) = warnings(config)
    assert "area" in warning


def test_more_segments_than_queries(root):
    """Crowds are no targets; parts of a stuff class are one."""
    model = maskformer(queries=2)
    (found,) = warnings(panoptic_config(root), model)
    assert "0.jpg of" in found
    assert "has 3 segments for the 2 queries of model.panoptic_head: 3 of 3 images" in found
    assert found.endswith("set model.panoptic_head.num_queries to 3 or more")
    for file in (TRAIN, VAL):
        edit(root / file, lambda content: [
            segment.update(iscrowd=1)
            for annotation in content["annotations"]
            for segment in annotation["segments_info"]
            if segment["category_id"] == 1
        ])  # fmt: skip
    assert warnings(panoptic_config(root), model) == []


def test_other_datasets_are_left_alone(root):
    """Others number labels in their own way, or are MMEngine's to refuse."""
    config = panoptic_config(root)
    for dataset in (
        dict(type="mmdet.Objects365V1Dataset", ann_file="nowhere.json"),
        dict(type="mmdet.XMLDataset", ann_file="nowhere.txt"),
        dict(type="nowhere.Dataset"),
        dict(type="mmdet.CocoDataset", ann_file="s3://nowhere.json", unknown=1),
    ):
        config.train_dataloader.dataset = dataset
        assert faults(config, nn.Linear(1, 1), ["train"]) == []


def test_wrappers(root):
    config = panoptic_config(root)
    inner = config.train_dataloader.dataset
    inner.data_prefix.img = "pictures/"
    config.train_dataloader.dataset = dict(
        type="ConcatDataset", datasets=[dict(type="RepeatDataset", times=2, dataset=inner)]
    )
    (found,) = faults(config)
    assert "train_dataloader.dataset.datasets[0].dataset.data_prefix.img" in found


def test_a_file_is_parsed_once(root, monkeypatch):
    """The dataset gets what the checks have parsed; another reader parses again."""
    file = instances(root)
    instances(root, "train")
    config = instance_config(root, dict(classes=("box",)))
    assert check_run(config, maskformer(1, 0), ["val"], hand_over=True).faults == []
    loads, load = [], json.load
    monkeypatch.setattr(json, "load", lambda opened: loads.append(opened.name) or load(opened))
    first, second = COCO(file), COCO(file)
    assert loads == [file]
    assert first.dataset == second.dataset


def test_a_file_that_changes_is_parsed_again(root):
    """A run may be refused and its file corrected before another reader comes."""
    file = instances(root)
    instances(root, "train")
    config = instance_config(root, dict(classes=("box",)))
    check_run(config, maskformer(1, 0), ["val"], hand_over=True)
    edit(file, lambda content: content["images"].pop())
    assert len(COCO(file).imgs) == 2


def test_files_without_annotations(root):
    """Those of test sets have none."""
    for file in (TRAIN, VAL):
        edit(root / file, lambda content: content.pop("annotations"))
    config = panoptic_config(root)
    assert faults(config) == []
    learned, scored = warnings(config)
    assert learned.endswith("(train_dataloader.dataset.ann_file) has no annotations, so nothing "
                            "can be learned")  # fmt: skip
    assert scored.endswith("(val_evaluator.ann_file) has no annotations, so nothing can be scored")
    config.val_evaluator.format_only = True
    assert warnings(config, splits=["val"]) == []
