import math

import pytest
import torch
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import INSTANCE_OFFSET

from hcformer_mm.models import HCFormerFusionHead
from tests.models import data_sample, detector

CONFIG = dict(
    panoptic_on=True,
    instance_on=True,
    semantic_on=True,
    max_per_image=6,
    object_mask_thr=0.8,
    iou_thr=0.8,
    filter_low_score=True,
)


def fusion_head(**test_cfg):
    return HCFormerFusionHead(
        num_things_classes=2, num_stuff_classes=1, test_cfg={**CONFIG, **test_cfg}
    )


def hand_drawn():
    """Two queries on a 4x4 image: a thing of class 1 on the left half, stuff (2) on the right.

    A third query has no object. Class probabilities are about 1.
    """
    class_logits = torch.full((1, 3, 4), -10.0)
    for query, label in enumerate((1, 2, 3)):
        class_logits[0, query, label] = 10.0
    masks = torch.full((1, 3, 4, 4), -10.0)
    masks[0, 0, :, :2] = 10.0
    masks[0, 1, :, 2:] = 10.0
    return class_logits, masks


def test_three_results_in_one_pass():
    sample = data_sample((4, 4))
    (result,) = fusion_head().predict(*hand_drawn(), [sample])
    panoptic = result["pan_results"].sem_seg
    assert panoptic.shape == (1, 4, 4)
    assert (panoptic[0, :, :2] == 1 + INSTANCE_OFFSET).all()
    assert (panoptic[0, :, 2:] == 2).all()
    instances = result["ins_results"]
    best = instances.scores.argmax()
    assert instances.labels[best] == 1
    assert instances.masks[best].tolist() == [[True, True, False, False]] * 4
    assert instances.bboxes[best].tolist() == [0, 0, 2, 4]
    assert sample.pred_sem_seg.sem_seg.tolist() == [[[1, 1, 2, 2]] * 4]


def test_semantic_sums_masks_of_a_class():
    """Two weak queries of class 0 outweigh one of class 1: 2 · 0.6 > 1 · 0.9."""
    class_logits = torch.tensor([[9.0, -9, -9, -9], [9, -9, -9, -9], [-9, 9, -9, -9]])
    masks = torch.logit(torch.tensor([0.6, 0.6, 0.9])).view(3, 1, 1)
    result = fusion_head().semantic_postprocess(class_logits, masks)
    assert result.sem_seg.tolist() == [[[0]]]


@pytest.mark.parametrize("rescale", [False, True])
def test_padding_is_removed_and_size_restored(rescale):
    torch.manual_seed(0)
    sample = data_sample((20, 30), original=(40, 60), padded=(32, 32))
    (result,) = fusion_head().predict(
        torch.randn(1, 5, 4), torch.randn(1, 5, 32, 32), [sample], rescale=rescale
    )
    size = (40, 60) if rescale else (20, 30)
    assert result["pan_results"].sem_seg.shape[-2:] == size
    assert result["ins_results"].masks.shape[-2:] == size
    assert sample.pred_sem_seg.sem_seg.shape == (1, *size)


@pytest.mark.parametrize("rescale", [False, True])
def test_equals_the_host_without_semantics(rescale):
    torch.manual_seed(1)
    class_logits, masks = 4 * torch.randn(2, 12, 4), 3 * torch.randn(2, 12, 32, 48)
    samples = [data_sample((32, 48), original=(50, 70)), data_sample((30, 40), original=(60, 80))]
    config = {**CONFIG, "semantic_on": False}
    host = MaskFormerFusionHead(num_things_classes=2, num_stuff_classes=1, test_cfg=config)
    ours = fusion_head(semantic_on=False).predict(class_logits, masks, samples, rescale=rescale)
    theirs = host.predict(class_logits, masks, samples, rescale=rescale)
    for result, wanted in zip(ours, theirs, strict=True):
        assert torch.equal(result["pan_results"].sem_seg, wanted["pan_results"].sem_seg)
        for key in ("scores", "labels", "bboxes", "masks"):
            assert torch.equal(result["ins_results"][key], wanted["ins_results"][key])
    assert "pred_sem_seg" not in samples[0]


def test_fewer_pairs_than_wanted():
    """Two queries of three classes are six pairs, four of them things; the host wants a hundred."""
    (result,) = fusion_head(max_per_image=100).predict(
        torch.zeros(1, 2, 4), torch.full((1, 2, 4, 4), 1.0), [data_sample((4, 4))]
    )
    instances = result["ins_results"]
    assert sorted(instances.labels.tolist()) == [0, 0, 1, 1]
    assert instances.masks.all()
    # A quarter, times the confidence of the mask.
    assert instances.scores.tolist() == pytest.approx([0.25 / (1 + math.exp(-1))] * 4)


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_results_are_chosen_by_test_cfg(kind):
    flags = {f"{name}_on": name == kind for name in ("panoptic", "instance", "semantic")}
    sample = data_sample((4, 4))
    (result,) = fusion_head(**flags).predict(*hand_drawn(), [sample])
    assert ("pan_results" in result) == (kind == "panoptic")
    assert ("ins_results" in result) == (kind == "instance")
    assert ("pred_sem_seg" in sample) == (kind == "semantic")


def test_detector_delivers_all_three():
    model = detector().eval()
    sample = data_sample((64, 96), original=(100, 150))
    with torch.no_grad():
        (prediction,) = model.predict(torch.randn(1, 3, 64, 96), [sample])
    assert prediction.pred_panoptic_seg.sem_seg.shape == (1, 100, 150)
    assert prediction.pred_instances.masks.shape[-2:] == (100, 150)
    assert prediction.pred_sem_seg.sem_seg.shape == (1, 100, 150)


def test_nothing_detected():
    class_logits = torch.zeros(1, 3, 4)
    class_logits[..., -1] = 10.0
    sample = data_sample((4, 4))
    (result,) = fusion_head().predict(class_logits, torch.zeros(1, 3, 4, 4), [sample])
    # The host's label for "nothing" is the number of classes.
    assert (result["pan_results"].sem_seg == 3).all()
