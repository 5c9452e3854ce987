"""Quality measures of label maps of every size, against slow references."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from panopticapi.evaluation import PQStat

from hcformer_mm.evaluation.functional.coco_masks import encode_annotation
from hcformer_mm.evaluation.measures import ImageGroundTruth, MeanIoU
from hcformer_mm.evaluation.measures.panoptic_quality import (
    PanopticTruth,
    panoptic_counts,
    pq_groups,
)
from tests.helpers.label_maps import SIZES, label_maps

CATEGORIES = {
    10: dict(id=10, isthing=1),
    11: dict(id=11, isthing=1),
    20: dict(id=20, isthing=0),
}
IDS = st.sampled_from([0, 1, 2, 3, 4, 2**24 - 1])  # 0 is void


def pixels(ids, segment):
    return {(y, x) for y, x in zip(*np.nonzero(ids == segment), strict=True)}


def slow_counts(ids, categories, truth, infos):
    """Matches and errors of each category by sets of pixels: IoUs, hits, misses, false alarms."""
    void = pixels(truth, 0)
    counts = {category: [[], 0, 0] for category in CATEGORIES}
    predicted = {i: pixels(ids, i) for i in categories if pixels(ids, i)}
    matched = set()
    for i, info in infos.items():
        if info["iscrowd"]:
            continue
        segment, category = pixels(truth, i), info["category_id"]
        for j, other in predicted.items():
            iou = len(segment & other) / len(segment | (other - void))
            if categories[j] == category and iou > 0.5:
                counts[category][0].append(iou)
                matched |= {("true", i), ("predicted", j)}
        counts[category][1] += ("true", i) not in matched
    for j, other in predicted.items():
        category = categories[j]
        crowds = [i for i, o in infos.items() if o["iscrowd"] and o["category_id"] == category]
        # panopticapi regards the last crowd of a category.
        ignored = void | (pixels(truth, crowds[-1]) if crowds else set())
        if ("predicted", j) not in matched and 2 * len(other & ignored) <= len(other):
            counts[category][2] += 1
    return counts


@given(st.data(), SIZES)
def test_panoptic_counts_are_those_of_sets(data, size):
    truth, ids = (data.draw(arrays(np.int64, size, elements=IDS)) for _ in range(2))
    category = st.sampled_from(sorted(CATEGORIES))
    categories = {
        i: data.draw(category) for i in np.unique(ids).tolist() if i and data.draw(st.booleans())
    }
    infos = {
        i: dict(
            category_id=data.draw(category),
            iscrowd=data.draw(st.sampled_from([0, 0, 1])),
            area=int((truth == i).sum()),
        )
        for i in np.unique(truth).tolist()
        if i
    }
    given_truth = PanopticTruth(truth, ~np.isin(truth, list(infos)), infos)
    found = panoptic_counts(ids, categories, given_truth)
    for one, (ious, missed, false) in slow_counts(ids, categories, truth, infos).items():
        stat = found[one]
        assert (stat.tp, stat.fn, stat.fp) == (len(ious), missed, false)
        assert stat.iou == pytest.approx(sum(ious))


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=3, max_size=3))
def test_groups_are_averages_of_the_categories_that_occur(counts):
    stat = PQStat()
    qualities = {}
    for category, (hits, missed, false) in zip(CATEGORIES, counts, strict=True):
        one = stat[category]
        one.iou, one.tp, one.fn, one.fp = 0.75 * hits, hits, missed, false
        if hits + missed + false:
            qualities[category] = 0.75 * hits / (hits + missed / 2 + false / 2)
    groups = pq_groups(stat, CATEGORIES)
    for name, members in (("All", {10, 11, 20}), ("Things", {10, 11}), ("Stuff", {20})):
        values = [value for category, value in qualities.items() if category in members]
        expected = sum(values) / len(values) if values else np.nan
        assert groups[name]["pq"] == pytest.approx(expected, nan_ok=True)
        assert groups[name]["n"] == len(values)


@given(st.data(), st.lists(SIZES, min_size=1, max_size=3), st.sampled_from([1, 3, 300]))
def test_mean_iou_is_that_of_pixels(data, sizes, number):
    measure = MeanIoU(number)
    void = 255 if number <= 255 else 65535
    truths = st.sampled_from([*{0, number // 2, number - 1}, void])
    counts, shared, either = [], np.zeros(number), np.zeros(number)
    for size in sizes:
        truth = data.draw(arrays(np.int64, size, elements=truths))
        found = data.draw(arrays(np.int64, size, elements=st.integers(0, number - 1)))
        sample = dict(
            gt_sem_seg=dict(sem_seg=torch.from_numpy(truth)[None]),
            pred_sem_seg=dict(sem_seg=torch.from_numpy(found)[None]),
        )
        counts.append(measure.count(measure.predicted(sample), measure.truth(sample)))
        for label in range(number):
            ours, theirs = (found == label) & (truth != void), truth == label
            shared[label] += (ours & theirs).sum()
            either[label] += (ours | theirs).sum()
    expected = 100 * (shared[either > 0] / either[either > 0]).mean() if either.any() else None
    assert measure.figures(counts).get("mIoU") == (
        None if expected is None else pytest.approx(expected)
    )


@given(SIZES.flatmap(label_maps), st.sampled_from([1, 3, 300]))
def test_classes_are_known_or_refused(labels, number):
    """Whatever the type and the values are."""
    measure = MeanIoU(number)
    labels = labels.astype(np.int64)
    known = ((labels >= 0) & (labels < number)) | (labels == measure.ignore_index)
    sample = dict(gt_sem_seg=dict(data=torch.from_numpy(labels)[None]), img_path="a.jpg")
    if known.all():
        truth = measure.truth(sample)
        assert isinstance(truth, ImageGroundTruth)
        assert np.array_equal(truth.void, labels == measure.ignore_index)
    else:
        with pytest.raises(ValueError, match=rf"classes from 0 to {number - 1}, .* of a\.jpg"):
            measure.truth(sample)


SEGMENTATIONS = st.recursive(
    st.none() | st.integers(-9, 30) | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda part: (
        st.lists(part, max_size=8)
        | st.fixed_dictionaries({}, optional=dict(size=part | st.just([4, 6]), counts=part))
    ),
    max_leaves=12,
)


@given(SEGMENTATIONS | st.lists(st.lists(st.integers(-3, 9), max_size=9), max_size=3))
def test_segmentations_are_encoded_or_refused(segmentation):
    try:
        encoded = encode_annotation(dict(id=5, segmentation=segmentation), (4, 6))
    except ValueError as error:
        assert "expected " in str(error) or "a coordinate is not finite" in str(error)
        assert "correct annotation 5, or" in str(error)
    else:
        assert tuple(encoded["size"]) == (4, 6)
