import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.models.dense_heads import MaskFormerHead
from mmdet.models.seg_heads import MaskFormerFusionHead
from torch import nn
from torch.nn import functional as F

from hcformer_mm.models import HCFormerFusionHead
from hcformer_mm.models.utils import post_processing
from tests.helpers.devices import at_least, on_each_device
from tests.helpers.models import data_sample, detector

ROOT = Path(__file__).parents[3]
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


def test_mistyped_options_are_told(recwarn):
    fusion_head(segments_on=True, confidence_on=True, candidates_on=True)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"got object_mask_thresh, .* \(did you mean object_mask_"):
        fusion_head(object_mask_thresh=0.5)


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


@on_each_device
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
    assert sample.pred_sem_seg.sem_seg.dtype == torch.int64
    assert panoptic.dtype == torch.int32
    assert instances.masks.dtype == torch.bool


@on_each_device
def test_semantic_sums_masks_of_a_class():
    """Two weak queries of class 0 outweigh one of class 1: 2 · 0.6 > 1 · 0.9."""
    class_logits = torch.tensor([[9.0, -9, -9, -9], [9, -9, -9, -9], [-9, 9, -9, -9]])
    masks = torch.logit(torch.tensor([0.6, 0.6, 0.9])).view(3, 1, 1)
    result = fusion_head().semantic_postprocess(class_logits, masks)
    assert result.sem_seg.tolist() == [[[0]]]


def same_instances(instances, wanted):
    assert torch.equal(instances.labels, wanted.labels)
    assert torch.equal(instances.masks, wanted.masks)
    assert torch.equal(instances.bboxes, wanted.bboxes)
    tolerances = dict(rtol=at_least(1.3e-6), atol=at_least(1e-5))
    torch.testing.assert_close(instances.scores, wanted.scores, **tolerances)


@on_each_device
@pytest.mark.parametrize("rescale", [False, True])
def test_equals_mmdet_beside_semantics(rescale):
    """Padding is cut off and the original size restored, in the semantic result too."""
    torch.manual_seed(1)
    class_logits, masks = 4 * torch.randn(2, 12, 4), 3 * torch.randn(2, 12, 32, 48)
    samples = [data_sample((32, 48), original=(50, 70)), data_sample((30, 40), original=(60, 80))]
    mmdets = MaskFormerFusionHead(
        num_things_classes=2, num_stuff_classes=1, test_cfg={**CONFIG, "semantic_on": False}
    )
    ours = fusion_head().predict(class_logits, masks, samples, rescale=rescale)
    theirs = mmdets.predict(class_logits, masks, samples, rescale=rescale)
    for result, wanted, sample in zip(ours, theirs, samples, strict=True):
        assert torch.equal(result["pan_results"].sem_seg, wanted["pan_results"].sem_seg)
        same_instances(result["ins_results"], wanted["ins_results"])
        assert sample.pred_sem_seg.sem_seg.shape == wanted["pan_results"].sem_seg.shape


def adversarial(kind, random):
    """Class logits (9, 4) and mask logits (9, 24, 40) on which a shortcut would show."""
    classes = torch.full((9, 4), -8.0)
    classes[torch.arange(9), torch.tensor([0, 1, 2, 3, 0, 2, 2, 1, 0])] = 8.0
    masks = 4 * torch.randn(9, 24, 40, generator=random)
    if kind == "equal masks and scores":
        masks[:] = masks[:1]
    elif kind == "at one half":
        # 0 is at the threshold; so are, after rounding, values just below it.
        masks = torch.tensor([0.0, -1e-9, -1e-3])[torch.randint(3, masks.shape, generator=random)]
    elif kind == "nothing above one half":
        masks = -masks.abs() - 1
    elif kind == "at the scores' threshold":
        classes[:, :] = torch.log(torch.tensor([0.8, 0.1, 0.05, 0.05]))
    elif kind == "shares around the threshold":
        # Query 1 covers ten rows and loses two of them, which leaves 0.8; query 2 loses three.
        masks[:] = -9.0
        masks[1, :10], masks[0, 8:10] = 5.0, 9.0
        masks[2, 12:22], masks[4, 19:22] = 5.0, 9.0
    elif kind == "one object":
        classes[1:] = torch.tensor([-8.0, -8, -8, 8])
    elif kind == "saturated":
        masks = 200 * masks.sign()
    return classes, masks


