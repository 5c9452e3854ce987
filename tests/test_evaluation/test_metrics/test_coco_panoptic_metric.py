"""CocoPanopticMetric: mmdet's figures, and those of sets that mmdet's metric cannot score."""

import json
import logging
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoPanopticMetric as TheirMetric
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from PIL import Image

from hcformer_mm.datasets.checks.panoptic import read_segments
from hcformer_mm.evaluation import CocoPanopticMetric
from tests.helpers.clustering_samples import evaluate as evaluate_shapes
from tests.helpers.clustering_samples import metric, samples
from tests.helpers.panoptic_sets import (
    GROUND,
    SETS,
    SKY,
    THING,
    drawing,
    metainfo,
    predicted,
    write_panoptic_set,
)

ALL = (THING, GROUND, SKY)


def evaluate(metric, *given, meta=None):
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = meta or metainfo()
    for one in given:
        evaluator.process([one])
    found = evaluator.evaluate(len(given))
    return {name.removeprefix("coco_panoptic/"): value for name, value in found.items()}


@pytest.fixture
def one_image(tmp_path):
    return write_panoptic_set(tmp_path, "val", {"1.jpg": drawing(*ALL)})


def files(folder):
    config = metric(folder)
    return config["ann_file"], config["seg_prefix"]


def test_results_are_those_of_mmdet_to_the_last_bit(folder):
    """Of images with void and a crowd, together and one by one."""
    for given in (samples(folder), *([one] for one in samples(folder))):
        theirs = evaluate_shapes(TheirMetric(*files(folder)), deepcopy(given))
        ours = evaluate_shapes(CocoPanopticMetric(*files(folder)), given)
        assert ours == theirs
        assert len(ours) == 9 and 0 < ours["coco_panoptic/PQ"] < 100


def test_predictions_are_not_changed(folder, tmp_path):
    """mmdet's metric writes 0 over void, which a later metric takes for a segment."""
    for options in ({}, dict(outfile_prefix=str(tmp_path / "written"))):
        given = samples(folder)
        before = deepcopy([one["pred_panoptic_seg"]["sem_seg"] for one in given])
        evaluate_shapes(CocoPanopticMetric(*files(folder), **options), given)
        for one, labels in zip(given, before, strict=True):
            assert torch.equal(one["pred_panoptic_seg"]["sem_seg"], labels)


@pytest.mark.parametrize("name", SETS)
def test_groups_without_members_are_nan(name, tmp_path):
    """mmdet's metric divides by zero, after the first validation."""
    categories, segments, crowds = SETS[name]
    ids = drawing(*segments)
    paths = write_panoptic_set(tmp_path, "val", {"1.jpg": ids}, categories, crowds)
    meta = metainfo(categories)
    things = THING in segments and not crowds
    stuff = GROUND in segments
    expected = {"": things or stuff, "_th": things, "_st": stuff}
    for given, reached in ((ids, 100), (ids * 0, 0)):
        sample = predicted(given, categories=categories)
        found = evaluate(CocoPanopticMetric(*paths), sample, meta=meta)
        for kind, occurs in expected.items():
            pq = found[f"PQ{kind}"]
            assert pq == (reached if occurs else pytest.approx(np.nan, nan_ok=True))
            assert np.isnan(found[f"SQ{kind}"]) == np.isnan(found[f"RQ{kind}"]) == np.isnan(pq)
    with pytest.raises(ZeroDivisionError):
        evaluate(TheirMetric(*paths), predicted(ids, categories=categories), meta=meta)


def test_segments_where_there_is_nothing_are_counted(tmp_path):
    """A class that is only predicted has PQ 0, as in mmdet, unless its place is void."""
    paths = write_panoptic_set(tmp_path, "val", {"1.jpg": drawing(GROUND)})
    found = evaluate(CocoPanopticMetric(*paths), predicted(drawing(THING, GROUND)))
    assert np.isnan(found["PQ_th"]) and found["PQ_st"] == found["PQ"] == 100  # in void
    ids = drawing(*ALL)
    ids[ids == THING] = GROUND
    paths = write_panoptic_set(tmp_path, "val", {"1.jpg": ids})
    found = evaluate(CocoPanopticMetric(*paths), predicted(drawing(*ALL)))
    assert found["PQ_th"] == 0 < found["PQ_st"]
    assert found == evaluate(TheirMetric(*paths), predicted(drawing(*ALL)))


def test_void_is_no_segment_of_the_first_stuff(tmp_path):
    """In a set of stuff alone, the first class has the label 0, which is mmdet's void."""
    categories = (GROUND, SKY)
    paths = write_panoptic_set(tmp_path, "val", {"1.jpg": drawing(*categories)}, categories)
    sample = predicted(drawing(SKY), categories=categories)  # void in place of the ground
    found = evaluate(CocoPanopticMetric(*paths), sample, meta=metainfo(categories))
    assert found["PQ_st"] == 50
    assert found["SQ_st"] == 50


