"""Results of an exported model against those of the fusion head, which mmdet's oracle tests."""

import pytest
import torch

from hcformer_mm.deployment.post_processing import GraphFusion, most_likely_class
from hcformer_mm.models import HCFormerFusionHead
from tests.helpers.devices import on_each_device

THINGS, STUFF, QUERIES = 3, 2, 12
ALL = dict(panoptic_on=True, instance_on=True, semantic_on=True, max_per_image=7)


def fusion_head(**test_cfg):
    config = ALL | dict(object_mask_thr=0.5, iou_thr=0.2, filter_low_score=True) | test_cfg
    return HCFormerFusionHead(
        num_things_classes=THINGS, num_stuff_classes=STUFF, test_cfg=config
    ).eval()


def logits(size, *, batch=3, sure=4.0, seed=0):
    """Random class logits and smooth mask logits, so that segments are larger than a pixel."""
    torch.manual_seed(seed)
    class_logits = sure * torch.randn(batch, QUERIES, THINGS + STUFF + 1)
    coarse = 3 * torch.randn(batch, QUERIES, -(-size[0] // 4), -(-size[1] // 4))
    masks = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return class_logits, masks


def graph_results(head, class_logits, masks):
    graph = GraphFusion(head)
    probabilities, queries = graph.choose(class_logits)
    index = queries[..., None, None].expand(-1, -1, *masks.shape[-2:])
    return queries, graph(probabilities, queries, masks.gather(1, index))


def by_score(scores, *fields):
    order = scores.argsort(descending=True)
    return [field[order] for field in (scores, *fields)]


def assert_same_instances(results, image, expected):
    there = results["labels"][image] >= 0
    fields = [results[name][image][there] for name in ("scores", "labels", "boxes", "mask_index")]
    scores, labels, boxes, index = by_score(*fields)
    found = scores, labels, boxes, results["masks"][image][index]
    wanted = by_score(expected.scores, expected.labels, expected.bboxes, expected.masks)
    torch.testing.assert_close(found[0], wanted[0])
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        assert torch.equal(ours, theirs)


@on_each_device
@pytest.mark.parametrize("filter_low_score", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (33, 1), (1, 29), (31, 47)])
def test_equals_the_fusion_head(size, filter_low_score):
    head = fusion_head(filter_low_score=filter_low_score)
    class_logits, masks = logits(size)
    class_logits[..., 1] -= 60  # a class that no pixel can have
    _, results = graph_results(head, class_logits, masks)
    for image, given in enumerate(zip(class_logits, masks, strict=True)):
        assert torch.equal(results["panoptic"][image], head.panoptic_postprocess(*given).sem_seg[0])
        semantic = head.semantic_postprocess(*given).sem_seg[0]
        assert torch.equal(results["semantic"][image].long(), semantic)
        assert_same_instances(results, image, head.instance_postprocess(*given))
    assert results["panoptic"].dtype == results["semantic"].dtype == torch.int32
    if size == (31, 47):
        assert len(results["panoptic"].unique()) > 4


@pytest.mark.parametrize("iou_thr", [0.0, 0.2])
def test_logits_of_zero(iou_thr):
    """A probability of 1/2 is in the mask; a query that wins no pixel has no object's number."""
    head = fusion_head(iou_thr=iou_thr)
    class_logits, masks = logits((31, 47))
    masks = masks.round()
    class_logits[:, :2] = torch.tensor([9.0, 0, 0, 0, 0, 0])
    masks[:, 0] = masks[:, 1] - 1  # wins nowhere
    _, results = graph_results(head, class_logits, masks)
    for image, given in enumerate(zip(class_logits, masks, strict=True)):
        assert torch.equal(results["panoptic"][image], head.panoptic_postprocess(*given).sem_seg[0])
        assert_same_instances(results, image, head.instance_postprocess(*given))


def test_a_single_class_is_above_its_threshold():
    scores = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)
    assert most_likely_class(scores, (1, 3), 0.5).tolist() == [[[0, 0, 1]]]


def test_only_needed_queries_are_chosen():
    """The largest number that an image needs, each once, the ones of the panoptic result first."""
    head = fusion_head(instance_on=False, semantic_on=False)
    class_logits, masks = logits((8, 12))
    class_logits[1] = 0.0  # no query is sure of a class
    queries, results = graph_results(head, class_logits, masks)
    assert list(results) == ["panoptic"]
    scores, classes = class_logits.softmax(-1).max(-1)
    kept = (scores > 0.5) & (classes < THINGS + STUFF)
    assert queries.shape == (3, kept.sum(1).max())
    for row, of_image in zip(queries, kept, strict=True):
        assert row.unique().shape == row.shape
        count = of_image.sum()
        assert torch.equal(row[:count], of_image.nonzero()[:, 0])
    assert (results["panoptic"][1] == THINGS + STUFF).all()


def test_no_image_needs_a_query():
    head = fusion_head(instance_on=False, semantic_on=False)
    class_logits = torch.zeros(2, QUERIES, THINGS + STUFF + 1)
    queries, results = graph_results(head, class_logits, torch.ones(2, QUERIES, 3, 5))
    assert queries.shape == (2, 1)
    assert (results["panoptic"] == THINGS + STUFF).all()


def test_a_pixel_of_no_mask_falls_to_a_query_that_is_kept():
    """Probabilities that underflow tie at 0, where a query that is not kept must not win."""
    head = fusion_head(instance_on=False, filter_low_score=False)
    class_logits, _ = logits((2, 2), batch=1)
    class_logits[0, 0] = 0.0  # the first query is not kept
    masks = torch.full((1, QUERIES, 2, 2), -200.0)
    masks[..., 0] = 5.0
    _, results = graph_results(head, class_logits, masks)
    expected = head.panoptic_postprocess(class_logits[0], masks[0]).sem_seg
    assert torch.equal(results["panoptic"], expected)
    assert (expected != THINGS + STUFF).all()


@pytest.mark.parametrize("share", [(4, 5), (3, 5)])
def test_share_at_the_threshold(share):
    """A share equal to iou_thr stays, in Python's arithmetic: 4/5 >= 0.8, and 3/5 >= 0.6."""
    part, whole = share
    head = fusion_head(iou_thr=part / whole, instance_on=False, semantic_on=False)
    class_logits = torch.full((1, 2, THINGS + STUFF + 1), -20.0)
    class_logits[0, 0, 0], class_logits[0, 1, 1] = 20.0, 21.0
    masks = torch.full((1, 2, 1, whole), 2.0)
    masks[0, 1, :, :part] = -5.0  # the second query wins the rest
    masks[0, 1, :, part:] = 9.0
    _, results = graph_results(head, class_logits, masks)
    expected = head.panoptic_postprocess(class_logits[0], masks[0]).sem_seg
    assert torch.equal(results["panoptic"], expected)
    assert (results["panoptic"][0, 0, 0] % 1000).item() == 0
