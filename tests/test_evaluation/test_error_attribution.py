"""Split of a loss among stages, and properties of the majority oracle."""

import numpy as np
import pytest
import torch

from hcformer_mm.evaluation import ErrorAttribution
from hcformer_mm.evaluation.error_attribution import attribution_table, fault_table
from hcformer_mm.evaluation.measures import ImageGroundTruth, MeanIoU
from hcformer_mm.evaluation.partitions import score_table
from tests.helpers import reference

STAGES = dict(ground_truth=100.0, cells=97.5, level_1=97.0, level_2=95.5, prediction=80.0)


def mean_iou(prediction, truth, classes=3):
    measure = MeanIoU(classes)
    image = ImageGroundTruth(truth, np.zeros(truth.shape, bool))
    return measure.figures([measure.count(prediction, image)])["mIoU"]


def oracle_iou(labels, truth, classes=3):
    image = ImageGroundTruth(truth, np.zeros(truth.shape, bool))
    return mean_iou(MeanIoU(classes).oracle(image, labels), truth, classes)


def test_shares():
    loss = ErrorAttribution("PQ", STAGES)
    assert loss.shares == dict(stem=2.5, level_1=0.5, level_2=1.5, classification=15.5)
    assert loss.decoding == 2.5 + 0.5 + 1.5
    assert loss.total == sum(loss.shares.values()) == 100 - 80
    assert str(loss) == (
        "PQ 80.0: decoding costs 4.5 (stem 2.5, level 1 0.5, level 2 1.5); "
        "classification costs 15.5"
    )


def test_attribution_table():
    """Rows of figures; the columns after 'decoding' add up to 'lost'."""
    header, _, row = attribution_table([ErrorAttribution("PQ", STAGES)]).splitlines()
    assert header.split("  ")[0] == "" and "level 2" in header
    assert row.split() == ["PQ", "80.0", "20.0", "4.5", "2.5", "0.5", "1.5", "15.5"]


def test_fault_table():
    """Figures without faults have no row."""
    faults = dict(missed=12.0, wrong_class=4.25, inexact=-0.75)
    loss = ErrorAttribution("PQ", STAGES, faults)
    assert str(loss).endswith(
        "classification costs 15.5 (missed 12.0, wrong class 4.2, inexact -0.8)"
    )
    header, _, row = fault_table([loss, ErrorAttribution("mIoU", STAGES)]).splitlines()
    assert "wrong class" in header
    assert row.split() == ["PQ", "15.5", "12.0", "4.2", "-0.8"]


def test_score_table():
    """Rows run from the ground truth to the prediction, and may have empty places."""
    figures = {"cells/UE": 5.0, "slic_1/UE": 7.25, "blame/PQ/stem": 1.0}
    figures |= {"ground_truth/PQ": 100.0, "prediction/PQ": 60.0, "cells/PQ": 90.0}
    lines = score_table(figures).splitlines()
    assert lines[0].split() == ["UE", "PQ"]
    assert [line.split() for line in lines[2:]] == [
        ["ground", "truth", "100.0"],
        ["cells", "5.0", "90.0"],
        ["SLIC", "1", "7.2"],
        ["prediction", "60.0"],
    ]


def test_stages_in_another_order():
    stages = dict(reversed(STAGES.items()))
    with pytest.raises(ValueError, match=r"expected the stages \('ground_truth', 'cells', 'level"):
        ErrorAttribution("PQ", stages)


def test_majority_reaches_everything_where_clusters_are_pure():
    truth = np.random.default_rng(0).integers(3, size=(6, 6))
    assert oracle_iou(np.arange(36).reshape(6, 6), truth) == 100.0
    assert oracle_iou(truth * 7, truth) == 100.0


def test_majority_is_not_always_the_best_labeling():
    """A rare class gains more than a frequent one loses.

    A cluster of 60 pixels is of class 0; one of 9 has 5 of class 0 and 4 of class 1. The majority
    gives both to class 0, with IoU 65/69 and 0. With the second one, class 1 has 4/9, and class 0
    still 60/65.
    """
    labels = np.array([[0] * 60 + [1] * 9])
    truth = np.array([[0] * 60 + [0] * 5 + [1] * 4])
    majority = oracle_iou(labels, truth, classes=2)
    assert majority == pytest.approx(100 * (65 / 69 + 0) / 2)
    best = mean_iou(labels, truth, classes=2)  # each cluster by its number
    assert best == pytest.approx(100 * (60 / 65 + 4 / 9) / 2)
    assert best > majority


def test_a_coarser_level_may_gain():
    """Merging can raise the majority's mIoU, though not its accuracy: shares can be negative."""
    for seed in range(1000):
        random = np.random.default_rng(seed)
        truth = random.integers(3, size=(3, 5))
        fine = random.integers(5, size=(3, 5))
        coarse = fine // 2
        if oracle_iou(coarse, truth) > oracle_iou(fine, truth) + 1e-9:
            accuracies = [
                (MeanIoU(3).oracle(ImageGroundTruth(truth, truth < 0), level) == truth).mean()
                for level in (fine, coarse)
            ]
            assert accuracies[0] >= accuracies[1]
            return
    pytest.fail("merging never helped")


def test_best_labeling_by_trying_all():
    """The majority is a little below the best mIoU, and merging never raises the best."""
    gaps = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        truth = random.integers(3, size=(4, 6))
        fine = np.kron(np.arange(4).reshape(2, 2), np.ones((2, 3), int))
        best = []
        for labels in (fine, fine // 2):
            every = reference.labelings(torch.from_numpy(labels), [0, 1, 2]).numpy()
            best.append(max(mean_iou(one, truth) for one in every))
            gaps.append(best[-1] - oracle_iou(labels, truth))
        assert best[0] >= best[1]
    assert min(gaps) >= -1e-9 and max(gaps) > 0
