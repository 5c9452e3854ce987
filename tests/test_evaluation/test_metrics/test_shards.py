"""Several processes report the scores of one, whatever their shares of the images are."""

import pytest

from tests.helpers.clustering_samples import NUMBER
from tests.helpers.shards import GROUPS, evaluate_shares, launch


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_report_the_scores_of_one(folder, processes):
    """Samplers repeat the first images to make shares equal; these do not count."""
    assert NUMBER % processes and len(GROUPS) % processes
    expected = evaluate_shares(folder)
    for found in launch(folder, processes):
        assert found.keys() == expected.keys()
        for case, metrics in expected.items():
            assert found[case] == pytest.approx(metrics, rel=0, abs=1e-6, nan_ok=True), case
    assert {"coco_panoptic/PQ", "coco/segm_mAP", "coco/boundary_mAP", "sem_seg/mIoU"} < {
        name for name, value in expected["panoptic"].items() if 0 < value < 100
    }
    assert 0 < expected["groups that a process lacks"]["coco_panoptic/PQ_th"] < 100
