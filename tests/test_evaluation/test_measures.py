"""Quality measures, against the metrics of mmdet, mmseg and panopticapi."""

import json

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric, CocoPanopticMetric, SemSegMetric
from mmdet.evaluation.functional import pq_compute_single_core
from mmseg.evaluation import IoUMetric
from panopticapi.evaluation import PQStat
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as coco_mask

from hcformer_mm.evaluation.measures import ImageGroundTruth, MaskAP, MeanIoU, PanopticQuality
from hcformer_mm.evaluation.measures.panoptic_quality import PanopticTruth, panoptic_counts
from tests.helpers.clustering_samples import CLASSES, THINGS, evaluate, metric, samples

THING_CLASSES = CLASSES[:THINGS]
STRIPES = np.repeat(np.arange(8), 2 * 16).reshape(16, 16)  # of two rows


def measured(measure, samples, labeling="predicted"):
    """Figures of the predictions, of the ground truth, or of an oracle on single pixels."""
    counts = []
    for one in samples:
        truth = measure.truth(one)
        if labeling == "predicted":
            prediction = measure.predicted(one)
        elif labeling == "perfect":
            prediction = measure.perfect(truth)
        else:
            pixels = np.arange(truth.void.size).reshape(truth.void.shape)
            prediction = measure.oracle(truth, pixels)
        counts.append(measure.count(prediction, truth))
    return measure.figures(counts)


def panoptic_quality(folder, classes=CLASSES):
    config = metric(folder)
    return PanopticQuality(config["ann_file"], config["seg_prefix"], classes)


def mask_ap(folder, classes=THING_CLASSES):
    return MaskAP(metric(folder, "instance")["ann_file"], classes)


def by_category(stat):
    """IoU, true positives, false positives and false negatives of each category that has some."""
    counts = {i: (v.iou, v.tp, v.fp, v.fn) for i, v in stat.pq_per_cat.items()}
    return {category: values for category, values in counts.items() if any(values[1:])}


def random_panoptic(random, size=(24, 30)):
    """Segments of random rectangles, with void and crowds, and a prediction like them."""
    ids, infos = np.zeros(size, np.int64), {}
    for _ in range(9):
        top, left = random.integers(0, (size[0] - 4, size[1] - 4))
        identity = int(random.integers(1, 2**24))
        ids[top : top + random.integers(3, 12), left : left + random.integers(3, 15)] = identity
        infos[identity] = dict(
            id=identity,
            category_id=int(random.integers(1, 4)),
            iscrowd=int(random.random() < 0.25),
        )
    for identity in list(infos):
        infos[identity]["area"] = int((ids == identity).sum())
        if not infos[identity]["area"]:
            del infos[identity]
    predicted = np.roll(ids, random.integers(-1, 2, size=2), axis=(0, 1))
    names = {identity: 1 + index for index, identity in enumerate(np.unique(predicted)[1:])}
    for identity, name in names.items():
        predicted[predicted == identity] = name
    categories = {
        name: infos[identity]["category_id"] if random.random() < 0.8 else 3
        for identity, name in names.items()
    }
    return ids, infos, predicted, categories


def test_panoptic_counts_are_those_of_panopticapi(tmp_path):
    random = np.random.default_rng(0)
    all_categories = {category: dict(id=category, isthing=1) for category in (1, 2, 3)}
    total = PQStat()
    for _ in range(40):
        ids, infos, predicted, categories = random_panoptic(random)
        counts = panoptic_counts(
            predicted, categories, PanopticTruth(ids, ~np.isin(ids, list(infos)), infos)
        )
        for name, array in (("truth", ids), ("found", predicted)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(array)).save(tmp_path / name / "image.png")
        stat = pq_compute_single_core(
            0,
            [
                (
                    dict(image_id=0, file_name="image.png", segments_info=list(infos.values())),
                    dict(
                        file_name="image.png",
                        segments_info=[dict(id=i, category_id=c) for i, c in categories.items()],
                    ),
                )
            ],
            str(tmp_path / "truth"),
            str(tmp_path / "found"),
            all_categories,
        )
        assert by_category(counts) == by_category(stat)
        total += stat
    kinds = np.array([(c.tp, c.fp, c.fn) for c in total.pq_per_cat.values()]).sum(0)
    assert (kinds > 20).all()  # there was something of everything


