"""Label maps in pipelines: 8 and 16 bits, void, and files that mean nothing."""

from pathlib import Path

import numpy as np
import pytest
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from hcformer_mm.datasets import (
    LoadSemanticAnnotations,
)
from tests.helpers.pipelines import SIZE, sample, save


def load(path, num_classes=None, **options):
    return LoadSemanticAnnotations(num_classes=num_classes)(sample(path, **options))["gt_seg_map"]


def label_map_of(values, dtype):
    return np.resize(np.array(values, dtype), SIZE)


WIDE = [
    # number of classes, labels in a file of 16 bits, reduce_zero_label, labels in the sample
    (300, (0, 255, 299, 65535), False, (0, 255, 299, 65535)),
    (None, (0, 255, 299, 65535), False, (0, 255, 299, 65535)),
    (300, (0, 255, 300, 65535), True, (65535, 254, 299, 65535)),
    (None, (0, 255, 300, 65535), True, (65535, 254, 299, 65535)),
    (300, (3, 255, 65535), False, (3, 255, 65535)),
    (256, (3, 255), False, (3, 255)),
    # As mmseg reads them: void is 255.
    (255, (0, 254, 255, 65535), False, (0, 254, 255, 255)),
    (150, (0, 1, 150, 65535), True, (255, 0, 149, 255)),
    (None, (0, 3, 254), False, (0, 3, 254)),
    (None, (0, 3, 255), False, (0, 3, 255)),
]


@pytest.mark.parametrize(("num_classes", "labels", "reduce_zero_label", "expected"), WIDE)
@pytest.mark.parametrize("file", ["map.png", "map.tif"])
def test_labels_of_16_bits(num_classes, labels, reduce_zero_label, expected, file, tmp_path):
    dtype = np.uint16 if file == "map.png" else np.int32
    path = save(tmp_path / file, label_map_of(labels, dtype))
    found = load(path, num_classes, reduce_zero_label=reduce_zero_label)
    void = 65535 if max(expected) > 255 or (num_classes or 0) > 255 else 255
    assert found.dtype == (np.uint8 if void == 255 else np.uint16)
    assert (found == label_map_of(expected, np.int64)).all()


@pytest.mark.parametrize("num_classes", [None, 150])
@pytest.mark.parametrize("mode", ["L", "P", "1"])
@pytest.mark.parametrize("reduce_zero_label", [False, True])
@pytest.mark.parametrize("label_map", [None, {0: 1, 1: 0, 2: 255, 7: 3}])
def test_labels_of_8_bits_are_those_of_mmseg(
    num_classes, mode, reduce_zero_label, label_map, tmp_path
):
    labels = label_map_of((0, 1, 2, 255, 7, 149, 0), np.uint8)
    if mode == "1":
        labels = labels > 1
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)
    path = tmp_path / "map.png"
    image.save(path)
    options = dict(reduce_zero_label=reduce_zero_label, label_map=label_map)
    found = load(str(path), num_classes, **options)
    expected = LoadAnnotations()(sample(str(path), **options))["gt_seg_map"]
    assert found.dtype == expected.dtype == np.uint8
    assert (found == expected).all()


REFUSED = [
    (np.zeros((*SIZE, 3), np.uint8), {}, r"one class index per pixel in .*, got 3 channels"),
    (np.zeros((*SIZE, 4), np.uint8), {}, r"one class index per pixel in .*, got 4 channels"),
    (np.zeros((*SIZE, 2), np.uint8), {}, r"one class index per pixel in .*, got 2 channels"),
    (np.zeros((10, 6), np.uint8), {}, r"height and width, \(6, 10\), got \(10, 6\)"),
    (label_map_of((0, 5), np.uint8), dict(num_classes=5), r"below 5, .* in .*map.png, got 5;"),
    (label_map_of((0, 5), np.uint8), dict(num_classes=4, reduce_zero_label=True), "got 4 .1 less"),
    (label_map_of((0, 299), np.uint16), dict(num_classes=299), r"below 299, .*, got 299"),
    (label_map_of((0, 299), np.uint16), dict(num_classes=9), r"below 9, .*, got 299"),
    (
        label_map_of((0, 255), np.uint8),
        dict(num_classes=300),
        r"16 bits in .*, got 8 and the label",
    ),
    (label_map_of((0, 65535), np.uint16), {}, r"num_classes in the step LoadSemanticAnnotations"),
    (label_map_of((0, 255), np.uint16), dict(reduce_zero_label=True), r"num_classes in the step"),
    (label_map_of((0, 299), np.uint16), dict(num_classes=300, label_map={0: 1}), "all classes"),
]


@pytest.mark.parametrize(("labels", "options", "problem"), REFUSED)
def test_label_maps_that_mean_nothing_are_refused(labels, options, problem, tmp_path):
    path = save(tmp_path / "map.png", labels)
    with pytest.raises(ValueError, match=problem) as raised:
        load(path, **options)
    assert path in str(raised.value)


def test_label_maps_that_cannot_be_read_are_refused(tmp_path):
    path = tmp_path / "map.tif"
    with pytest.raises(ValueError, match=r"8 or 16 bits in .*float32 from 0\.0 to 0\.5"):
        load(save(path, np.full(SIZE, 0.5, np.float32) * (np.arange(10) > 3)))
    with pytest.raises(ValueError, match="int32 from -1 to 1"):
        load(save(path, label_map_of((-1, 1), np.int32)))
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        load(str(tmp_path / "missing.png"))
    noise = np.random.default_rng(0).integers(0, 9, (60, 60), dtype=np.uint8)
    file = tmp_path / "map.png"
    content = Path(save(file, noise)).read_bytes()
    for broken in (content[: len(content) // 2], b"", b"no image"):
        file.write_bytes(broken)
        for backend in ("pillow", "cv2"):
            step = LoadSemanticAnnotations(imdecode_backend=backend)
            with pytest.raises(ValueError, match=r"expected .*map\.png to be readable: "):
                step(sample(str(file), size=(60, 60)))


def test_images_of_an_inferencer_have_no_label_map():
    results = dict(img=np.zeros((4, 4, 3)), img_path="image.jpg")
    assert LoadSemanticAnnotations()(dict(results)).keys() == results.keys()
    with pytest.raises(ValueError, match=r"label map of image.jpg, got none; set data_prefix"):
        LoadSemanticAnnotations()(dict(results, seg_fields=[], reduce_zero_label=False))


def test_contradictory_reduction_is_refused(tmp_path):
    path = save(tmp_path / "map.png", label_map_of((0, 1), np.uint8))
    with pytest.warns(UserWarning, match="reduce_zero_label"):
        step = LoadSemanticAnnotations(reduce_zero_label=True)
    with pytest.raises(
        ValueError, match=r"expected reduce_zero_label=True in the dataset of .*map"
    ):
        step(sample(path))
