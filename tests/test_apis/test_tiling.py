"""Tiles of large images: a model of single pixels gives the same whole and in tiles."""

import itertools
import json
import subprocess
import sys
from functools import cache

import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from pycocotools import mask as mask_util
from skimage.draw import disk
from skimage.measure import label

from hcformer_mm.apis import HCFormerInferencer
from hcformer_mm.apis.bulk_inferencer import BulkInferencer, Share
from hcformer_mm.apis.inputs import InputImage, open_images
from hcformer_mm.apis.result_writer import ResultWriter, segments_of
from hcformer_mm.apis.tiles import Tiling, spans
from hcformer_mm.apis.tiling import encode_part, predict_tiled
from hcformer_mm.structures.panoptic import Classes
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG
from tests.helpers.predictions import scene

THINGS, CLASSES = 3, 5
"""Of the model of single pixels: classes 0 to 2 are things, 3 and 4 stuff, and 5 is void."""
SIZES = [(64, 64), (97, 65), (33, 200), (128, 31), (70, 150)]


def drawing(size, seed=0):
    """Pixels ``(H, W, 3)``: class, number of the object, and confidence."""
    generator = np.random.default_rng(seed)
    pixels = np.empty((*size, 3), np.uint8)
    pixels[..., 0] = 3 + (np.indices(size).sum(0) // 40) % 3  # stripes of stuff and void
    pixels[..., 1] = 0
    pixels[..., 2] = 200
    for number in range(1, 13):
        center, radius = generator.uniform((0, 0), size), generator.uniform(3, 40)
        rows, columns = disk(center, radius, shape=size)
        pixels[rows, columns, 0] = number % THINGS
        pixels[rows, columns, 1] = number
        pixels[rows, columns, 2] = 100 + 10 * number
    pixels[..., 1] = label(pixels[..., 1], connectivity=1)  # what others cut in two is two objects
    return pixels


def panoptic_of(pixels):
    """Prediction of a model that reads class, object and confidence off each pixel."""
    classes, number, confidence = torch.from_numpy(pixels.astype(np.int32)).unbind(-1)
    numbers, order = number.unique(return_inverse=True)
    order = order + (numbers[0] > 0)  # objects are numbered from 1 in each image
    sample = DetDataSample(metainfo=dict(ori_shape=pixels.shape[:2]))
    segments = classes + 1000 * order.int()
    sample.pred_panoptic_seg = PixelData(sem_seg=segments[None])
    sample.pred_sem_seg = PixelData(sem_seg=classes.long()[None])
    sample.pred_confidence = PixelData(data=confidence.float()[None] / 255)
    ids = segments[classes != CLASSES].unique()
    sample.pred_segments = InstanceData(
        ids=ids.long(),
        labels=ids.long() % 1000,
        scores=torch.stack([confidence[segments == i].double().mean() / 255 for i in ids]).float(),
    )
    things = ids[ids >= 1000]
    masks = segments == things[:, None, None]
    found = torch.isin(sample.pred_segments.ids, things)
    sample.pred_instances = InstanceData(
        masks=masks,
        labels=things.long() % 1000,
        scores=sample.pred_segments.scores[found],
        bboxes=torch.zeros(len(things), 4),
    )
    return sample


def semantic_of(pixels, channels=CLASSES):
    """Logits that are functions of single pixels."""
    values = torch.from_numpy(pixels.astype(np.float32))
    logits = torch.stack([(values * (k + 1)).sin().sum(-1) for k in range(channels)])
    sample = SegDataSample(metainfo=dict(ori_shape=pixels.shape[:2]))
    sample.seg_logits = PixelData(data=logits)
    labels = logits.argmax(0) if channels > 1 else logits[0] > 0.3
    sample.pred_sem_seg = PixelData(data=labels.int()[None])
    return sample


def tiled(pixels, model, tiling, **options):
    def predict(images):
        return ((image, model(image.read())) for image in images)

    return predict_tiled(InputImage("0", 0, array=pixels), tiling, predict, **options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tiling", [Tiling((48, 32), 9), Tiling(32, 20), Tiling((33, 64), 4)])
def test_a_model_of_single_pixels_gives_the_same_in_tiles(size, tiling):
    pixels = drawing(size)
    whole, joined = panoptic_of(pixels), tiled(pixels, panoptic_of, tiling)
    assert joined.ori_shape == size
    for field in ("pred_sem_seg", "pred_confidence"):
        for key, value in whole.get(field).items():
            assert np.array_equal(joined.get(field).get(key), value)
    ours, expected = joined.pred_panoptic_seg.sem_seg[0], whole.pred_panoptic_seg.sem_seg[0]
    assert ours.dtype == torch.int32
    pairs = torch.stack([ours, expected]).flatten(1).unique(dim=1)
    # Segments differ in their numbers alone.
    assert (pairs % 1000).diff(dim=0).eq(0).all()
    assert all(len(side.unique()) == pairs.shape[1] for side in pairs)
    names = dict(pairs.flip(0).T.tolist())
    found = joined.pred_segments
    scores = dict(zip(found.ids.tolist(), found.scores.tolist(), strict=True))
    assert list(scores) == sorted(names[i] for i in whole.pred_segments.ids.tolist())
    assert torch.equal(joined.pred_segments.labels, joined.pred_segments.ids % 1000)
    for i, score in zip(*(whole.pred_segments[key] for key in ("ids", "scores")), strict=True):
        assert scores[names[i.item()]] == pytest.approx(score.item(), abs=1e-6)
    found = joined.pred_instances
    assert len(found) == len(whole.pred_instances)
    masks = torch.from_numpy(mask_util.decode(found.masks)).permute(2, 0, 1).bool()
    for i in range(len(found)):
        (j,) = (whole.pred_instances.masks == masks[i]).flatten(1).all(1).nonzero()[:, 0]
        assert found.labels[i] == whole.pred_instances.labels[j]
        assert found.scores[i] == pytest.approx(whole.pred_instances.scores[j].item(), abs=1e-6)
        y, x = masks[i].nonzero().unbind(1)
        assert found.bboxes[i].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, CLASSES])