@on_each_device
@pytest.mark.parametrize("filter_low_score", [False, True])
@pytest.mark.parametrize("cached", [1, 1000, 2**30])
@pytest.mark.parametrize(
    "kind",
    [
        "random",
        "equal masks and scores",
        "at one half",
        "nothing above one half",
        "at the scores' threshold",
        "shares around the threshold",
        "one object",
        "saturated",
    ],
)
def test_bands_equal_mmdets_loop(kind, cached, filter_low_score, monkeypatch):
    monkeypatch.setattr(post_processing, "BAND_NUMEL", cached)
    class_logits, masks = adversarial(kind, torch.Generator().manual_seed(3))
    config = {**CONFIG, "filter_low_score": filter_low_score}
    mmdets = MaskFormerFusionHead(num_things_classes=2, num_stuff_classes=1, test_cfg=config)
    ours = fusion_head(filter_low_score=filter_low_score)
    wanted = mmdets.panoptic_postprocess(class_logits, masks).sem_seg
    assert torch.equal(ours.panoptic_postprocess(class_logits, masks).sem_seg, wanted)
    same_instances(
        ours.instance_postprocess(class_logits, masks),
        mmdets.instance_postprocess(class_logits, masks),
    )


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (53, 91), (7, 200)])
def test_masks_too_large_to_be_resized_at_once(size, monkeypatch):
    torch.manual_seed(2)
    class_logits, masks = 4 * torch.randn(12, 4), 3 * torch.randn(12, 20, 30)
    resized = F.interpolate(masks[None], size=size, mode="bilinear")[0]
    monkeypatch.setattr(post_processing, "RESIZED_NUMEL", 100)
    monkeypatch.setattr(post_processing, "BAND_NUMEL", 50)
    bands = post_processing.resized_bands(masks, size)
    pieces = {rows.start: (rows.stop, logits) for rows, logits in bands}
    stop = 0
    for start, (end, logits) in sorted(pieces.items()):
        assert start == stop
        torch.testing.assert_close(logits, resized[:, start:end], rtol=1e-4, atol=1e-5)
        stop = end
    assert stop == size[0]
    assert len(pieces) > 1 or size[0] <= 16
    sample = data_sample((20, 30), original=size)
    (result,) = fusion_head().predict(class_logits[None], masks[None], [sample], rescale=True)
    assert result["pan_results"].sem_seg.shape == sample.pred_sem_seg.sem_seg.shape == (1, *size)


@on_each_device
def test_defaults_are_mmdets():
    """Scores and shares of masks are around 0.8; the sizes list channels, too."""
    random = torch.Generator().manual_seed(0)
    class_logits = torch.zeros(1, 40, 4)
    class_logits[0, torch.arange(40), torch.arange(40) % 4] = torch.linspace(2.2, 2.7, 40)
    masks = torch.full((1, 40, 40, 40), -5.0)
    for row, height in enumerate(torch.randint(1, 6, (40,), generator=random).tolist()):
        masks[0, row, row : row + height] = 5.0
    sample = data_sample((40, 40), original=(30, 50))
    sample.set_metainfo(dict(img_shape=(40, 40, 3), ori_shape=(30, 50, 3)))
    ours, mmdets = (
        head(num_things_classes=2, num_stuff_classes=1, test_cfg={}).predict(
            class_logits, masks, [sample]
        )
        for head in (HCFormerFusionHead, MaskFormerFusionHead)
    )
    assert ours[0].keys() == mmdets[0].keys() == {"pan_results"}
    assert "pred_sem_seg" not in sample
    segments = ours[0]["pan_results"].sem_seg
    assert torch.equal(segments, mmdets[0]["pan_results"].sem_seg)
    assert 3 < len(segments.unique()) < 30
    needed = post_processing.needed_queries(class_logits[0], {}, num_classes=3)
    scores, classes = class_logits[0].softmax(-1).max(-1)
    assert torch.equal(needed, (scores > 0.8) & (classes < 3))
    assert 0 < needed.sum() < 30


@on_each_device
@pytest.mark.parametrize("seed", range(20))
def test_needed_queries_have_all_results(seed):
    """Things and stuff compete for the places of instances: dropping stuff would let others in."""
    random = torch.Generator().manual_seed(seed)
    class_logits = 3 * torch.randn(40, 7, generator=random)
    masks = torch.randn(40, 8, 12, generator=random)
    config = dict(panoptic_on=False, instance_on=True, max_per_image=20)
    needed = post_processing.needed_queries(class_logits, config, num_classes=6)
    assert 0 < needed.sum() < 40
    head = HCFormerFusionHead(num_things_classes=3, num_stuff_classes=3, test_cfg=config)
    ours = head.instance_postprocess(class_logits[needed], masks[needed])
    wanted = head.instance_postprocess(class_logits, masks)
    assert 0 < len(wanted) < 20  # some places went to stuff
    same_instances(*(found[found.scores.argsort()] for found in (ours, wanted)))


