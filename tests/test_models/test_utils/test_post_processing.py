import math
import warnings

import pytest
import torch
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures.mask import mask2bbox
from torch.nn import functional as F

from benchmarks.device_costs import pretend_gpu
from benchmarks.operators import confident_class_logits
from hcformer_mm.models import HCFormerFusionHead
from hcformer_mm.models.utils import post_processing
from hcformer_mm.models.utils.post_processing import (
    InstanceResult,
    SemanticResult,
    class_probabilities,
    needed_queries,
    resized_bands,
    semantic_queries,
)
from tests.helpers import reference
from tests.helpers.devices import on_each_device
from tests.helpers.models import data_sample

RESULTS = dict(panoptic_on=True, instance_on=True, semantic_on=True)
SEMANTIC = dict(panoptic_on=False, semantic_on=True)


def fusion_head(things=3, stuff=3, **test_cfg):
    return HCFormerFusionHead(
        num_things_classes=things, num_stuff_classes=stuff, test_cfg={**RESULTS, **test_cfg}
    )


def predictions(size=(20, 28), *, queries=15, classes=6, seed=0):
    """Class and mask logits; a third of the queries is confident of a class, the others of none."""
    random = torch.Generator().manual_seed(seed)
    class_logits = torch.randn(queries, classes + 1, generator=random)
    class_logits[:, -1] += 6
    objects = torch.arange(0, queries, 3)
    class_logits[objects, torch.randint(classes, objects.shape, generator=random)] += 12
    return class_logits, 4 * torch.randn(queries, *size, generator=random)


def all_results(head, class_logits, masks, original=(30, 37)):
    sample = data_sample(tuple(masks.shape[-2:]), original=original)
    (result,) = head.predict(class_logits[None], masks[None], [sample], rescale=True)
    instances = result["ins_results"]
    return dict(
        panoptic=result["pan_results"].sem_seg,
        semantic=sample.pred_sem_seg.sem_seg,
        **{name: instances[name] for name in ("scores", "labels", "bboxes", "masks")},
    )


def equal_results(results, wanted):
    assert results.keys() == wanted.keys()
    for name, value in results.items():
        if name == "scores":
            torch.testing.assert_close(value, wanted[name])
        else:
            assert torch.equal(value, wanted[name]), name


@on_each_device
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 1), (23, 31)])
@pytest.mark.parametrize("kind", ["trained", "random", "flat", "one query"])
def test_semantic_map_equals_the_oracle(kind, size):
    """Classes that lose everywhere are left out; pixels closer than rounding may differ."""
    class_logits, masks = predictions(size)
    if kind == "random":
        class_logits = torch.randn(class_logits.shape, generator=torch.Generator().manual_seed(1))
    elif kind == "flat":
        class_logits = class_logits / 100
    elif kind == "one query":
        class_logits, masks = class_logits[:1], masks[:1]
    scores = reference.semantic_scores(class_logits.double(), masks.double())
    found = fusion_head().semantic_postprocess(class_logits, masks).sem_seg
    assert found.shape == (1, *size)
    torch.testing.assert_close(scores.gather(0, found)[0], scores.amax(0), rtol=1e-5, atol=0)
    assert (found[0] == scores.argmax(0)).float().mean() > 0.99


@on_each_device
def test_class_without_a_best_query_may_win():
    """Class 2 is second in queries 0 and 1 and wins where they overlap; in query 2 it is weak."""
    probabilities = torch.tensor(
        [[0.5, 0.0, 0.45, 0.05], [0.0, 0.5, 0.45, 0.05], [0.9, 0.0, 0.05, 0.05]]
    )
    masks = torch.full((3, 1, 4), -20.0)
    masks[0, 0, :2], masks[1, 0, 1:3], masks[2, 0, 3] = 20.0, 20.0, 20.0
    found = fusion_head(2, 1).semantic_postprocess(probabilities.log(), masks)
    assert found.sem_seg.tolist() == [[[0, 2, 1, 0]]]


def candidates(probabilities):
    return SemanticResult(probabilities, (1, 1))._candidates.tolist()


@on_each_device
def test_classes_that_cannot_win_are_left_out():
    ratios = torch.tensor([[0.3, 1, 0.49, 0.5], [0.3, 0.49, 0.49, 0.5]])
    ratios[1, 3] = 1
    probabilities = torch.cat([ratios / 10, torch.tensor([[0.7], [0.7]])], dim=1)
    # 0.98 of class 2 is too little; class 0 wins where all scores are 0.
    assert candidates(probabilities) == [0, 1, 3]
    assert candidates(torch.cat([probabilities, torch.full((1, 5), 1e-9)])) == [0, 1, 3]
    probabilities[0, 2] = 0.052  # 1.01
    assert candidates(probabilities) == [0, 1, 2, 3]


