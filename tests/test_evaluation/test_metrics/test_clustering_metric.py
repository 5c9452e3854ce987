"""ClusteringMetric: scores of the clusters of a dataset and their error attribution."""

import json
import logging
import math
from itertools import pairwise

import mmcv
import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric, CocoPanopticMetric, SemSegMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from panopticapi.utils import rgb2id

from hcformer_mm.evaluation import partitions
from hcformer_mm.evaluation.functional import superpixels
from hcformer_mm.evaluation.measures.panoptic_faults import BELOW_THRESHOLD, KINDS
from hcformer_mm.evaluation.partitions import cell_map, slic_superpixels
from hcformer_mm.structures.image_clusters import ImageClusters
from tests.helpers.clustering_samples import (
    CLASSES,
    THINGS,
    evaluate,
    metric,
    samples,
)

LEVELS = ("level_1", "level_2", "level_3")
SCORES = {
    "clusters",
    "UE",
    "UE_Levin",
    "ASA",
    "boundary_recall",
    "boundary_precision",
    "compactness",
    "explained_variation",
}


@pytest.fixture(scope="module")
def panoptic(folder):
    """Results after mmdet's metrics have seen the samples."""
    return evaluate([*mmdet_metrics(folder), metric(folder)], samples(folder))


def mmdet_metrics(folder):
    config = metric(folder)
    return [
        CocoPanopticMetric(config["ann_file"], config["seg_prefix"]),
        SemSegMetric(prefix="sem_seg"),
    ]


def figures(metrics, kind):
    """Parts of ``clusters/<kind>/<part>``."""
    start = f"clusters/{kind}/"
    return {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}


def test_order_of_the_metrics(folder, panoptic):
    """CocoPanopticMetric changes predictions in place, which changes nothing here.

    A metric evaluates again, as after every epoch.
    """
    built = METRICS.build(metric(folder))
    before = evaluate([built, *mmdet_metrics(folder)], samples(folder))
    assert before == pytest.approx(panoptic, nan_ok=True)
    alone = evaluate([built], samples(folder))
    assert alone == {name: panoptic[name] for name in alone}
    for name in ("PQ", "PQ_th", "PQ_st"):
        theirs = panoptic[f"coco_panoptic/{name}"]
        assert panoptic[f"clusters/prediction/{name}"] == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("name", ["PQ", "PQ_th", "PQ_st", "mIoU"])
def test_the_losses_add_up(panoptic, name):
    parts = figures(panoptic, f"blame/{name}")
    decoding = parts.pop("decoding")
    parts = {part: loss for part, loss in parts.items() if "/" not in part}
    assert list(parts) == ["stem", *LEVELS, "classification"]
    assert panoptic[f"clusters/ground_truth/{name}"] == 100
    assert sum(parts.values()) == pytest.approx(100 - panoptic[f"clusters/prediction/{name}"])
    assert sum(parts.values()) - parts["classification"] == pytest.approx(decoding)
    # A share is the difference of the stages around its part.
    stages = ("ground_truth", "cells", *LEVELS, "prediction")
    for share, (before, after) in zip(parts.values(), pairwise(stages), strict=True):
        difference = panoptic[f"clusters/{before}/{name}"] - panoptic[f"clusters/{after}/{name}"]
        assert share == pytest.approx(difference)