def test_panoptic_quality_is_that_of_mmdet(folder):
    config, given = metric(folder), samples(folder)
    expected = measured(panoptic_quality(folder), samples(folder))
    theirs = evaluate([CocoPanopticMetric(config["ann_file"], config["seg_prefix"])], given)
    assert 10 < expected["PQ"] < 90
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert expected[name] == pytest.approx(theirs[f"coco_panoptic/{name}"], abs=1e-9)
    # CocoPanopticMetric has written 0 into the void of the predictions.
    assert any((one["pred_panoptic_seg"]["sem_seg"] == 0).any() for one in given)
    assert measured(panoptic_quality(folder), given) == expected


def test_mean_iou_is_that_of_mmdet_and_mmseg(folder):
    ours = measured(MeanIoU(len(CLASSES)), samples(folder))["mIoU"]
    assert 10 < ours < 90
    theirs = evaluate([SemSegMetric()], samples(folder))["mIoU"]
    assert round(ours, 2) == pytest.approx(theirs, abs=0.011)

    in_mmseg = [
        {key: {"data": one[key]["sem_seg"]} for key in ("gt_sem_seg", "pred_sem_seg")}
        for one in samples(folder)
    ]
    assert measured(MeanIoU(len(CLASSES)), in_mmseg)["mIoU"] == ours
    assert evaluate([IoUMetric()], in_mmseg)["mIoU"] == pytest.approx(theirs, abs=0.011)


@pytest.mark.parametrize("mask_scores", [False, True])
def test_mask_ap_is_that_of_mmdet(folder, mask_scores):
    """Where heads score masks, these scores rank them, whatever the scores of boxes."""
    given, random = samples(folder), torch.Generator().manual_seed(0)
    if mask_scores:
        for one in given:
            scores = one["pred_instances"]["scores"]
            one["pred_instances"]["mask_scores"] = torch.rand(len(scores), generator=random)
    ours = measured(mask_ap(folder), given)["AP"]
    theirs = CocoMetric(metric(folder, "instance")["ann_file"], metric="segm")
    metrics = evaluate([theirs], given, classes=THING_CLASSES)
    assert 5 < ours < 90
    assert round(ours / 100, 3) == metrics["coco/segm_mAP"]
    assert mask_scores == (ours != measured(mask_ap(folder), samples(folder))["AP"])


@pytest.mark.parametrize(
    ("measure", "classes"), [(panoptic_quality, CLASSES), (mask_ap, THING_CLASSES)]
)
def test_classes_that_the_annotations_lack(folder, measure, classes):
    with pytest.raises(ValueError, match=r"one category in .*json .* or several for unicorn"):
        measure(folder, (*classes, "unicorn"))


def test_mask_ap_of_some_images(folder):
    """Instances of images that were not evaluated are not missed."""
    assert measured(mask_ap(folder), samples(folder)[:2], "perfect") == dict(AP=pytest.approx(100))


@pytest.mark.parametrize("labeling", ["perfect", "oracle of pixels"])
def test_ground_truth_is_perfect(folder, labeling):
    """Crowds and void included."""
    for measure in (panoptic_quality(folder), MeanIoU(len(CLASSES)), mask_ap(folder)):
        figures = measured(measure, samples(folder), labeling)
        assert figures == pytest.approx(dict.fromkeys(measure.names, 100.0))


def test_panoptic_oracle():
    """Stripes of 2 x 16 pixels on segments of 9, 3 and 4 rows, the last one a crowd.

    Rows 8 and 9 belong half to segment 5 and half to 6. The first of them wins, so segment 5 takes
    rows 0 to 9 (IoU 9/10) and segment 6 rows 10 and 11 (IoU 2/3).
    """
    ids = np.repeat([5] * 9 + [6] * 3 + [7] * 4, 16).reshape(16, 16)
    infos = {
        5: dict(id=5, category_id=1, iscrowd=0, area=144),
        6: dict(id=6, category_id=2, iscrowd=0, area=48),
        7: dict(id=7, category_id=2, iscrowd=1, area=64),
    }
    truth = PanopticTruth(ids, ids == 7, infos)
    found, categories = PanopticQuality.oracle(None, truth, STRIPES)
    assert found[:, 0].tolist() == [5] * 10 + [6] * 2 + [7] * 4
    assert categories == {5: 1, 6: 2}  # without the crowd
    counts = by_category(panoptic_counts(found, categories, truth))
    assert counts == {1: (0.9, 1, 0, 0), 2: (2 / 3, 1, 0, 0)}