def test_logits_of_single_pixels_give_the_same_in_tiles(size, channels):
    pixels = drawing(size)
    for tiling in (Tiling((48, 32), 9), Tiling(32, 20)):
        joined = tiled(pixels, lambda x: semantic_of(x, channels), tiling, threshold=0.3)
        assert torch.equal(
            joined.pred_sem_seg.data, semantic_of(pixels, channels).pred_sem_seg.data
        )
        assert "seg_logits" not in joined


def two_tiles(*instances):
    """Model of an image ``(20, 44)`` in two tiles of 20×24, whose strip is columns 20 to 23.

    ``instances`` of each tile: rows of a mask over all its columns, class and score.
    """
    found = iter(instances)

    def model(pixels):
        sample = DetDataSample(metainfo=dict(ori_shape=pixels.shape[:2]))
        rows, labels, scores = zip(*next(found), strict=True)
        masks = torch.zeros(len(rows), *pixels.shape[:2], dtype=torch.bool)
        for mask, (first, last) in zip(masks, rows, strict=True):
            mask[first:last] = True
        sample.pred_instances = InstanceData(
            masks=masks, labels=torch.tensor(labels), scores=torch.tensor(scores)
        )
        return sample

    return model


def joined_instances(iou_thr, *instances):
    pixels = np.zeros((20, 44, 3), np.uint8)
    joined = tiled(pixels, two_tiles(*instances), Tiling((20, 24), 4, iou_thr)).pred_instances
    masks = [mask_util.decode(mask) for mask in joined.masks]
    return joined.labels.tolist(), joined.scores.tolist(), [int(mask.sum()) for mask in masks]


