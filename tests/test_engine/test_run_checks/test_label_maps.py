"""Label maps from which nothing, or something else, would be learned are refused."""

import numpy as np
import pytest
from PIL import Image

from hcformer_mm.engine.run_checks import label_maps
from tests.helpers.run_configs import faults, segmentor, semantic_config, warnings

BINARY = ("background", "object")


def mask(inside, outside=0, dtype=np.uint8):
    pixels = np.full((24, 32), outside, dtype)
    pixels[6:18, 8:20] = inside
    return pixels


def check(root, maps, classes=BINARY, **options):
    config = semantic_config(root, classes, maps)
    config.train_dataloader.dataset.update(options)
    return faults(config, segmentor(len(classes)), ["train"])


def test_maps_of_both_classes_pass(tmp_path):
    assert check(tmp_path, [mask(1), mask(0), mask(255, 1)]) == []


def test_object_of_255(tmp_path):
    (found,) = check(tmp_path, [mask(255), mask(255)])
    assert f"{tmp_path}/semantic/train: 2 maps have class 0 alone, no pixel of class 1" in found
    assert "divide by 255" in found


def test_rare_objects_pass(tmp_path):
    """The maps that are opened first lack the object; one of the others has it."""
    maps = [mask(0, 255)] * 40
    maps[1] = mask(1)
    assert check(tmp_path, maps) == []


def test_maps_are_opened_up_to_the_last_ones(tmp_path, monkeypatch):
    """As of folders whose first files show one kind of image."""
    monkeypatch.setattr(label_maps, "FEW", 2)
    monkeypatch.setattr(label_maps, "MANY", 4)
    assert check(tmp_path, [mask(255, 255)] * 4 + [mask(1)] * 3) == []


@pytest.mark.parametrize(
    ("classes", "pixels"), [(BINARY, mask(0)), (("object",), mask(255))], ids=["two", "one"]
)
def test_one_class_in_all_maps(tmp_path, classes, pixels):
    """mIoU would be 100 without learning anything."""
    config = semantic_config(tmp_path, classes, [pixels] * 3)
    assert faults(config, segmentor(len(classes)), ["train"]) == []
    (found,) = warnings(config, segmentor(len(classes)), ["train"])
    assert "semantic/train: 3 maps have class 0 alone, so nothing can be learned" in found


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (mask(2), "expected classes from 0 to 1"),
        (np.stack([mask(128)] * 3, -1), "expected one channel of class numbers, got mode RGB"),
        (np.stack([mask(1)] * 4, -1), "got mode RGBA"),
        (mask(255, 255), "all pixels of 2 maps are void"),
        (mask(300, dtype=np.uint16), "expected classes from 0 to 1"),
    ],
)
def test_wrong_maps(tmp_path, pixels, sentence):
    (found,) = check(tmp_path, [pixels] * 2)
    assert sentence in found


def test_reduced_zero_label(tmp_path):
    """Classes count from 1, and 0 is void."""
    assert check(tmp_path, [mask(1, 2)], reduce_zero_label=True) == []
    (found,) = check(tmp_path, [mask(3, 2)], reduce_zero_label=True)
    assert "expected classes from 1 to 2" in found


def test_fewer_classes_than_the_dataset_has(tmp_path):
    """Files keep the numbers of all classes."""
    config = semantic_config(tmp_path, ("road", "car"), [mask(13, 0)])
    for split in ("train", "val"):
        config[f"{split}_dataloader"].dataset.update(
            type="mmseg.CityscapesDataset", img_suffix=".jpg", seg_map_suffix=".png"
        )
    assert faults(config, segmentor(2)) == []


def test_missing_maps_and_images(tmp_path):
    config = semantic_config(tmp_path, BINARY, [mask(1)] * 3)
    (tmp_path / "semantic/train/1.png").unlink()
    (found,) = faults(config, segmentor(2))
    assert "expected 3 files of the dataset" in found
    assert "got all but 1, such as 1.png" in found
    config.train_dataloader.dataset.img_suffix = ".tif"
    (found,) = faults(config, segmentor(2))
    assert f"expected images that end in '.tif' in {tmp_path}/train, got none" in found
    config.train_dataloader.dataset.data_prefix.img_path = "pictures"
    (found,) = faults(config, segmentor(2))
    assert f"got {tmp_path}/pictures, which does not exist" in found
    config = semantic_config(tmp_path, BINARY, [mask(1)])
    config.train_dataloader.dataset.ann_file = "names.txt"
    (found,) = faults(config, segmentor(2))
    assert f"got {tmp_path}/names.txt, which does not exist" in found


def test_images_that_do_not_fit_their_maps(tmp_path):
    """Those of a validation set would be met after the first training iterations only."""
    config = semantic_config(tmp_path, BINARY, [mask(1)] * 3)
    (tmp_path / "val/0.jpg").write_bytes(b"")
    Image.fromarray(mask(1)[:12]).save(tmp_path / "semantic/val/1.png")
    broken, size = faults(config, segmentor(2))
    assert f"{tmp_path}/val/0.jpg: expected an image" in broken
    assert f"{tmp_path}/val/1.jpg: expected height and width (12, 32), got (24, 32)" in size


def test_maps_of_many_classes(tmp_path):
    """mmseg's own loader keeps 8 bits of a label."""
    classes = tuple(f"c{number}" for number in range(300))
    config = semantic_config(tmp_path, classes, [mask(299, 255, np.uint16)])
    config.val_evaluator.ignore_index = 65535
    dataset = config.train_dataloader.dataset
    dataset.pipeline = [dict(type="LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")]
    (found,) = faults(config, segmentor(300))
    assert "train_dataloader.dataset.pipeline for more than 255 classes" in found
    dataset.pipeline[1].type = "hcformer_mm.LoadSemanticAnnotations"
    assert faults(config, segmentor(300)) == []


def test_more_classes_than_queries(tmp_path):
    classes = ("soil", "grass", "sky", "bee")
    labels = np.arange(24 * 32).reshape(24, 32).astype(np.uint8) % 4
    config = semantic_config(tmp_path, classes, [labels])
    (found,) = warnings(config, segmentor(4, queries=3))
    assert f"{tmp_path}/semantic/train/0.png has 4 classes for the 3 queries" in found
    assert "set model.decode_head.num_queries to 4" in found
    assert warnings(config, segmentor(4, queries=4)) == []