def test_equally_likely_classes_stay():
    """One class alone does not lose to an equal one, and the first one wins."""
    probabilities = torch.tensor([[0.1, 0.3, 0.3, 0.3]])
    assert candidates(probabilities) == [0, 1, 2]
    found = fusion_head(2, 1).semantic_postprocess(probabilities.log(), torch.ones(1, 2, 2))
    assert (found.sem_seg == 1).all()


def test_semantic_class_where_no_mask_is():
    """All scores are 0 in float32; the first class wins, as without leaving classes out."""
    class_logits = torch.tensor([[-9.0, -9, 9, -9]])
    found = fusion_head(2, 1).semantic_postprocess(class_logits, torch.tensor([[[-200.0, 9]]]))
    assert found.sem_seg.tolist() == [[[0, 2]]]


@on_each_device
def test_negligible_queries():
    best = torch.tensor([0.5, 0.5 * 2**-24, 0.4999 * 2**-24, 0.0, 0.1])
    probabilities = torch.stack([best / 2, best, 1 - 1.5 * best], dim=1)
    assert semantic_queries(probabilities).tolist() == [True, True, False, False, True]
    # Relative to the largest probability of the image: its best query always stays.
    assert semantic_queries(probabilities[2:4]).tolist() == [True, False]
    probabilities[1] = math.nan
    assert semantic_queries(probabilities).all()


@pytest.mark.parametrize("seed", range(5))
def test_negligible_queries_do_not_change_the_map(seed):
    class_logits = confident_class_logits(40, 8, 7)
    masks = 3 * torch.randn(40, 30, 40, generator=torch.Generator().manual_seed(seed))
    needed = needed_queries(class_logits, SEMANTIC, 7)
    assert torch.equal(needed, class_logits[:, -1] < 1)
    assert needed.sum() == 8
    head = fusion_head(4, 3)
    found = head.semantic_postprocess(class_logits[needed], masks[needed]).sem_seg
    scores = reference.semantic_scores(class_logits.double(), masks.double())
    differ = found[0] != scores.argmax(0)
    assert differ.float().mean() < 1e-3
    lost = scores.amax(0) - scores.gather(0, found)[0]
    assert lost.max() <= 40 * 2**-24


@on_each_device
@pytest.mark.parametrize(("pairs", "numbers"), [(4, (7, 4, 20)), (8, (7, 8, 20))])
def test_needed_queries_are_those_of_all_results(pairs, numbers):
    class_logits, _ = predictions(queries=30)
    class_logits[20:, -1] += 30  # negligible
    none = dict.fromkeys(RESULTS, False) | dict(max_per_image=pairs)
    panoptic, instance, semantic = (
        needed_queries(class_logits, {**none, name: True}, 6) for name in RESULTS
    )
    assert (panoptic.sum(), instance.sum(), semantic.sum()) == numbers
    both = needed_queries(class_logits, {**none, **RESULTS, "semantic_on": False}, 6)
    assert torch.equal(both, panoptic | instance)
    assert torch.equal(needed_queries(class_logits, {**none, **RESULTS}, 6), semantic)
    # Of all pairs each query is in one.
    assert needed_queries(class_logits, {**none, **RESULTS, "max_per_image": 180}, 6).all()
    assert not needed_queries(class_logits, none, 6).any()
    candidates = dict(candidates_on=True, object_mask_thr=1)
    found = needed_queries(class_logits, {**none, **candidates}, 6)
    assert torch.equal(found, class_logits.argmax(1) < 6)


@on_each_device
@pytest.mark.parametrize("threshold", [0, 0.1, 0.3, 1 / 3, 0.5, 0.8, 0.85, 0.9, 0.95, 1, 1.5])
def test_shares_are_compared_as_in_python(threshold):
    numbers = torch.arange(1, 61)
    parts, wholes = torch.cartesian_prod(numbers, numbers).T
    reached = post_processing._share_reaches(parts, wholes, threshold, 60)
    expected = [p / w >= threshold for p, w in zip(parts.tolist(), wholes.tolist(), strict=True)]
    assert reached.tolist() == expected