def test_cells_of_a_pixel_lose_nothing(folder):
    """With levels down to the image, the stem's two halvings are levels 1 and 2."""
    given = samples(folder)
    for one in given:
        size = one["ori_shape"]
        cells = [tuple(-(-side // 2**level) for side in size) for level in range(5)]
        assignments = tuple(torch.rand(9, *cell) for cell in cells)
        one["clusters"] = ImageClusters(assignments, 1, size, size)
    results = evaluate([metric(folder)], given)
    parts = figures(results, "blame/PQ")
    assert [part for part in parts if part.startswith("level_")] == [
        f"level_{level}" for level in range(1, 6)
    ]
    assert parts["stem"] == 0 and results["clusters/cells/PQ"] == 100


@pytest.mark.parametrize("told", [False, True])
def test_kinds_of_faults_add_up_to_classification(folder, panoptic, told):
    """The samples are the shifted ground truth with errors, and nothing lacks in the candidates."""
    given = samples(folder)
    for one in given if told else ():
        truth, void = one["gt_sem_seg"]["sem_seg"][0], len(CLASSES)
        labels = torch.where(truth == 255, void, truth + 1000 * (truth < THINGS))
        one["pred_candidate_seg"] = dict(sem_seg=labels[None])
    metrics = evaluate([metric(folder)], given) if told else panoptic
    for name in ("PQ", "PQ_th", "PQ_st"):
        faults = figures(metrics, f"blame/{name}/classification")
        assert list(faults) == [kind for kind in KINDS if told or kind != BELOW_THRESHOLD]
        share = metrics[f"clusters/blame/{name}/classification"]
        assert sum(faults.values()) == pytest.approx(share, abs=1e-9)
        if told:
            before = figures(panoptic, f"blame/{name}/classification")
            for kind in faults.keys() - {"missed", "inexact", BELOW_THRESHOLD}:
                assert faults[kind] == before[kind]
            assert faults["missed"] == 0 != before["missed"]
    assert not figures(metrics, "blame/mIoU/classification")


def test_worst_images(folder):
    """Losses of images add up to those of kinds; images that lose less than decoding do not count.

    A single image makes up the whole loss. Clusters are of 2 x 2 pixels.
    """
    built, every = METRICS.build(metric(folder)), samples(folder)
    for one in every:
        assignment = torch.zeros(9, *one["ori_shape"])
        assignment[4] = 1  # to the parent cell
        one["clusters"] = ImageClusters((assignment,), 1, one["ori_shape"], one["ori_shape"])
    for given in (every[1:2], every):
        metrics = evaluate([built], given)
        worst = built.worst_images(100)
        for kind, loss in figures(metrics, "blame/PQ/classification").items():
            losses = [one for _, one, _ in worst[kind]]
            assert losses == sorted(losses, reverse=True) and all(one > 0 for one in losses)
            assert sum(losses) == pytest.approx(max(loss, 0)) or len(given) > 1
            assert sum(losses) >= loss - 1e-9
            assert built.worst_images(2)[kind] == worst[kind][:2]
    assert len(worst["missed"]) > 1 and len(worst["wrong_class"]) > 0
    by_path = {one["img_path"]: one for one in every}
    path, _, wrong = worst["wrong_class"][0]
    truth, prediction = built.segments(by_path[path])
    assert {fault.kind for fault in wrong} == {"wrong_class"}
    assert {fault.true for fault in wrong} - {None} <= truth.categories.keys()
    assert {fault.found for fault in wrong} - {None} <= prediction.categories.keys()
    assert set(truth.categories.values()) <= set(range(len(CLASSES)))
    assert METRICS.build(metric(folder, "semantic")).worst_images(3) == {}


def test_scores_are_means_over_the_images(folder, panoptic):
    """Void and the crowd do not count."""
    content = json.loads((folder / "shapes/annotations/panoptic_val.json").read_text())
    scores = []
    for one, annotation in zip(samples(folder), content["annotations"], strict=True):
        png = folder / "shapes/annotations/panoptic_val" / annotation["file_name"]
        ids = rgb2id(mmcv.imread(str(png), channel_order="rgb"))
        crowds = [info["id"] for info in annotation["segments_info"] if info["iscrowd"]]
        arguments = (one["clusters"].labels()[1], ids.astype(int))
        options = dict(ignore=np.isin(ids, [0, *crowds]))
        recall, precision = superpixels.boundary_scores(*arguments, **options)
        scores.append(
            dict(
                UE=superpixels.undersegmentation_error(*arguments, **options),
                UE_Levin=superpixels.undersegmentation_error(*arguments, form="levin", **options),
                ASA=superpixels.achievable_segmentation_accuracy(*arguments, **options),
                boundary_recall=recall,
                boundary_precision=precision,
            )
        )
    for name in scores[0]:
        expected = 100 * np.mean([score[name] for score in scores])
        assert panoptic[f"clusters/level_2/{name}"] == pytest.approx(expected)


def test_instances(folder):
    config = metric(folder, "instance")
    metrics = evaluate(
        [config, CocoMetric(config["ann_file"], metric="segm")],
        samples(folder),
        classes=CLASSES[:THINGS],
    )
    assert round(metrics["clusters/prediction/AP"] / 100, 3) == metrics["coco/segm_mAP"]
    parts = figures(metrics, "blame/AP")
    del parts["decoding"]
    assert sum(parts.values()) == pytest.approx(100 - metrics["clusters/prediction/AP"])
    assert metrics["clusters/cells/AP"] > metrics["clusters/level_1/AP"] > 0
    assert not figures(metrics, "blame/mIoU")


@pytest.mark.parametrize("tolerance", [0, 5])
def test_semantic(folder, tolerance):
    given = samples(folder)
    for one in given:  # as of mmseg
        for key in ("gt_sem_seg", "pred_sem_seg"):
            one[key] = dict(data=one[key]["sem_seg"])
        del one["pred_panoptic_seg"], one["pred_instances"]
    metrics = evaluate([metric(folder, "semantic", tolerance=tolerance)], given)
    assert set(figures(metrics, "level_1")) == {*SCORES, "mIoU"}
    pairs = [(one["clusters"].labels()[2], one["gt_sem_seg"]["data"][0]) for one in given]
    expected = dict(
        UE=[100 * superpixels.undersegmentation_error(*pair, ignore=255) for pair in pairs],
        clusters=[superpixels.number_of_clusters(labels) for labels, _ in pairs],
        boundary_recall=[
            100 * superpixels.boundary_scores(*pair, tolerance=tolerance, ignore=255)[0]
            for pair in pairs
        ],
    )
    for name, values in expected.items():
        assert metrics[f"clusters/level_3/{name}"] == pytest.approx(np.mean(values))


def test_void_counts_for_nothing(folder):
    """Predictions in void pixels change no result."""
    given = samples(folder)
    expected = evaluate([metric(folder)], given)
    changed = 0
    for one in given:
        void = one["gt_sem_seg"]["sem_seg"] == 255
        changed += int(void.sum())
        one["pred_sem_seg"]["sem_seg"][void] = 3
    metrics = evaluate([metric(folder)], given)
    assert changed > 0
    assert metrics == pytest.approx(expected, nan_ok=True)


def test_image_of_void_alone(folder):
    """It has no scores that need ground truth, and the mean is over the others."""
    given = samples(folder)[:2]
    for one in given:
        del one["pred_panoptic_seg"]
    alone = evaluate([metric(folder, "semantic")], given[:1])
    given[1]["gt_sem_seg"]["sem_seg"][:] = 255
    both = evaluate([metric(folder, "semantic")], given)
    for name in ("UE", "ASA", "boundary_recall", "mIoU"):
        assert both[f"clusters/level_1/{name}"] == alone[f"clusters/level_1/{name}"]
    assert both["clusters/level_1/clusters"] != alone["clusters/level_1/clusters"]
    void = evaluate([metric(folder, "semantic")], given[1:])
    assert math.isnan(void["clusters/level_1/UE"])
    assert not figures(void, "blame/mIoU")  # no class occurs


def test_panoptic_without_semantic_results(folder):
    given = samples(folder)
    for one in given:
        del one["pred_sem_seg"]
    metrics = evaluate([metric(folder)], given)
    assert "clusters/prediction/PQ" in metrics and "clusters/prediction/mIoU" not in metrics


def test_slic_at_equal_counts(folder, panoptic):
    metrics = evaluate([metric(folder, slic=True)], samples(folder))
    assert {name: value for name, value in metrics.items() if "slic" not in name} == {
        name: value for name, value in panoptic.items() if name.startswith("clusters/")
    }
    for level in (1, 2, 3):
        ours, theirs = (figures(metrics, f"{kind}_{level}") for kind in ("level", "slic"))
        assert set(theirs) == set(ours)
        assert theirs["clusters"] == pytest.approx(ours["clusters"], rel=0.25)
        # The clusters of the samples are random, those of SLIC follow the image.
        assert theirs["explained_variation"] > ours["explained_variation"]


@pytest.mark.parametrize("number", [1, 6, 50, 10_000])
def test_slic_of_any_number(folder, number):
    image = mmcv.imread(samples(folder)[0]["img_path"], channel_order="rgb")
    labels = slic_superpixels(image, number)
    assert labels.shape == image.shape[:2] and labels.min() == 0
    found = superpixels.number_of_clusters(labels)
    if number < 10_000:
        assert abs(found - number) <= max(1, number // 4)


def test_slic_keeps_the_closest_number(monkeypatch):
    image = np.zeros((8, 8, 3), np.uint8)
    counts = iter([9, 5, 7, 64])

    def slic(image, n_segments, start_label):
        return np.arange(64).reshape(8, 8) % next(counts)

    monkeypatch.setattr(partitions, "slic", slic)
    assert superpixels.number_of_clusters(slic_superpixels(image, 6)) == 5


def test_cells_of_a_resized_image():
    """Cells of 4 pixels in an input of 8 x 12 are of 8 pixels in an image of twice its size."""
    clusters = ImageClusters((torch.rand(9, 3, 3),), 4, (8, 12), (16, 24))
    assert cell_map(clusters)[::8, ::8].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert superpixels.number_of_clusters(cell_map(clusters)) == 6
    # Clusters are made of cells, in images of any size.
    for size in ((16, 24), (7, 30), (8, 12)):
        clusters = ImageClusters((torch.rand(9, 3, 3),), 4, (8, 12), size)
        (labels,) = clusters.labels()
        assert cell_map(clusters).shape == size
        table = superpixels.overlaps(cell_map(clusters), labels)
        assert table.pixels.nnz == len(table.cluster_labels)


def test_prefix_and_tables(folder, caplog, monkeypatch):
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    with caplog.at_level(logging.INFO, "mmengine"):
        metrics = evaluate([metric(folder, prefix="val")], samples(folder))
    assert all(name.startswith("val/") for name in metrics)
    text = caplog.text
    assert "ground truth" in text and "level 3" in text
    pq = metrics["val/prediction/PQ"]
    assert f"PQ {pq:.1f}: decoding costs {metrics['val/blame/PQ/decoding']:.1f} (stem" in text
    assert "Loss by kind of fault" in text and "split or merged" in text


def test_unusable_samples(folder):
    without, other_size, *_ = samples(folder)
    del without["clusters"]
    with pytest.raises(ValueError, match=r'add dict\(type="hcformer_mm.ClusterRecordHook"\)'):
        evaluate([metric(folder)], [without])
    other_size["gt_sem_seg"]["sem_seg"] = other_size["gt_sem_seg"]["sem_seg"][:, ::2]
    message = r"expected ground truth of the original size .* after resizing"
    with pytest.raises(ValueError, match=message):
        evaluate([metric(folder)], [other_size])
    with pytest.raises(ValueError, match=r"expected classes in the metainfo .* got none"):
        evaluate([metric(folder)], samples(folder), classes=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(ground_truth="depth"), r"among \['instance', 'panoptic', 'semantic'\], got 'depth'"),
        (dict(ground_truth="panoptic", ann_file="a.json"), "and seg_prefix .* seg_prefix=None"),
        (dict(ground_truth="instance"), "expected ann_file with .*, got ann_file=None"),
        (
            dict(ground_truth="semantic", ann_file="a.json"),
            "expected no files .* ann_file='a.json'",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        METRICS.build(dict(type="hcformer_mm.ClusteringMetric", **options))