def test_parts_are_joined_by_their_iou_in_the_strip():
    # Rows 0 to 9 and 5 to 14 of the strip: 5 of 15 rows are common. Each tile owns 22 columns.
    left, right = [((0, 10), 1, 0.8)], [((5, 15), 1, 0.2)]
    labels, scores, areas = joined_instances(0.33, left, right)
    assert (labels, areas) == ([1], [10 * 22 + 10 * 22])
    assert scores == pytest.approx([0.5])
    labels, scores, areas = joined_instances(0.34, left, right)
    assert (labels, areas) == ([1, 1], [220, 220])
    assert scores == pytest.approx([0.8, 0.2])
    labels, *_ = joined_instances(0.5, left, [((0, 5), 1, 0.2)])  # an IoU of 1/2 is enough
    assert labels == [1]
    labels, *_ = joined_instances(0.0, left, [((5, 15), 2, 0.2)])  # another class
    assert sorted(labels) == [1, 2]
    labels, *_ = joined_instances(0.0, left, [((10, 15), 1, 0.2)])  # nothing in common
    assert labels == [1, 1]


def test_a_part_has_one_partner_a_side_and_scores_weigh_pixels():
    # Of two duplicates on the right, the better one is the partner: 8/10 against 10/20.
    left, right = [((0, 10), 0, 0.9)], [((0, 20), 0, 0.3), ((0, 8), 0, 0.4)]
    labels, scores, areas = joined_instances(0.1, left, right)
    assert labels == [0, 0]
    assert sorted(areas) == [220 + 8 * 22, 20 * 22]
    whole = (220 * 0.9 + 176 * 0.4) / 396
    assert sorted(scores) == pytest.approx(sorted([whole, 0.3]))
    # Two of each: the pairs of the largest total IoU, not the best pair first.
    left, right = [((0, 10), 0, 0.5), ((2, 12), 0, 0.5)], [((2, 10), 0, 0.5), ((6, 16), 0, 0.5)]
    assert len(joined_instances(0.1, left, right)[0]) == 2


def test_an_image_without_objects():
    pixels = np.zeros((70, 150, 3), np.uint8) + np.uint8((4, 0, 4))
    joined = tiled(pixels, panoptic_of, Tiling(32, 8))
    assert joined.pred_panoptic_seg.sem_seg.eq(4).all()
    assert joined.pred_segments.ids.tolist() == [4]
    assert joined.pred_segments.scores.tolist() == pytest.approx([4 / 255])
    assert len(joined.pred_instances) == len(joined.pred_instances.masks) == 0
    assert joined.pred_instances.bboxes.shape == (0, 4)