@on_each_device
def test_confidence_in_half_precision():
    """A sum in float16 cannot count more than 65,504 pixels."""
    class_logits = torch.tensor([[9.0, 0, 0, 0]]).half()
    instances = fusion_head(max_per_image=1).instance_postprocess(
        class_logits, torch.full((1, 300, 300), 9.0).half()
    )
    assert instances.scores.tolist() == pytest.approx([1.0], abs=2e-3)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image():
    """300 queries and all results at 4000×3000, in less than 8 GiB; the masks alone are 13.4."""
    code = """
import resource, torch
from hcformer_mm.models import HCFormerFusionHead
from tests.helpers.devices import on_each_device
from tests.helpers.models import data_sample
torch.manual_seed(0)
test_cfg = dict(panoptic_on=True, instance_on=True, semantic_on=True)
head = HCFormerFusionHead(num_things_classes=80, num_stuff_classes=53, test_cfg=test_cfg)
sample = data_sample((800, 1067), original=(3000, 4000))
(result,) = head.predict(
    8 * torch.randn(1, 300, 134), 4 * torch.randn(1, 300, 800, 1067), [sample], rescale=True
)
assert result["ins_results"].masks.shape[1:] == (3000, 4000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert float(run.stdout.split()[-1]) < 8


@on_each_device
def test_fewer_pairs_than_wanted():
    """Two queries of three classes are six pairs, four of them things; mmdet asks for a hundred."""
    (result,) = fusion_head(max_per_image=100).predict(
        torch.zeros(1, 2, 4), torch.full((1, 2, 4, 4), 1.0), [data_sample((4, 4))]
    )
    instances = result["ins_results"]
    assert sorted(instances.labels.tolist()) == [0, 0, 1, 1]
    assert instances.masks.all()
    # A quarter, times the confidence of the mask.
    assert instances.scores.tolist() == pytest.approx([0.25 / (1 + math.exp(-1))] * 4)


@on_each_device
@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic"])
def test_results_are_chosen_by_test_cfg(kind):
    flags = {f"{name}_on": name == kind for name in ("panoptic", "instance", "semantic")}
    sample = data_sample((4, 4))
    (result,) = fusion_head(**flags).predict(*hand_drawn(), [sample])
    assert ("pan_results" in result) == (kind == "panoptic")
    assert ("ins_results" in result) == (kind == "instance")
    assert ("pred_sem_seg" in sample) == (kind == "semantic")


@on_each_device
@pytest.mark.parametrize("results", ["panoptic", "instance", "panoptic instance", "semantic"])
def test_queries_that_no_result_needs_are_not_decoded(results):
    model = detector().eval()
    head = model.panoptic_head
    flags = {f"{name}_on": name in results.split() for name in ("panoptic", "instance", "semantic")}
    # Two panoptic queries at most, ten instances; nearly all others lose.
    settings = {**CONFIG, **flags, "max_per_image": 10, "object_mask_thr": 0.3}
    for part in (head, model.panoptic_fusion_head):
        part.test_cfg = settings
    nn.init.normal_(head.cls_embed.weight, std=0.5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        samples = [data_sample((64, 96), original=(100, 150)) for _ in range(2)]
        features = model.extract_feat(
            torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
        )
        pruned = head.predict(features, samples)
        everything = MaskFormerHead.predict(head, features, samples)
    assert everything[1].shape[1] == head.num_queries
    if results != "semantic":
        assert 0 < pruned[1].shape[1] < head.num_queries
    outputs = []
    for logits in (pruned, everything):
        samples = [data_sample((64, 96), original=(100, 150)) for _ in range(2)]
        found = model.panoptic_fusion_head.predict(*logits, samples, rescale=True)
        semantic = [sample.pred_sem_seg.sem_seg for sample in samples if "pred_sem_seg" in sample]
        outputs.append((found, semantic))
    (ours, ours_semantic), (wanted, wanted_semantic) = outputs
    assert len(ours_semantic) == 2 * (results == "semantic")
    for one, other in zip(ours, wanted, strict=True):
        assert one.keys() == other.keys()
        if "pan_results" in one:
            assert torch.equal(one["pan_results"].sem_seg, other["pan_results"].sem_seg)
        if "ins_results" in one:
            in_order = [found["ins_results"] for found in (one, other)]
            in_order = [found[found.scores.argsort(descending=True)] for found in in_order]
            same_instances(*in_order)
    for one, other in zip(ours_semantic, wanted_semantic, strict=True):
        assert torch.equal(one, other)


@on_each_device
def test_candidates_are_the_segments_without_thresholds():
    """A thing of score 0.5, which keeps half of its mask, is among them; nothing else changes."""
    class_logits, masks = hand_drawn()
    masks[:, 0, :, 2:] = 0.1
    class_logits[:, 0] = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    found, samples = [], []
    for changes in ({}, dict(candidates_on=True), dict(object_mask_thr=0, iou_thr=0)):
        samples.append(data_sample((4, 4)))
        (result,) = fusion_head(**changes).predict(class_logits, masks, samples[-1:])
        found.append(result["pan_results"].sem_seg)
    plain, panoptic, everything = found
    assert "pred_candidate_seg" not in samples[0]
    assert torch.equal(panoptic, plain)
    assert torch.equal(samples[1].pred_candidate_seg.sem_seg, everything)
    assert everything[0, 0].tolist() == [1000, 1000, 2, 2] != plain[0, 0].tolist()


@on_each_device
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_segment_nothing(value):
    class_logits, masks = hand_drawn()
    class_logits[0, 1] = value
    with pytest.warns(UserWarning, match="expected finite class logits, got NaN or Inf"):
        (result,) = fusion_head().predict(class_logits, masks, [data_sample((4, 4))])
    assert result["pan_results"].sem_seg[0].tolist() == [[1 + INSTANCE_OFFSET] * 2 + [3] * 2] * 4


@on_each_device
def test_nothing_detected():
    class_logits = torch.zeros(1, 3, 4)
    class_logits[..., -1] = 10.0
    sample = data_sample((4, 4))
    (result,) = fusion_head().predict(class_logits, torch.zeros(1, 3, 4, 4), [sample])
    # mmdet's label for "nothing" is the number of classes.
    panoptic = result["pan_results"].sem_seg
    assert (panoptic == 3).all()
    assert panoptic.dtype == torch.int32


@on_each_device
def test_metainfo_overrides_options_of_an_image():
    """The images of a batch have thresholds of their own; the heads' config stays as it is."""
    config = dict(test_cfg=dict(object_mask_thr=0.4, segments_on=True))
    class_logits, masks = (x.repeat(2, 1, 1, *[1] * (x.dim() - 3)) for x in hand_drawn())
    class_logits[:, 0] = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    samples = [data_sample((4, 4)), data_sample((4, 4))]
    samples[1].set_metainfo(config)
    head = fusion_head()
    first, second = (found["pan_results"].sem_seg for found in head.predict(
        class_logits, masks, samples
    ))  # fmt: skip
    assert (first[0, :, :2] != 1000).all() and (second[0, :, :2] == 1000).all()
    assert "pred_segments" not in samples[0]
    assert samples[1].pred_segments.ids.tolist() == [2, 1000]
    assert samples[1].pred_segments.scores.tolist() == pytest.approx([1, 0.5], abs=1e-3)
    assert head.test_cfg == CONFIG


