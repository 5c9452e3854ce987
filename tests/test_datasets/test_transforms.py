"""The steps of pipelines: label maps of 16 bits, things that vanish, and files that are broken."""

import json
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from mmdet.structures.mask import PolygonMasks
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmseg.datasets.transforms import LoadAnnotations
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as coco_mask

from hcformer_mm.datasets import (
    LoadImageFromFile,
    LoadInstanceAnnotations,
    LoadPanopticAnnotations,
    LoadSemanticAnnotations,
    Resize,
    ResizeShortestEdge,
)
from tests.test_configs import CONFIGS, read

SIZE = (6, 10)


def save(path, array):
    Image.fromarray(array).save(path)
    return str(path)


def sample(path, *, reduce_zero_label=False, label_map=None, size=SIZE):
    """What mmseg's datasets hand to a pipeline, after the image is loaded."""
    return dict(
        img_path="image.jpg",
        seg_map_path=path,
        ori_shape=size,
        label_map=label_map,
        reduce_zero_label=reduce_zero_label,
        seg_fields=[],
    )


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
        with pytest.raises(ValueError, match=r"expected .*map\.png to be readable: "):
            load(str(file), size=(60, 60))


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


def test_images_are_loaded_as_by_mmcv(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    path = save(tmp_path / "image.png", image)
    found = LoadImageFromFile(to_float32=True)(dict(img_path=path))
    assert found["img"].dtype == np.float32
    assert (found["img"][..., ::-1] == image).all()
    assert found["img_shape"] == found["ori_shape"] == SIZE
    gray = LoadImageFromFile(color_type="grayscale")(dict(img_path=path))
    assert gray["img"].shape == SIZE
    assert LoadImageFromFile(ignore_empty=True)(dict(img_path="none.png")) is None


def test_truncated_images_are_refused(tmp_path):
    path = tmp_path / "image.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"complete image .*, got .*image\.jpg; replace"):
        LoadImageFromFile()(dict(img_path=str(path)))
    assert LoadImageFromFile(ignore_empty=True)(dict(img_path=str(path))) is None


# Things of one pixel, which vanish, and a large one, in an image of 1500x2000; the rest is stuff.
HEIGHT, WIDTH, TINY = 1500, 2000, 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What the datasets of mmdet and mmseg hand to a pipeline."""
    root = tmp_path_factory.mktemp("tiny")
    ids = np.full((HEIGHT, WIDTH), 1000)
    ids[400:1100, 500:1500] = 500
    for index in range(TINY):
        ids[1 + 150 * index, 1 + 190 * index] = index + 1
    things = [500, *range(1, TINY + 1)]
    image = save(root / "image.jpg", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    pixels = {thing: np.argwhere(ids == thing) for thing in things}
    detection = dict(
        img_path=image,
        img_id=1,
        height=HEIGHT,
        width=WIDTH,
        seg_map_path=save(root / "ids.png", id2rgb(ids)),
        segments_info=[
            dict(id=1000, category=7, is_thing=False),
            *(dict(id=thing, category=0, is_thing=True) for thing in things),
        ],
        instances=[
            dict(
                bbox=[*pixels[t].min(0)[::-1].tolist(), *(pixels[t].max(0)[::-1] + 1).tolist()],
                bbox_label=0,
                ignore_flag=0,
                mask=coco_mask.encode(np.asfortranarray(ids == t, np.uint8)),
            )
            for t in things
        ],
    )
    for instance in detection["instances"]:
        instance["mask"]["counts"] = instance["mask"]["counts"].decode()
    maps = save(root / "labels.png", np.where(ids == 1000, 1, 2).astype(np.uint8))
    return dict(mmdet=detection, mmseg=sample(maps, size=None) | dict(img_path=image))


def training_pipelines(*scopes):
    """Different training pipelines of the leaf configs: for each, a config that has it."""
    found = {}
    for path in CONFIGS:
        config = read(path)
        if config.default_scope in scopes:
            found.setdefault(json.dumps(config.train_dataloader.dataset.pipeline), path)
    return list(found.values())


STOCK = dict(
    LoadImageFromFile="LoadImageFromFile",
    LoadSemanticAnnotations="mmseg.LoadAnnotations",
    LoadPanopticAnnotations="mmdet.LoadPanopticAnnotations",
    LoadInstanceAnnotations="mmdet.LoadAnnotations",
    Resize="mmdet.Resize",
    ResizeShortestEdge="mmseg.ResizeShortestEdge",
)


def stock(steps):
    """The steps of mmcv, mmdet and mmseg in place of those of this package."""
    steps = deepcopy(steps)
    for step in steps:
        for key in ("type", "resize_type"):
            if key in step:
                scope, _, name = step[key].rpartition(".")
                step[key] = STOCK[name] if scope == "hcformer_mm" else step[key]
    # mmdet's panoptic pipelines do not filter.
    return [step for step in steps if not step.get("by_mask") or step.get("by_box", True)]


def run_pipeline(config, steps, entry, seed=0):
    """Run a pipeline on a copy of an entry, and return the result and the next random number."""
    entry = json.loads(json.dumps(entry))
    entry["reduce_zero_label"] = any(step.get("reduce_zero_label") for step in steps)
    np.random.seed(seed)
    with warnings.catch_warnings(), DefaultScope.overwrite_default_scope(config.default_scope):
        warnings.filterwarnings("ignore", "`reduce_zero_label` will be deprecated")
        result = Compose(steps)(entry)
    return result, np.random.random()


@pytest.mark.parametrize("path", training_pipelines("mmdet"))
def test_no_empty_mask_reaches_the_loss(path, tiny):
    config = read(path)
    steps = config.train_dataloader.dataset.pipeline
    handed = []
    for seed in range(2):
        with pytest.warns(
            UserWarning, match=rf"of {TINY + 1} objects of .*image\.jpg have no pixel"
        ):
            result, _ = run_pipeline(config, steps, tiny["mmdet"], seed)
        sample = result["data_samples"]
        handed.append(len(sample.gt_instances.labels))
        masks = sample.gt_instances.masks
        assert len(masks) == len(sample.gt_instances.bboxes) == handed[-1]
        assert (masks.areas > 0).all()
        if "panoptic" in path:
            assert 7 in sample.gt_sem_seg.sem_seg
    assert 1 <= max(handed) <= TINY


@pytest.mark.parametrize("path", training_pipelines("mmdet", "mmseg"))
def test_samples_of_clean_data_are_those_of_the_stock_steps(path, tiny):
    config = read(path)
    steps = config.train_dataloader.dataset.pipeline
    entry = dict(tiny[config.default_scope])
    for key in ("instances", "segments_info"):
        if key in entry:
            entry[key] = entry[key][:2] if key == "segments_info" else entry[key][:1]
    ours, number = run_pipeline(config, steps, entry)
    theirs, expected = run_pipeline(config, stock(steps), entry)
    assert number == expected
    assert (ours["inputs"] == theirs["inputs"]).all()
    ours, theirs = ours["data_samples"], theirs["data_samples"]
    assert ours.all_keys() == theirs.all_keys()
    if "gt_sem_seg" in ours:
        (key,) = ours.gt_sem_seg.keys()
        labels, expected = (getattr(sample.gt_sem_seg, key) for sample in (ours, theirs))
        assert labels.dtype == expected.dtype
        assert (labels == expected).all()
    if "gt_instances" in ours:
        assert len(ours.gt_instances.labels) == 1
        assert (ours.gt_instances.labels == theirs.gt_instances.labels).all()
        assert (ours.gt_instances.bboxes.tensor == theirs.gt_instances.bboxes.tensor).all()
        assert (ours.gt_instances.masks.masks == theirs.gt_instances.masks.masks).all()


def test_ignored_masks_are_no_loss(tiny):
    """Polygons of two points and none at all are ignored by mmdet; nothing is said of them here."""
    entry = json.loads(json.dumps(tiny["mmdet"]))
    for instance, mask in zip(entry["instances"][1:], ([[1, 1, 5, 5]], [], [[]]), strict=False):
        instance["mask"] = mask
    entry["instances"] = entry["instances"][:4]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = LoadImageFromFile()(entry)
        result = LoadInstanceAnnotations(with_bbox=True, with_mask=True)(result)
        result = Resize(scale=(256, 192), keep_ratio=True)(result)
    assert len(result["gt_masks"]) == len(result["gt_bboxes"]) == 1
    assert result["gt_ignore_flags"].tolist() == [False]


def test_an_image_is_kept_when_all_its_things_vanish(tiny):
    entry = json.loads(json.dumps(tiny["mmdet"]))
    entry["segments_info"].pop(1)
    entry["instances"].pop(0)
    config = read("configs/shapes/hcformer_r18_shapes-panoptic.py")
    steps = config.train_dataloader.dataset.pipeline
    with pytest.warns(UserWarning, match="10 of 10 objects of .* have no pixel left at .192, 256."):
        result, _ = run_pipeline(config, steps, entry)
    assert len(result["data_samples"].gt_instances.masks) == 0
    assert result["inputs"].shape == (3, 192, 256)


def test_the_first_image_alone_is_warned_of(tiny):
    step = Resize(scale=(256, 192), keep_ratio=True)
    loaders = [LoadImageFromFile(), LoadPanopticAnnotations()]
    with pytest.warns(UserWarning) as warned:
        for _ in range(3):
            results = json.loads(json.dumps(tiny["mmdet"]))
            for loader in loaders:
                results = loader(results)
            step(results)
    assert len(warned) == 1


def test_polygons_of_an_area_are_kept():
    masks = PolygonMasks([[np.array([1.0, 1, 2, 1, 2, 2])], [np.array([3.0, 3, 3, 3, 3, 3])]], 8, 8)
    results = dict(
        img=np.zeros((8, 8, 3), np.uint8), img_path="a", ori_shape=(8, 8), gt_masks=masks
    )
    with pytest.warns(UserWarning, match="1 of 2 objects"):
        assert len(Resize(scale=(4, 4))(results)["gt_masks"]) == 1


@pytest.mark.parametrize(
    "step",
    [
        Resize(scale=(256, 192), keep_ratio=True),
        Resize(scale_factor=0.2),
        ResizeShortestEdge(scale=512, max_size=300),
    ],
)
@pytest.mark.parametrize("size", [(1500, 2), (2, 1500)])
def test_images_that_become_empty_are_refused(step, size):
    results = dict(img=np.zeros((*size, 3), np.uint8), img_path="strip.jpg", seg_fields=[])
    with pytest.raises(
        ValueError, match=r"strip\.jpg, \d+ × \d+ pixels, becomes \d+ × \d+; cut it"
    ):
        step(results)


@pytest.mark.parametrize("size", [(1, 1), (40, 2000), (2000, 40), (1, 30)])
def test_small_and_long_images_are_resized(size):
    results = dict(img=np.zeros((*size, 3), np.uint8), img_path="a.jpg", seg_fields=[])
    assert min(Resize(scale=(256, 192), keep_ratio=True)(results)["img_shape"]) >= 1


def test_panoptic_files_that_cannot_be_read_are_refused(tiny, tmp_path):
    path = tmp_path / "ids.png"
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    content = Path(save(path, noise)).read_bytes()
    results = tiny["mmdet"] | dict(seg_map_path=str(path), ori_shape=(60, 80))
    LoadPanopticAnnotations()(dict(results))
    for broken in (content[: len(content) // 2], b"", b"no image"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"expected .*ids\.png"):
            LoadPanopticAnnotations()(dict(results))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ids\.png of the image's .*, \(80, 60\), got \(60, 80\)"):
        LoadPanopticAnnotations()(results | dict(ori_shape=(80, 60)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_panoptic_files_of_one_row_or_column_are_refused(size, tiny, tmp_path):
    path = save(tmp_path / "ids.png", np.zeros((*size, 3), np.uint8))
    with pytest.raises(ValueError, match=r"ids\.png of two rows and two columns at least, got \("):
        LoadPanopticAnnotations()(tiny["mmdet"] | dict(seg_map_path=path, ori_shape=size))


def test_polygons_for_another_size_are_refused(tiny):
    """As of images that were made smaller after they were annotated."""
    results = tiny["mmdet"] | dict(height=2 * HEIGHT, width=2 * WIDTH)
    step = LoadInstanceAnnotations(with_bbox=True, with_mask=True)
    with pytest.raises(
        ValueError, match=rf"annotations of .*\({HEIGHT}, {WIDTH}\), got \({2 * HEIGHT}"
    ):
        step(results | dict(ori_shape=(HEIGHT, WIDTH)))


def test_masks_of_another_size_are_refused(tiny):
    """mmdet reshapes them, which scrambles the mask of an image that lies on its side."""
    results = tiny["mmdet"] | dict(ori_shape=(WIDTH, HEIGHT), height=WIDTH, width=HEIGHT)
    step = LoadInstanceAnnotations(with_bbox=True, with_mask=True)
    problem = r"annotations of .*image\.jpg .*height and width, \(2000, 1500\), got \(1500, 2000\)"
    with pytest.raises(ValueError, match=problem):
        step(results)
    results["instances"][0] = results["instances"][0] | dict(mask=dict(size=[6, 6], counts="?"))
    with pytest.raises(ValueError, match=r"the annotations of .*image\.jpg to be readable"):
        step(results)