def test_more_than_a_thousand_objects_of_a_class():
    pixels = np.full((72, 256, 3), 3, np.uint8)
    pixels[::2, ::2, 0] = 1  # 4608 objects of one pixel
    places = (pixels[..., 0] == 1).nonzero()

    def model(crop):
        sample = DetDataSample(metainfo=dict(ori_shape=crop.shape[:2]))
        objects = torch.from_numpy(crop[..., 0] == 1)
        segments = torch.full(crop.shape[:2], 3, dtype=torch.int32)
        segments[objects] = 1 + 1000 * torch.arange(1, 1 + int(objects.sum()), dtype=torch.int32)
        sample.pred_panoptic_seg = PixelData(sem_seg=segments[None])
        return sample

    segments = tiled(pixels, model, Tiling(32, 2)).pred_panoptic_seg.sem_seg[0]
    values = segments[places]
    assert (values % 1000).unique().tolist() == [1]
    assert sorted((values // 1000).tolist()) == list(range(1, 1 + len(places[0])))
    assert len(values) > 4000


@pytest.mark.parametrize("place", [(0, 0), (3, 5), (7, 9)])
def test_masks_of_parts(place):
    for mask in (
        np.zeros((5, 6), bool),
        np.ones((5, 6), bool),
        np.random.default_rng(0).random((5, 6)) > 0.5,
    ):
        whole = np.zeros((12, 15), bool)
        index = slice(place[0], place[0] + 5), slice(place[1], place[1] + 6)
        whole[index] = mask
        assert encode_part(mask, index, whole.shape) == mask_util.encode(
            np.asfortranarray(whole, np.uint8)
        )


@pytest.fixture(scope="module")
def inferencers(model_files):
    """Inferencers of images at their own size, of both families."""

    def build(path):
        config, weights = model_files(path)
        config = Config.fromfile(config)
        steps = config.test_dataloader.dataset.pipeline
        steps[:] = [step for step in steps if "Resize" not in step["type"]]
        return HCFormerInferencer(config, weights)

    return cache(build)


@pytest.mark.parametrize("path", [SHAPES_CONFIG, SEMANTIC_CONFIG])
def test_an_image_in_one_tile_is_not_cut(path, inferencers, images):
    inferencer = inferencers(path)
    (whole,) = inferencer(images[0])
    for tile in (1024, images[0].shape[:2]):
        (sample,) = inferencer(images[0], tile_size=tile, tile_overlap=32)
        assert sample.keys() == whole.keys()
        for field in whole.keys():  # noqa: SIM118
            for key, value in whole.get(field).items():
                assert torch.equal(sample.get(field).get(key), value)


def cut(image, tile, overlap):
    """Slices of the tiles of an image, and of what belongs to each alone."""
    rows, columns = (
        spans(side, length, overlap) for side, length in zip(image.shape[:2], tile, strict=True)
    )
    for row, column in itertools.product(rows, columns):
        alone = tuple(
            slice(
                span.before.stop if span.before else span.whole.start,
                span.after.start if span.after else span.whole.stop,
            )
            for span in (row, column)
        )
        inside = tuple(span.within(part) for span, part in zip((row, column), alone, strict=True))
        yield (row.whole, column.whole), alone, inside


@pytest.mark.parametrize("path", [SHAPES_CONFIG, SEMANTIC_CONFIG])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_tiles_are_predicted_like_images(path, batch_size, inferencers):
    inferencer, image = inferencers(path), scene(0, (96, 160))
    options = dict(tile_size=(64, 96), tile_overlap=16, batch_size=batch_size)
    (joined,) = inferencer(image, **options, confidence=True)
    assert joined.ori_shape == image.shape[:2]
    for whole, alone, inside in cut(image, (64, 96), 16):
        (sample,) = inferencer(np.ascontiguousarray(image[whole]), confidence=True)
        for field, key in (
            ("pred_panoptic_seg", "sem_seg"),
            ("pred_sem_seg", "sem_seg"),
            ("pred_sem_seg", "data"),
            ("pred_confidence", "data"),
        ):
            if field in sample and key in sample.get(field):
                ours, theirs = (
                    one.get(field).get(key)[(0, *index)]
                    for one, index in ((joined, alone), (sample, inside))
                )
                if ours.is_floating_point():
                    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
                else:
                    assert (ours % 1000 == theirs % 1000).float().mean() > 0.995, field


def test_blended_logits_are_those_of_mmseg_where_one_window_covers(inferencers):
    inferencer, image = inferencers(SEMANTIC_CONFIG), mmcv.imresize(scene(1), (160, 160))
    (joined,) = inferencer(image, tile_size=64, tile_overlap=16)
    model = inferencer.model
    whole = model.test_cfg
    try:
        model.test_cfg = whole | dict(mode="slide", crop_size=(64, 64), stride=(48, 48))
        (slid,) = inferencer(image)
    finally:
        model.test_cfg = whole
    for _, alone, _ in cut(image, (64, 64), 16):
        index = (0, *alone)
        assert torch.equal(joined.pred_sem_seg.data[index], slid.pred_sem_seg.data[index].int())


def test_logits_are_refused(inferencers, images):
    with pytest.raises(ValueError, match="expected logits=False with tile_size"):
        inferencers(SEMANTIC_CONFIG)(images[0], tile_size=64, tile_overlap=8, logits=True)


def test_files_of_tiled_images(inferencers, folder, tmp_path, capsys):
    (folder_ := tmp_path / "in").mkdir()
    for file in folder.iterdir():
        (folder_ / file.name).write_bytes(file.read_bytes())
    (folder_ / "broken.png").write_bytes(b"no image")
    inferencer, out = inferencers(SHAPES_CONFIG), tmp_path / "out"
    options = dict(tile_size=64, tile_overlap=16)
    with pytest.warns(UserWarning, match=r"skipped: .*broken\.png"):
        samples = inferencer(folder_, out_dir=out, progress=True, **options)
    assert len(samples) == 3
    bars = [line for line in capsys.readouterr().err.splitlines() if "6/6" in line]
    assert len(bars) == 3  # of the tiles of each image
    content = json.loads((out / "images.json").read_text())
    assert [one["file_name"] for one in content["failed"]] == ["broken.png"]
    written = json.loads((out / "instances.json").read_text())
    found = [mask for sample in samples for mask in sample.pred_instances.masks]
    assert [one["segmentation"]["counts"].encode() for one in written] == [
        mask["counts"] for mask in found
    ]
    segments = json.loads((out / "panoptic.json").read_text())["annotations"][0]["segments_info"]
    assert [one["score"] for one in segments] == pytest.approx(
        samples[0].pred_segments.scores.tolist()
    )


def test_tiles_of_gray_images(model_files, folder):
    """The loader gives pixels (H, W), which no user can give."""
    settings = {
        "test_dataloader.dataset.pipeline.0.color_type": "grayscale",
        "model.data_preprocessor": dict(mean=[120.0], std=[60.0], bgr_to_rgb=False),
        "model.backbone.backbone.in_channels": 1,
    }
    config = Config.fromfile(model_files()[0])
    config.merge_from_dict(settings)
    with pytest.warns(UserWarning, match="no weights are given"):
        inferencer = HCFormerInferencer(config, device="cpu")
    (sample,) = inferencer(folder / "scene0.png", tile_size=64, tile_overlap=16)
    assert sample.pred_sem_seg.sem_seg.shape[1:] == sample.ori_shape


def test_records_of_tiled_images(model_files, folder, tmp_path):
    inferencer, tiling = BulkInferencer(*model_files()), Tiling(64, 16)
    images = open_images(folder)
    with ResultWriter(tmp_path, inferencer.classes) as writer:
        records = dict(inferencer.records(images, writer, Share(2), tiling=tiling))
    samples = inferencer(folder, tile_size=64, tile_overlap=16, batch_size=2)
    assert list(records) == [0, 1, 2]
    for number, sample in enumerate(samples):
        counts = [one["segmentation"]["counts"] for one in records[number]["instances"]]
        assert counts == [mask["counts"].decode() for mask in sample.pred_instances.masks]


def test_masks_in_rle_are_drawn_like_dense_ones():
    pixels = drawing((70, 150))
    sample = tiled(pixels, panoptic_of, Tiling(32, 8))
    del sample.pred_panoptic_seg
    dense = sample.clone()
    masks = mask_util.decode(sample.pred_instances.masks).transpose(2, 0, 1)
    dense.pred_instances.masks = torch.from_numpy(masks).bool()
    classes = Classes(["a", "b", "c", "d", "e"])
    ours, expected = (segments_of(one, classes, score_thr=0.5) for one in (sample, dense))
    assert np.array_equal(ours.segments, expected.segments)
    assert ours.categories == expected.categories
    assert len(ours.categories) > 2
    sample.pred_instances = sample.pred_instances[:0]
    assert not segments_of(sample, classes, score_thr=0.5).segments.any()


@pytest.mark.slow
def test_memory_of_a_large_image(model_files, tmp_path):
    """Whole process, with the network at 1024×1024, all three results, drawing and writing."""
    code = """
import resource, sys
from mmengine.config import Config
from hcformer_mm.apis import HCFormerInferencer
config, weights, image, out = sys.argv[1:]
config = Config.fromfile(config)
steps = config.test_dataloader.dataset.pipeline
steps[:] = [step for step in steps if "Resize" not in step["type"]]
(sample,) = HCFormerInferencer(config, weights)(image, out_dir=out, tile_size=1024)
assert sample.pred_panoptic_seg.sem_seg.shape == (1, 8000, 8000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    mmcv.imwrite(np.tile(scene(0, (100, 160)), (90, 60, 1))[:8000, :8000], str(tmp_path / "a.png"))
    arguments = [*model_files(), tmp_path / "a.png", tmp_path / "out"]
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 4 * 2**20  # KiB
    assert Image.open(tmp_path / "out" / "vis" / "a.png").size == (8000, 8000)
