"""Segmentations from the data samples of mmdet and mmseg."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from hcformer_mm.structures.data_samples import predicted_segments, true_segments
from hcformer_mm.structures.panoptic import Classes

CLASSES = Classes(["cup", "field"], frozenset(["cup"]))


def mask(*columns: int) -> list[list[int]]:
    """A mask of 1 × 4 pixels."""
    return [[int(column in columns) for column in range(4)]]


def detection(**fields) -> DetDataSample:
    sample = DetDataSample(metainfo=dict(ori_shape=(1, 4)))
    for name, value in fields.items():
        sample.set_data({name: value})
    return sample


def test_nothing_is_predicted() -> None:
    assert predicted_segments(DetDataSample(), CLASSES) is None
    boxes = InstanceData(labels=torch.tensor([0]), scores=torch.tensor([0.9]))
    assert predicted_segments(detection(pred_instances=boxes), CLASSES) is None


def test_semantic_predictions_of_mmdet_and_mmseg() -> None:
    labels = torch.tensor([[[1, 0, 0, 1]]])
    mmdet_sample = detection(pred_sem_seg=PixelData(sem_seg=labels))
    for sample in (mmdet_sample, SegDataSample(pred_sem_seg=PixelData(data=labels))):
        prediction = predicted_segments(sample, CLASSES)
        assert prediction.segments.tolist() == [[1, 0, 0, 1]]
        assert prediction.categories == {0: 0, 1: 1}


def test_scores_of_segments() -> None:
    """Of panoptic ones by their ids; of instances that are visible, the best on top."""
    panoptic = PixelData(sem_seg=torch.tensor([[[3000, 1, 2, 2]]]))
    known = InstanceData(ids=torch.tensor([1, 3000]), scores=torch.tensor([0.25, 0.5]))
    sample = detection(pred_panoptic_seg=panoptic, pred_segments=known)
    assert predicted_segments(sample, CLASSES).scores == {1: 0.25, 3000: 0.5}
    assert predicted_segments(detection(pred_panoptic_seg=panoptic), CLASSES).scores == {}
    masks = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]).bool()[:, None]
    instances = InstanceData(
        masks=masks,
        scores=torch.tensor([0.625, 0.75, 0.25, 0.5]),
        labels=torch.tensor([1, 0, 1, 1]),
    )
    found = predicted_segments(detection(pred_instances=instances), CLASSES)
    assert found.segments.tolist() == [[3000, 2001, 2001, 0]]
    assert found.scores == {3000: 0.75, 2001: 0.625}


def test_panoptic_predictions_go_first() -> None:
    """The third cup, the field, and void (label 2, the number of classes)."""
    sample = detection(
        pred_panoptic_seg=PixelData(sem_seg=torch.tensor([[[3000, 1, 2, 2]]])),
        pred_sem_seg=PixelData(sem_seg=torch.tensor([[[0, 0, 0, 0]]])),
        pred_instances=InstanceData(masks=torch.zeros(0, 1, 4), scores=torch.zeros(0)),
    )
    prediction = predicted_segments(sample, CLASSES)
    assert prediction.segments.tolist() == [[3000, 1, 2, 2]]
    assert prediction.categories == {3000: 0, 1: 1}


def test_instances_are_painted_by_score() -> None:
    instances = InstanceData(
        masks=torch.tensor([mask(0, 1), mask(1, 2), mask(3), mask(2)]).bool(),
        labels=torch.tensor([0, 1, 0, 0]),
        scores=torch.tensor([0.9, 0.6, 0.4, 0.55]),
    )
    prediction = predicted_segments(detection(pred_instances=instances), CLASSES)
    # In the order of scores: the fourth is hidden by the second; the third is below 0.5.
    assert prediction.segments.tolist() == [[3000, 3000, 2001, 0]]
    assert prediction.categories == {3000: 0, 2001: 1}
    more = predicted_segments(detection(pred_instances=instances), CLASSES, score_thr=0.3)
    assert more.segments.tolist() == [[4000, 4000, 3001, 1000]]
    none = predicted_segments(detection(pred_instances=instances), CLASSES, score_thr=1)
    assert none.segments.tolist() == [[0] * 4] and none.categories == {}


def test_semantic_truth_of_mmdet_and_mmseg() -> None:
    labels = torch.tensor([[[1, 0, 255, 1]]], dtype=torch.uint8)
    mmseg_sample = SegDataSample(
        metainfo=dict(ori_shape=(1, 4)), gt_sem_seg=PixelData(data=labels.long())
    )
    for sample in (detection(gt_sem_seg=PixelData(sem_seg=labels)), mmseg_sample):
        truth = true_segments(sample, CLASSES)
        assert truth.segments.tolist() == [[1, 0, 255, 1]]
        assert truth.categories == {0: 0, 1: 1}
        assert truth.ignore.tolist() == [[False, False, True, False]]


def cups(*masks) -> InstanceData:
    bitmaps = BitmapMasks(np.array(masks, np.uint8), 1, 4)
    return InstanceData(masks=bitmaps, labels=torch.zeros(len(masks), dtype=torch.long))


def test_true_instances_lie_on_stuff() -> None:
    instances = cups(mask(0), mask(1, 2))
    truth = true_segments(detection(gt_instances=instances), CLASSES)
    assert truth.segments.tolist() == [[1000, 2000, 2000, 0]]
    assert truth.categories == {1000: 0, 2000: 0}
    assert not truth.ignore.any()
    semantic = PixelData(sem_seg=torch.tensor([[[0, 0, 255, 255]]]))
    truth = true_segments(detection(gt_instances=instances, gt_sem_seg=semantic), CLASSES)
    assert truth.segments.tolist() == [[1000, 2000, 2000, 255]]
    assert truth.categories == {1000: 0, 2000: 0}
    assert truth.ignore.tolist() == [[False, False, False, True]]


def test_pixels_of_several_true_instances_are_not_scored() -> None:
    instances = cups(mask(0, 1), mask(1, 2))
    truth = true_segments(detection(gt_instances=instances), CLASSES)
    assert truth.segments.tolist() == [[1000, 2000, 2000, 0]]
    assert truth.ignore.tolist() == [[False, True, False, False]]


def test_truth_that_is_missing_or_was_resized() -> None:
    assert true_segments(detection(), CLASSES) is None
    small = PixelData(sem_seg=torch.zeros(1, 1, 3, dtype=torch.long))
    assert true_segments(detection(gt_sem_seg=small), CLASSES) is None
    masks = InstanceData(masks=BitmapMasks(np.zeros((1, 2, 8)), 2, 8), labels=torch.tensor([0]))
    assert true_segments(detection(gt_instances=masks), CLASSES) is None
    assert true_segments(detection(gt_instances=masks, gt_sem_seg=small), CLASSES) is None


def test_more_classes_than_a_byte_holds() -> None:
    """255 is a class, 65535 is void, and classes from 1000 on are not taken for instances."""
    classes = Classes([f"class {i}" for i in range(1200)])
    labels = torch.tensor([[[255, 1005, 65535, 5]]])
    for field, read in (("gt_sem_seg", true_segments), ("pred_sem_seg", predicted_segments)):
        found = read(detection(**{field: PixelData(sem_seg=labels)}), classes)
        assert found.categories == {255: 255, 1005: 1005, 5: 5}
    truth = true_segments(detection(gt_sem_seg=PixelData(sem_seg=labels)), classes)
    assert truth.ignore.tolist() == [[False, False, True, False]]
    instances = InstanceData(
        masks=torch.tensor([mask(0), mask(1), mask(2)]).bool(),
        labels=torch.tensor([1000, 0, 1100]),
        scores=torch.tensor([0.7, 0.8, 0.9]),
    )
    found = predicted_segments(detection(pred_instances=instances), classes)
    categories = [found.categories.get(segment) for segment in found.segments[0].tolist()]
    assert categories == [1000, 0, 1100, None]


def test_true_instances_beside_void_of_16_bits() -> None:
    """With 1000 between numbers, the 65th object of class 535 would have the number of void."""
    classes = Classes([f"class {i}" for i in range(600)])
    semantic = PixelData(sem_seg=torch.tensor([[[65535, 535, 5, 5]]]))
    instances = cups(*[mask(2)] * 64, mask(1))
    instances.labels[:] = 535
    truth = true_segments(detection(gt_instances=instances, gt_sem_seg=semantic), classes)
    categories = [truth.categories.get(segment) for segment in truth.segments[0].tolist()]
    assert categories == [None, 535, 535, 5]
    assert len(truth.categories) == 3


@pytest.mark.parametrize("value", [2, 254, -1, 3000])
def test_classes_that_the_model_lacks(value: int) -> None:
    labels = torch.tensor([[[0, value, 1, 1]]])
    message = rf"classes from 0 to 1, or 255 for void, in a label map, got {value}$"
    for field, read in (("gt_sem_seg", true_segments), ("pred_sem_seg", predicted_segments)):
        with pytest.raises(ValueError, match=message):
            read(detection(**{field: PixelData(sem_seg=labels)}), CLASSES)


@pytest.mark.parametrize("value", [3, 1003, -1000])
def test_panoptic_ids_without_a_class(value: int) -> None:
    sample = detection(pred_panoptic_seg=PixelData(sem_seg=torch.tensor([[[0, value, 1, 2]]])))
    message = rf"from 0 to 1, or 2 for void, in a label map modulo 1000, got {value}$"
    with pytest.raises(ValueError, match=message):
        predicted_segments(sample, CLASSES)