@on_each_device
@pytest.mark.parametrize(
    "threshold", [0.8, math.nextafter(0.8, 1), math.nextafter(0.8, 0), 0.7654321, 2 / 3]
)
def test_shares_of_large_areas(threshold):
    wholes = torch.randint(1, 2**24, (2000,), generator=torch.Generator().manual_seed(0))
    parts = (wholes * threshold).long() + torch.arange(2000) % 3 - 1
    parts = parts.clamp(min=0)
    reached = post_processing._share_reaches(parts, wholes, threshold, 2**24)
    expected = [p / w >= threshold for p, w in zip(parts.tolist(), wholes.tolist(), strict=True)]
    assert reached.tolist() == expected
    assert 100 < sum(expected) < 1900


@on_each_device
@pytest.mark.parametrize("shape", [(0, 5, 6), (1, 1, 1), (30, 7, 9), (4, 1, 12), (4, 12, 1)])
def test_boxes_equal_mmdets(shape):
    random = torch.Generator().manual_seed(0)
    masks = torch.rand(shape, generator=random) > 0.97
    if len(masks) > 5:
        masks[0], masks[1] = True, False
        masks[2], masks[3] = False, False
        masks[2, 0, 0] = masks[3, -1, -1] = True
    probabilities = torch.full((shape[0], 2), 0.5)
    result = InstanceResult(probabilities, shape[1:], dict(max_per_image=shape[0]), 1, 1)
    logits = masks.float() - 0.5
    order = result._queries[result._index]
    if len(masks):
        result.add(slice(0, shape[1]), logits, logits.sigmoid())
    instances = result.fields()["pred_instances"]
    assert torch.equal(instances.masks, masks[order])
    assert torch.equal(instances.bboxes, mask2bbox(masks)[order])
    assert instances.bboxes.dtype == torch.float32


@on_each_device
def test_instances_need_the_queries_of_things_alone():
    """Each once and in order, from the pairs (2, 1), (0, 0), (2, 0) and the stuff pair (3, 2)."""
    probabilities = torch.full((4, 4), 0.01)
    for score, (query, label) in zip((9, 8, 7, 6), ((2, 1), (0, 0), (2, 0), (3, 2)), strict=True):
        probabilities[query, label] = score / 10
    result = InstanceResult(probabilities, (1, 1), dict(max_per_image=4), 2, 3)
    assert result._queries.tolist() == [0, 2]
    pairs = zip(result._queries[result._index].tolist(), result._classes.tolist(), strict=True)
    assert sorted(pairs) == [(0, 0), (2, 0), (2, 1)]


def test_a_hundred_pairs_by_default():
    assert len(post_processing.best_pairs(torch.rand(30, 7), {}, 6)[0]) == 100


@pytest.mark.parametrize("limit", [0, -1])
def test_masks_are_resized_at_once_up_to_a_limit(limit, monkeypatch):
    masks = torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(0))
    size = (40, 13)
    monkeypatch.setattr(post_processing, "RESIZED_NUMEL", 3 * 40 * 13 + limit)
    monkeypatch.setattr(post_processing, "BAND_NUMEL", 5 * 3 * 13 + 1)
    pieces = list(resized_bands(masks, size))
    resized = F.interpolate(masks[None], size=size, mode="bilinear")[0]
    assert torch.equal(torch.cat([logits for _, logits in pieces], dim=1), resized) == (limit == 0)
    # Rows that are resized alone are resized 16 at once, at least.
    step = 5 if limit == 0 else 16
    assert [rows.start for rows, _ in pieces] == list(range(0, 40, step))


def test_rows_are_resized_alone_on_a_device(monkeypatch):
    masks, size = torch.randn(2, 11, 13), (53, 91)
    monkeypatch.setattr(post_processing, "RESIZED_NUMEL", 0)
    with pretend_gpu() as gpu:
        bands = [logits.cpu() for _, logits in resized_bands(masks.to(gpu.device), size)]
    wanted = F.interpolate(masks[None], size=size, mode="bilinear")[0]
    torch.testing.assert_close(torch.cat(bands, dim=1), wanted, rtol=1e-4, atol=1e-5)