def test_crowds_have_a_vote():
    """A cluster of 12 pixels of a crowd and 4 of a segment is left to the crowd."""
    ids = np.full((2, 16), 5)
    ids[1, :12] = 7
    infos = {
        5: dict(id=5, category_id=1, iscrowd=0, area=20),
        7: dict(id=7, category_id=1, iscrowd=1, area=12),
    }
    truth = PanopticTruth(ids, ids == 7, infos)
    labels = np.repeat([[0], [1]], 16, axis=1)
    found, categories = PanopticQuality.oracle(None, truth, labels)
    assert found[:, 0].tolist() == [5, 7]
    assert categories == {5: 1}
    assert by_category(panoptic_counts(found, categories, truth)) == {1: (16 / 20, 1, 0, 0)}


@pytest.fixture
def overlapping(tmp_path):
    """Two boxes that share column 3, and a crowd in the last column."""

    def annotation(number, columns, **options):
        mask = np.zeros((4, 8), np.uint8, order="F")
        mask[:, columns] = 1
        encoded = coco_mask.encode(mask)
        encoded["counts"] = encoded["counts"].decode()
        left, top, width, height = coco_mask.toBbox(encoded).tolist()
        return dict(
            id=number,
            image_id=1,
            category_id=3,
            iscrowd=0,
            segmentation=encoded,
            area=int(mask.sum()),
            bbox=[left, top, width, height],
        ) | dict(options)

    content = dict(
        images=[dict(id=1, file_name="1.jpg", height=4, width=8)],
        categories=[dict(id=3, name="box"), dict(id=4, name="unknown")],
        annotations=[
            annotation(1, slice(0, 4)),
            annotation(2, slice(3, 6)),
            annotation(3, slice(7, 8), iscrowd=1),
            annotation(4, slice(6, 7), category_id=4),
        ],
    )
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return MaskAP(str(path), ["box"])


def test_overlapping_instances_and_crowds_are_void(overlapping):
    """Instances of classes that the model lacks are background."""
    truth = overlapping.truth(dict(img_id=1))
    assert truth.void[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert truth.segments[0, ~truth.void[0]].tolist() == [1, 1, 1, 2, 2, 0]
    # Clusters of two columns: the first box has columns 0 to 3, the second one 4 and 5.
    labels = np.repeat([[0, 0, 1, 1, 2, 2, 3, 3]], 4, axis=0)
    masks = [coco_mask.decode(found["segmentation"]) for found in overlapping.oracle(truth, labels)]
    assert [mask[0].tolist() for mask in masks] == [
        [1, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
    ]
    # IoU 1, and 2/3: found at 4 thresholds of 10. The ranking of equal scores is by order, so
    # that precision is 1 up to a recall of 1, or of 1/2 (51 points of recall of 101).
    figures = overlapping.figures([overlapping.count(overlapping.oracle(truth, labels), truth)])
    assert figures["AP"] == pytest.approx(100 * (4 + 6 * 51 / 101) / 10)


def test_nothing_found_and_nothing_to_find(overlapping):
    truth = overlapping.truth(dict(img_id=1))
    assert overlapping.figures([overlapping.count([], truth)]) == dict(AP=0.0)
    assert overlapping.figures([]) == {}
    assert MeanIoU(3).figures([]) == {}


def test_images_of_many_pixels():
    """mmseg counts at most 2**24 pixels of a class in an image."""
    pixels = np.zeros((4097, 4096), np.uint8)
    pixels[0, :10] = 1
    truth = ImageGroundTruth(pixels, pixels > 1)
    assert [*map(list, MeanIoU(2).count(pixels, truth)[1:])] == [[4097 * 4096 - 10, 10]] * 2


def test_missing_fields_and_images(folder, overlapping):
    one = samples(folder)[0]
    with pytest.raises(ValueError, match=r"expected pred_panoptic_seg in the predictions.* \[\]"):
        panoptic_quality(folder).predicted(dict(img_id=1))
    with pytest.raises(ValueError, match="expected gt_sem_seg in the data samples"):
        MeanIoU(3).truth(dict(img_id=1))
    with pytest.raises(ValueError, match=r"expected pred_sem_seg .* semantic ground truth"):
        MeanIoU(3).predicted(dict(gt_sem_seg=one["gt_sem_seg"]))
    with pytest.raises(ValueError, match="expected masks of the predicted instances"):
        overlapping.predicted(dict(img_id=1, pred_instances=dict(scores=torch.ones(1))))
    for measure in (panoptic_quality(folder), overlapping):
        with pytest.raises(ValueError, match=r"expected image 99 in .*json, got none"):
            measure.truth(dict(img_id=99, img_path="99.jpg"))