def test_images_of_one_name_in_several_folders(tmp_path):
    images = {"a/1.jpg": drawing(*ALL), "b/1.jpg": drawing(*ALL, shift=20)}
    paths = write_panoptic_set(tmp_path, "val", images)
    given = [predicted(ids, i, name) for i, (name, ids) in enumerate(images.items(), start=1)]
    assert evaluate(CocoPanopticMetric(*paths), *given)["PQ"] == 100
    for options in ({}, dict(outfile_prefix=str(tmp_path / "out/val"))):
        swapped = [{**one, "img_id": 3 - one["img_id"]} for one in given]
        assert evaluate(CocoPanopticMetric(*paths, **options), *swapped)["PQ_th"] == 0
    (tmp_path / "out").rename(tmp_path / "first")
    written = CocoPanopticMetric(*paths, outfile_prefix=str(tmp_path / "out/val"))
    evaluate(written, *given)
    content = json.loads((tmp_path / "out/val.panoptic.json").read_text())
    assert [one["file_name"] for one in content["annotations"]] == ["a/1.png", "b/1.png"]
    assert [info["category_id"] for info in content["annotations"][1]["segments_info"]] == [2, 3, 1]
    first, second = (
        np.asarray(Image.open(tmp_path / "out/val.panoptic" / name)).astype(int) @ (1, 256, 65536)
        for name in ("a/1.png", "b/1.png")
    )
    assert np.unique(first).tolist() == [1, 2, 1000]
    assert not np.array_equal(first, second)


def test_written_predictions_are_those_of_mmdet(folder, tmp_path):
    figures = []
    for metric_type, name in ((TheirMetric, "theirs"), (CocoPanopticMetric, "ours")):
        built = metric_type(*files(folder), outfile_prefix=str(tmp_path / name / "val"))
        figures.append(evaluate_shapes(built, samples(folder)))
    assert figures[0] == figures[1]
    theirs, ours = (tmp_path / name / "val.panoptic.json" for name in ("theirs", "ours"))
    assert json.loads(ours.read_text()) == json.loads(theirs.read_text())
    written = sorted((tmp_path / "theirs/val.panoptic").iterdir())
    assert written
    for file in written:
        assert file.read_bytes() == (tmp_path / "ours/val.panoptic" / file.name).read_bytes()


def test_only_writing(one_image, tmp_path):
    """Test images have no ground truth."""
    ann_file, _ = one_image
    built = CocoPanopticMetric(ann_file, format_only=True, outfile_prefix=str(tmp_path / "o/test"))
    assert evaluate(built, predicted(drawing(*ALL))) == {}
    assert (tmp_path / "o/test.panoptic/1.png").is_file()


def test_png_that_the_annotation_names(tmp_path):
    """mmdet would read the image itself, whose name does not end in .jpg."""
    ann_file, pngs = write_panoptic_set(tmp_path, "val", {"1.jpg": drawing(*ALL)})
    file = Path(ann_file)
    file.write_text(file.read_text().replace("1.jpg", "1.jpeg").replace("1.png", "one.png"))
    Path(pngs, "1.png").rename(Path(pngs, "one.png"))
    found = evaluate(CocoPanopticMetric(ann_file, pngs), predicted(drawing(*ALL), name="1.jpeg"))
    assert found["PQ"] == 100


@pytest.mark.parametrize("name", ["1.JPG", "1.jpeg", "1.tif"])
def test_written_predictions_are_png_files(tmp_path, name):
    """Annotations of such images have their names, by which OpenCV would lose colors, the ids."""
    ann_file, pngs = write_panoptic_set(tmp_path, "val", {"1.jpg": drawing(*ALL)})
    file = Path(ann_file)
    file.write_text(file.read_text().replace("1.jpg", name).replace("1.png", name))
    Path(pngs, "1.png").rename(Path(pngs, name))
    built = CocoPanopticMetric(ann_file, pngs, outfile_prefix=str(tmp_path / "out/val"))
    assert evaluate(built, predicted(drawing(*ALL), name=name))["PQ"] == 100
    (one,) = json.loads((tmp_path / "out/val.panoptic.json").read_text())["annotations"]
    written = read_segments(tmp_path / "out/val.panoptic" / one["file_name"])
    assert set(np.unique(written)) == {info["id"] for info in one["segments_info"]}


def test_table_of_classes(one_image, caplog, monkeypatch):
    """Each class has its own figures, though the file has a category that the model lacks."""
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    built = CocoPanopticMetric(*one_image, classwise=True)
    meta = metainfo((THING, SKY))
    with caplog.at_level(logging.INFO, "mmengine"):
        evaluate(built, predicted(drawing(THING, SKY), categories=(THING, SKY)), meta=meta)
    for name, pq in (("box", 100), ("sky", 100), ("ground", 0)):
        assert re.search(rf"\| {name} +\| {pq}\.000 +\|", caplog.text)


@pytest.mark.parametrize("value", [5, 1004, -1, 16_778_001])
def test_predictions_that_no_class_has(one_image, value):
    sample = predicted(drawing(*ALL))
    sample["pred_panoptic_seg"]["sem_seg"][0, 0, 0] = value
    with pytest.raises(ValueError, match=rf"from 0 to 2, .* image 1 modulo 1000, got {value}$"):
        evaluate(CocoPanopticMetric(*one_image), sample)


def test_unusable_ground_truth(one_image, tmp_path):
    png = tmp_path / "annotations/panoptic_val/1.png"
    sample = predicted(drawing(*ALL))
    with pytest.raises(ValueError, match=r"expected .*1\.png of the size \(24, 64\) .* \(48, 64\)"):
        evaluate(CocoPanopticMetric(*one_image), {**sample, "ori_shape": (24, 64)})
    with pytest.raises(ValueError, match=r"expected image 9 in .*panoptic_val\.json, got none"):
        evaluate(CocoPanopticMetric(*one_image), {**sample, "img_id": 9})
    for content in (b"", b"no image", None):
        png.unlink() if content is None else png.write_bytes(content)
        with pytest.raises(ValueError, match=r"image 1 as a PNG file, got .*1\.png"):
            evaluate(CocoPanopticMetric(*one_image), sample)
    for options in (dict(), dict(ann_file=one_image[0])):
        with pytest.raises(ValueError, match="expected ann_file and seg_prefix, got"):
            METRICS.build(dict(type="hcformer_mm.CocoPanopticMetric", **options))