@on_each_device
def test_masks_of_the_right_size_are_not_copied():
    masks = torch.randn(3, 40, 13)
    ((rows, logits),) = resized_bands(masks, (40, 13))
    assert rows == slice(0, 40)
    assert logits.data_ptr() == masks.data_ptr()


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (53, 91), (7, 200), (1, 9)])
def test_rows_resized_alone_are_exact(size, monkeypatch):
    masks = torch.randn(2, 11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(post_processing, "RESIZED_NUMEL", 0)
    monkeypatch.setattr(post_processing, "BAND_NUMEL", 0)
    resized = torch.cat([logits for _, logits in resized_bands(masks, size)], dim=1)
    wanted = F.interpolate(masks[None], size=size, mode="bilinear")[0]
    torch.testing.assert_close(resized, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("limit", [2**28, 100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, limit, monkeypatch):
    """Half-precision logits give the results of the same logits in float32, under autocast too."""
    monkeypatch.setattr(post_processing, "RESIZED_NUMEL", limit)
    logits = [x.to(dtype) for x in predictions(queries=30)]
    wanted = all_results(fusion_head(), *(x.float() for x in logits))
    equal_results(all_results(fusion_head(), *logits), wanted)
    pairs = logits, [x.float() for x in logits]
    equal_results(*(all_results(fusion_head(), *pair, (20, 28)) for pair in pairs))
    with torch.autocast("cpu", torch.bfloat16):
        equal_results(all_results(fusion_head(), *logits), wanted)
    assert wanted["scores"].isfinite().all()
    assert torch.equal(
        needed_queries(logits[0], RESULTS, 6), needed_queries(logits[0].float(), RESULTS, 6)
    )
    # Rounding of logits changes probabilities by less than 2e-2.
    exact = all_results(fusion_head(), *predictions(queries=30))
    best = [found["scores"].sort(descending=True).values for found in (wanted, exact)]
    torch.testing.assert_close(*best, rtol=0, atol=2e-2)


@on_each_device
@pytest.mark.parametrize("rescaled", [(20, 28), (30, 37)])
def test_memory_format_changes_nothing(rescaled):
    class_logits, masks = predictions(queries=30)
    channels_last = masks[None].contiguous(memory_format=torch.channels_last)[0]
    wanted = all_results(fusion_head(), class_logits, masks, rescaled)
    equal_results(all_results(fusion_head(), class_logits, channels_last, rescaled), wanted)


@pytest.mark.parametrize("original", [(60, 84), (97, 41)])
def test_costs_and_results_on_a_device(original):
    """At most 150 launches and 3 waits an image, and the results of the CPU."""
    class_logits, masks = predictions((60, 84), queries=100, classes=133)
    head = fusion_head(80, 53, filter_low_score=True)
    with pretend_gpu() as gpu:
        on_gpu = class_logits.to(gpu.device), masks.to(gpu.device)
        with torch.no_grad(), gpu.count() as costs:
            found = all_results(head, *on_gpu, original)
        found = {name: value.cpu() for name, value in found.items()}
    assert costs.launches <= 150
    assert costs.syncs <= 3
    assert costs.uploads == 0
    equal_results(found, all_results(head, class_logits, masks, original))


def test_a_device_has_one_band():
    with pretend_gpu() as gpu:
        ((rows, logits),) = resized_bands(torch.zeros(3, 700, 900, device=gpu.device), (700, 900))
    assert rows == slice(0, 700)
    assert logits.shape == (3, 700, 900)
    assert len(list(resized_bands(torch.zeros(3, 700, 900), (700, 900)))) > 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", list(RESULTS))
def test_logits_that_are_not_finite_are_reported_on_a_device(kind, value):
    class_logits, masks = predictions()
    class_logits[4, 2] = value
    head = fusion_head(**{name: name == kind for name in RESULTS})
    with pretend_gpu() as gpu:
        batch = [x.to(gpu.device)[None] for x in (class_logits, masks)]
        with torch.no_grad(), pytest.warns(UserWarning, match="expected finite class logits"):
            head.predict(*batch, [data_sample((20, 28))])


@on_each_device
def test_finite_logits_are_not_reported():
    class_logits, masks = predictions()
    class_logits[4, 2] = -math.inf  # a class that is ruled out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        all_results(fusion_head(), class_logits, masks)


@on_each_device
def test_a_query_that_wins_no_pixel_gets_no_number():
    """Of two equal masks the first one wins; the last mask is too weak for its only pixels."""
    class_logits = torch.full((4, 4), -9.0)
    class_logits[:, 0] = 9.0
    masks = torch.full((4, 2, 6), -9.0)
    masks[:2, :, :2], masks[2, :, 2:4], masks[3, :, 4:] = 3.0, 3.0, -0.1
    for filter_low_score in (False, True):
        config = dict(iou_thr=0, filter_low_score=filter_low_score)
        mmdets = MaskFormerFusionHead(num_things_classes=2, num_stuff_classes=1, test_cfg=config)
        found = fusion_head(2, 1, **config).panoptic_postprocess(class_logits, masks).sem_seg
        assert found[0].tolist() == [[1000, 1000, 2000, 2000, 3, 3]] * 2
        assert torch.equal(found, mmdets.panoptic_postprocess(class_logits, masks).sem_seg)


@on_each_device
@pytest.mark.parametrize("iou_thr", [0.5, 0.8])
@pytest.mark.parametrize("seed", range(4))
def test_panoptic_equals_mmdets_for_overlapping_masks(seed, iou_thr):
    random = torch.Generator().manual_seed(seed)
    class_logits, _ = predictions(queries=30, seed=seed)
    masks = F.interpolate(
        8 * torch.randn(1, 30, 5, 7, generator=random), size=(33, 45), mode="bilinear"
    )[0]
    for filter_low_score in (False, True):
        options = dict(iou_thr=iou_thr, filter_low_score=filter_low_score)
        mmdets = MaskFormerFusionHead(
            num_things_classes=3, num_stuff_classes=3, test_cfg={**options, "panoptic_on": True}
        )
        wanted = mmdets.panoptic_postprocess(class_logits, masks).sem_seg
        found = fusion_head(**options).panoptic_postprocess(class_logits, masks).sem_seg
        assert torch.equal(found, wanted)


@on_each_device
def test_a_segment_of_one_pixel():
    class_logits = torch.tensor([[9.0, -9.0, -9.0, -9.0]])
    found = fusion_head(2, 1).panoptic_postprocess(class_logits, torch.full((1, 1, 1), 9.0))
    assert found.sem_seg.tolist() == [[[1000]]]


@on_each_device
def test_scores_at_the_threshold_are_not_kept():
    """A probability of exactly one half, as in mmdet."""
    class_logits, masks = torch.tensor([[0.0, -math.inf, -math.inf, 0.0]]), torch.ones(1, 2, 2)
    for threshold, label in ((0.5, 3), (0.4999, 1000)):
        found = fusion_head(2, 1, object_mask_thr=threshold)
        assert (found.panoptic_postprocess(class_logits, masks).sem_seg == label).all()


def test_confidence_of_large_masks():
    """A mean over 1.6 million pixels in 4,000 bands, to 1e-6."""
    logits = torch.linspace(0.1, 9, 400).expand(1, 4000, 400)
    probabilities = class_probabilities(torch.tensor([[50.0, 0.0]]))
    result = InstanceResult(probabilities, (4000, 400), {}, 1, 1)
    for row in range(4000):
        band = logits[:, row : row + 1]
        result.add(slice(row, row + 1), band, band.sigmoid())
    expected = logits[0, 0].double().sigmoid().mean()
    (score,) = result.fields()["pred_instances"].scores.tolist()
    assert score == pytest.approx(expected.item(), rel=1e-6)


SCORED = dict(panoptic_on=True, segments_on=True, confidence_on=True)


def scored(class_logits, masks, size=None, *, head=None, **test_cfg):
    """Data sample with panoptic segmentation, segments and confidence."""
    head = head or fusion_head(**SCORED, instance_on=False, semantic_on=False, **test_cfg)
    sample = data_sample(tuple(masks.shape[-2:]), original=size or tuple(masks.shape[-2:]))
    (result,) = head.predict(class_logits[None], masks[None], [sample], rescale=True)
    return result["pan_results"].sem_seg, sample


def assert_scored(class_logits, masks, panoptic, sample, kept=0.8):
    """Compare with a loop over pixels, in float64."""
    probabilities, masks = class_logits.double().softmax(-1), masks.double().sigmoid()
    confidence = torch.zeros(panoptic.shape[1:], dtype=torch.float64)
    pixels = {}
    for y in range(panoptic.shape[1]):
        for x in range(panoptic.shape[2]):
            if panoptic[0, y, x] == probabilities.shape[1] - 1:
                continue
            best, winner = -1.0, None
            for query, (one, mask) in enumerate(zip(probabilities, masks[:, y, x], strict=True)):
                score, label = one.max(0)
                if label < len(one) - 1 and score > kept and score * mask > best:
                    best, winner = score * mask, query
            confidence[y, x] = best
            pixels.setdefault(panoptic[0, y, x].item(), []).append(winner)
    found = sample.pred_segments
    assert found.ids.tolist() == sorted(pixels)
    assert found.labels.tolist() == [value % 1000 for value in sorted(pixels)]
    for value, score, query in zip(
        found.ids.tolist(), found.scores.tolist(), found.queries.tolist(), strict=True
    ):
        assert score == pytest.approx(confidence[panoptic[0] == value].mean().item(), rel=1e-6)
        winners = pixels[value]
        assert winners.count(query) == max(map(winners.count, winners))
        if len(set(winners)) == 1:  # one query: class score · mean mask probability
            mean = masks[query][panoptic[0] == value].mean()
            assert score == pytest.approx((probabilities[query].max() * mean).item(), rel=1e-6)
    assert sample.pred_confidence.data.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(
        sample.pred_confidence.data[0], confidence.float(), rtol=1e-6, atol=0
    )
    return found


@on_each_device
@pytest.mark.parametrize("filter_low_score", [False, True])
@pytest.mark.parametrize("size", [(20, 28), (1, 40), (33, 1)])
@pytest.mark.parametrize("band", [1, 2**18])
def test_scores_of_segments_and_pixels(band, size, filter_low_score, monkeypatch):
    """Segments of several queries too: the first and the last query have one stuff class."""
    monkeypatch.setattr(post_processing, "BAND_NUMEL", band)
    class_logits, masks = predictions(size)
    masks -= 4
    for query in (0, 12):
        class_logits[query] = 12 * torch.eye(7)[5]
    options = dict(iou_thr=0.1, filter_low_score=filter_low_score)
    panoptic, sample = scored(class_logits, masks, **options)
    found = assert_scored(class_logits, masks, panoptic, sample)
    assert len(found) >= 4
    assert (panoptic == 6).any() == filter_low_score
    plain = fusion_head(**options).panoptic_postprocess(class_logits, masks)
    assert torch.equal(panoptic, plain.sem_seg)


@on_each_device
def test_nothing_to_score():
    """No query is kept, or no pixel stays."""
    class_logits, masks = predictions()
    class_logits[:, -1] += 30
    for wanted in (class_logits, predictions()[0]):
        panoptic, sample = scored(wanted, masks - 50, filter_low_score=True)
        assert (panoptic == 6).all()
        segments = sample.pred_segments
        assert [len(segments[key]) for key in ("ids", "labels", "scores", "queries")] == [0] * 4
        assert not sample.pred_confidence.data.any()


@on_each_device
def test_a_query_that_is_not_finite_scores_nothing():
    class_logits, masks = predictions()
    wanted = scored(class_logits, masks, iou_thr=0.1)
    class_logits = torch.cat([class_logits, torch.full((1, 7), torch.nan)])
    with pytest.warns(UserWarning, match="expected finite class logits"):
        found = scored(class_logits, torch.cat([masks, masks[:1]]), iou_thr=0.1)
    assert torch.equal(found[0], wanted[0])
    for name in ("ids", "scores", "queries"):
        assert torch.equal(found[1].pred_segments[name], wanted[1].pred_segments[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_in_half_precision(dtype):
    logits = [x.to(dtype) for x in predictions()]
    (panoptic, found), (wanted, expected) = (
        scored(*pair, (23, 31), iou_thr=0.1) for pair in (logits, [x.float() for x in logits])
    )
    assert torch.equal(panoptic, wanted)
    assert torch.equal(found.pred_segments.scores, expected.pred_segments.scores)
    assert torch.equal(found.pred_confidence.data, expected.pred_confidence.data)


def test_score_of_a_large_segment():
    """A mean over 1.6 million pixels, to 1e-6."""
    masks = torch.linspace(0.1, 9, 400).expand(1, 4000, 400)
    _, sample = scored(50 * torch.eye(7)[:1], masks)
    expected = masks[0, 0].double().sigmoid().mean()
    assert sample.pred_segments.scores.item() == pytest.approx(expected.item(), rel=1e-6)


def test_scores_on_a_device():
    """Two waits for the number of segments, which no size of an array tells in advance."""
    class_logits, masks = predictions((60, 84), queries=100, classes=133)
    head = fusion_head(80, 53, **SCORED, filter_low_score=True, iou_thr=0.1)
    _, wanted = scored(class_logits, masks, head=head)
    with pretend_gpu() as gpu:
        on_gpu = class_logits.to(gpu.device), masks.to(gpu.device)
        with torch.no_grad(), gpu.count() as costs:
            _, sample = scored(*on_gpu, head=head)
        found = sample.cpu()
    assert costs.syncs <= 5
    assert costs.uploads == 0
    assert len(wanted.pred_segments) > 2
    for name in ("ids", "labels", "scores", "queries"):
        torch.testing.assert_close(found.pred_segments[name], wanted.pred_segments[name])
