"""Metrics read the annotations of the images that they score, or the run is refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.helpers.panoptic_sets import GROUND, SKY, THING, drawing, metainfo
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

VAL = "annotations/panoptic_val.json"


@pytest.fixture
def root(tmp_path):
    write_sets(tmp_path / "a")
    return tmp_path / "a"


def add(number):
    """Give the images of a file other ids."""

    def change(content):
        for image in content["images"]:
            image["id"] += number
        for annotation in content["annotations"]:
            annotation["image_id"] += number

    return change


def test_instances_beside_panoptic_annotations_pass(root):
    """As for COCO: the images are the same, the files are not."""
    config = panoptic_config(root)
    metric = dict(type="mmdet.CocoMetric", metric="segm", ann_file=instances(root))
    config.val_evaluator = [config.val_evaluator, metric, dict(type="mmdet.SemSegMetric")]
    assert faults(config) == []


def test_instances_in_another_order_are_refused(tmp_path):
    """The metric numbers the things by its own file."""
    write_sets(tmp_path)
    for split in ("train", "val"):
        instances(tmp_path, split, ("box", "bag"))
    config = instance_config(tmp_path, dict(classes=("box", "bag")))
    assert faults(config, maskformer(2, 0)) == []
    config.val_evaluator.ann_file = instances(tmp_path, "val", ("bag", "box"))
    assert any("got 'box' in place of 'bag'" in s for s in faults(config, maskformer(2, 0)))


@pytest.mark.parametrize("change", ["ids", "names", "sizes"])
def test_annotations_of_other_images(root, change):
    config = panoptic_config(root)
    other = root / "annotations/other.json"
    other.write_text((root / VAL).read_text())
    if change == "ids":
        edit(other, add(10))
    else:

        def rename(content):
            for image in content["images"]:
                image.update(height=9) if change == "sizes" else image.update(
                    file_name=f"x{image['file_name']}"
                )

        edit(other, rename)
    config.val_evaluator.ann_file = str(other)
    found = [s for s in faults(config) if "expected all 3 images" in s]
    assert len(found) == 1
    assert f"in {other} (val_evaluator.ann_file), got other ids, names or sizes for 3" in found[0]


def test_annotations_of_images_with_the_same_names(root):
    """Those of the training set, whose images have the ids and names of the validation set."""
    edit(root / "annotations/panoptic_train.json", lambda content: [
        annotation["segments_info"].pop() for annotation in content["annotations"]
    ])  # fmt: skip
    config = panoptic_config(root)
    config.val_evaluator.ann_file = f"{root}/annotations/panoptic_train.json"
    (found,) = warnings(config, splits=["val"])
    assert "panoptic_train.json (val_evaluator.ann_file) has other segments than" in found
    assert found.endswith("for 3 images, such as 0.jpg")


def test_png_files_of_another_set(root):
    """They exist, and have other ids than the annotations."""
    config = panoptic_config(root)
    other = root / "other"
    shutil.copytree(root / "annotations/panoptic_val", other)
    for png in other.iterdir():
        pixels = np.asarray(Image.open(png))
        Image.fromarray(np.where(pixels > 0, pixels + 1, 0).astype(np.uint8)).save(png)
    config.val_evaluator.seg_prefix = str(other)
    found = faults(config)
    assert found
    assert all(str(other / "0.png") in sentence for sentence in found)


def test_missing_files(root):
    config = panoptic_config(root)
    config.val_evaluator.seg_prefix = str(root / "nowhere")
    assert faults(config) == [
        f"expected a folder as val_evaluator.seg_prefix, got {root}/nowhere, which does not exist; "
        "correct the path"
    ]
    config.val_evaluator.seg_prefix = str(root / "annotations/panoptic_val")
    config.val_evaluator.ann_file = "nowhere.json"
    assert faults(config) == [
        "expected an annotation file as val_evaluator.ann_file, got nowhere.json: No such file or "
        "directory; correct the path"
    ]


def test_metric_that_counts_all_images(root):
    """CocoMetric takes the objects of images that were not tested for missed ones."""
    config = panoptic_config(root)
    metric = dict(type="mmdet.CocoMetric", ann_file=instances(root))
    config.val_dataloader.dataset.indices = 2
    assert warnings(config) == []
    config.val_evaluator = metric
    (found,) = warnings(config)
    assert "val_dataloader.dataset.indices leaves out images, which val_evaluator" in found
    assert faults(config) == []
    config = panoptic_config(root)
    config.val_evaluator = metric
    edit(root / VAL, lambda content: [content[part].pop() for part in ("images", "annotations")])
    (found,) = faults(config)
    assert "got 1 more, which CocoMetric counts as missed" in found
    config.val_evaluator.update(format_only=True, outfile_prefix=str(root / "results"))
    assert faults(config) == []


def test_images_in_several_folders(tmp_path):
    """mmdet's metric looks for PNG files without the folders of their images."""
    images = {f"{folder}/0.jpg": drawing(THING, GROUND, SKY) for folder in "ab"}
    write_sets(tmp_path, images)
    config = panoptic_config(tmp_path)
    (found,) = faults(config)
    assert "expected hcformer_mm.CocoPanopticMetric as val_evaluator for images in several" in found
    config.val_evaluator.type = "hcformer_mm.CocoPanopticMetric"
    assert faults(config) == []