@on_each_device
def test_segments_name_the_queries_of_the_head():
    """And what an image's options need is decoded, no more."""
    model = detector().eval()
    head = model.panoptic_head
    nn.init.normal_(head.cls_embed.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    samples = [data_sample((64, 96)) for _ in range(2)]
    config = dict(instance_on=False, semantic_on=False, segments_on=True, iou_thr=0)
    for sample, threshold in zip(samples, (0.9, 0.5), strict=True):
        sample.set_metainfo(dict(test_cfg=config | dict(object_mask_thr=threshold)))
    with torch.no_grad():
        features = model.extract_feat(image)
        (class_logits,), _ = head.group(features[-1], last_only=True)
        logits = head.predict(features, samples)
        model.panoptic_fusion_head.predict(*logits, samples)
    best, labels = class_logits.softmax(-1).max(-1)
    kept = (labels < class_logits.shape[-1] - 1) & (best > torch.tensor([[0.9], [0.5]]))
    assert logits[0].shape[1] == kept.any(0).sum() < kept.shape[1]
    for i, sample in enumerate(samples):
        found = sample.pred_segments
        assert torch.equal(labels[i, found.queries], found.labels)
        assert kept[i, found.queries].all()
        assert "decoded_queries" not in sample
    assert samples[1].pred_segments.queries.max() > kept.any(0).sum()