def joined(root, other, kind="panoptic"):
    """A config that validates on two sets."""
    meta = metainfo() if kind == "panoptic" else dict(classes=("box",))
    make = panoptic_config if kind == "panoptic" else instance_config
    config, second = make(root, meta), make(other, meta)
    config.val_dataloader.dataset = dict(
        type="mmdet.ConcatDataset",
        datasets=[one.val_dataloader.dataset.to_dict() for one in (config, second)],
    )
    return config, second


def test_joined_sets_are_refused(root, tmp_path):
    """The second set would be scored against the first one's files."""
    other = tmp_path / "b"
    write_sets(other)
    (found,) = faults(joined(root, other)[0])
    assert "got the id 1 in val_dataloader.dataset.datasets[0] and in val_dataloader" in found
    assert "test each set of a ConcatDataset in a run of its own" in found
    edit(other / VAL, add(10))
    (found,) = faults(joined(root, other)[0])
    assert "expected all 6 images of val_dataloader.dataset.datasets[0] and" in found
    assert "got other ids, names or sizes for 3" in found


def test_joined_sets_with_a_file_of_all_pass(root, tmp_path):
    other = tmp_path / "b"
    write_sets(other)
    edit(other / VAL, add(10))
    parts = [json.loads((one / VAL).read_text()) for one in (root, other)]
    whole = tmp_path / "whole.json"
    whole.write_text(
        json.dumps(
            dict(
                images=parts[0]["images"] + parts[1]["images"],
                annotations=parts[0]["annotations"] + parts[1]["annotations"],
                categories=parts[0]["categories"],
            )
        )
    )
    config, _ = joined(root, other)
    config.val_evaluator.ann_file = str(whole)
    assert faults(config) == []


def test_evaluator_of_several_datasets(root, tmp_path):
    """Each CocoMetric gets the images of its dataset; PQ is computed image by image."""
    other = tmp_path / "b"
    write_sets(other)
    for one in (root, other):
        for split in ("train", "val"):
            instances(one, split)
    config, second = joined(root, other, "instances")
    metrics = [config.val_evaluator, second.val_evaluator]
    config.val_evaluator = dict(
        type="MultiDatasetsEvaluator", dataset_prefixes=["a", "b"], metrics=metrics
    )
    assert faults(config, maskformer(1, 0)) == []
    config.val_evaluator.metrics = metrics[::-1]
    edit(other / "annotations/instances_val.json", add(10))
    assert len(faults(config, maskformer(1, 0))) == 2
    config, second = joined(root, other)
    config.val_evaluator = dict(
        type="MultiDatasetsEvaluator",
        dataset_prefixes=["a", "b"],
        metrics=[config.val_evaluator, second.val_evaluator],
    )
    assert all("expected a metric that scores its images at the end" in s for s in faults(config))
    assert len(faults(config)) == 2


def test_other_metrics_are_left_alone(root):
    config = panoptic_config(root)
    for metric in (
        dict(type="mmdet.LVISMetric", ann_file="nowhere.json"),
        dict(type="nowhere.Metric", ann_file="nowhere.json"),
        dict(type="mmdet.CocoMetric"),
        dict(type="mmdet.CocoMetric", ann_file="s3://bucket/instances.json"),
    ):
        config.val_evaluator = metric
        assert faults(config) == []
