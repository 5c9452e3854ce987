from functools import cache
from itertools import permutations

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.runner import Runner
from torch.nn import functional as F

from hcformer_mm.acceleration.inference import autocast_test_step
from hcformer_mm.models import HCFormerTTAModel
from hcformer_mm.models.test_time_augs.hcformer_tta import View
from hcformer_mm.utils.errors import InputError
from tests.helpers.devices import on_each_device
from tests.helpers.models import detector, model_config, segmentor
from tests.helpers.tools import INSTANCE_CONFIG, quick_config

QUERIES = 5
FLIPS = (None, "horizontal", "vertical", "diagonal")
DIMS = dict(horizontal=[2], vertical=[1], diagonal=[1, 2])
ALL_RESULTS = {
    "test_cfg.object_mask_thr": 0.05,
    "test_cfg.iou_thr": 0.0,
    "test_cfg.filter_low_score": False,
    "test_cfg.segments_on": True,
    "test_cfg.confidence_on": True,
}


def small_detector(**overrides):
    return detector(**{**ALL_RESULTS, **overrides}).eval()


@cache
def detector_of_five(device):
    """A detector of five queries; its predictions are those that tests attach to samples."""
    return small_detector(**{"panoptic_head.num_queries": QUERIES})


def five_queries():
    return detector_of_five(torch.get_default_device())


def view_sample(size, padded, flip=None, original=None):
    return DetDataSample(
        metainfo=dict(
            img_path="image.jpg",
            img_shape=size,
            ori_shape=original or size,
            batch_input_shape=padded,
            flip=flip is not None,
            flip_direction=flip,
        )
    )


def test_step(model, batches):
    """The results of batches of images and samples, one for each view."""
    inputs, samples = zip(*batches, strict=True)
    with torch.no_grad():
        return model.test_step(dict(inputs=list(inputs), data_samples=list(samples)))


test_step.__test__ = False


def assert_same(sample, other):
    fields = ("pred_panoptic_seg", "pred_instances", "pred_sem_seg")
    for name in (*fields, "pred_segments", "pred_confidence"):
        found, expected = sample.get(name), other.get(name)
        assert set(found.keys()) == set(expected.keys())
        for key, value in expected.items():
            assert torch.equal(getattr(found, key), value), (name, key)


def images(sizes):
    generator = torch.Generator("cpu").manual_seed(0)
    return [
        torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8, device="cpu")
        for size in sizes
    ]


@on_each_device
@pytest.mark.parametrize("sizes", [[(61, 83)], [(61, 83), (47, 96)]])
def test_one_view_changes_no_bit(sizes):
    """Odd sizes, padding, another original size, and a batch of two sizes."""
    model = small_detector()
    with torch.no_grad():
        model.panoptic_head.cls_embed.bias[-1] -= 3  # every query sees an object

    def samples():
        return [view_sample(size, None, original=(75, 101)) for size in sizes]

    with torch.no_grad():
        plain = model.test_step(dict(inputs=images(sizes), data_samples=samples()))
    merged = test_step(HCFormerTTAModel(model), [(images(sizes), samples())])
    for sample, other in zip(merged, plain, strict=True):
        assert len(other.pred_instances) and len(other.pred_segments)
        assert_same(sample, other)
        assert "view" not in sample and "decoded_queries" not in sample
    assert "predict" not in vars(model)


@on_each_device
def test_the_network_runs_in_the_precision_of_the_detector(monkeypatch):
    """A hook gives the detector another test_step."""
    model = small_detector()
    monkeypatch.setattr(model, "test_step", autocast_test_step(model, torch.bfloat16))
    tta = HCFormerTTAModel(model)
    dtypes = []
    merge = tta.merge_preds

    def capture(views):
        dtypes.extend(sample.view.class_logits.dtype for samples in views for sample in samples)
        return merge(views)

    monkeypatch.setattr(tta, "merge_preds", capture)
    views = [(images([(61, 83)]), [view_sample((61, 83), None, flip)]) for flip in FLIPS[:2]]
    (sample,) = test_step(tta, views)
    assert dtypes == [torch.bfloat16] * 2
    assert sample.pred_instances.scores.dtype == torch.float32


def drawn_masks(height, width):
    """Logits of five masks: quarters of the image, and no object; no two are alike if flipped."""
    y, x = torch.arange(height) / height - 0.4, torch.arange(width) / width - 0.6
    rows, columns = torch.meshgrid(12 * y, 12 * x, indexing="ij")
    quarters = [torch.minimum(a * rows, b * columns) for a in (1, -1) for b in (1, -1)]
    return torch.stack([*quarters, torch.full_like(rows, -3)])


def drawn_classes(confidence):
    logits = torch.zeros(QUERIES, 11)
    for query, label in enumerate((0, 3, 3, 8, 10)):
        logits[query, label] = confidence
    return logits


def as_view(model, classes, masks, flip, order, padded):
    """A view with these masks ``(Q, H, W)``, flipped and padded with garbage, of no clusters."""
    size = tuple(masks.shape[1:])
    drawn = masks.flip(DIMS[flip]) if flip else masks
    padding = (0, padded[1] - size[1], 0, padded[0] - size[0])
    sample = view_sample(size, padded, flip)
    sample.view = View(classes[order], F.pad(drawn, padding, value=50.0)[None, order], [])
    return sample


@on_each_device
@pytest.mark.parametrize("flip", FLIPS)
def test_flips_of_an_equivariant_network_change_nothing(flip):
    """A second view with the same masks, flipped and in another order, at an odd size."""
    model = five_queries()
    tta = HCFormerTTAModel(model)
    prediction = drawn_classes(6.0), drawn_masks(45, 67)
    orders = torch.arange(QUERIES), torch.tensor([3, 0, 4, 2, 1])
    views = [
        as_view(model, *prediction, direction, order, (64, 96))
        for direction, order in zip((None, flip), orders, strict=True)
    ]
    (plain,) = tta.merge_preds([[as_view(model, *prediction, None, orders[0], (64, 96))]])
    (merged,) = tta.merge_preds([views])
    assert torch.equal(merged.pred_panoptic_seg.sem_seg, plain.pred_panoptic_seg.sem_seg)
    assert torch.equal(merged.pred_sem_seg.sem_seg, plain.pred_sem_seg.sem_seg)
    assert len(merged.pred_segments.ids) == 4
    torch.testing.assert_close(merged.pred_segments.scores, plain.pred_segments.scores)
    torch.testing.assert_close(merged.pred_confidence.data, plain.pred_confidence.data)
    order, expected = (sample.pred_instances.scores.argsort() for sample in (merged, plain))
    for key in ("masks", "labels", "scores"):
        found, wanted = merged.pred_instances[key][order], plain.pred_instances[key][expected]
        torch.testing.assert_close(found[-4:], wanted[-4:])


def merge_slowly(views, size):
    """Class and mask probabilities of the merged queries, in float64, by all permutations.

    Args:
        views: Class logits ``(Q, K + 1)`` and unflipped mask logits ``(Q, h, w)`` of every view.
        size: The size of the masks.
    """
    classes = [logits.double().softmax(-1) for logits, _ in views]
    masks = [
        F.interpolate(logits.double()[None], size, mode="bilinear")[0].sigmoid()
        for _, logits in views
    ]

    def similarity(view, query, other):
        a, b = masks[0][query], masks[view][other]
        dice = 2 * (a * b).sum() / (a.sum() + b.sum())
        return dice * (classes[0][query, :-1] * classes[view][other, :-1]).sum()

    orders = [tuple(range(QUERIES))]
    for view in range(1, len(views)):
        table = [[similarity(view, q, r) for r in range(QUERIES)] for q in range(QUERIES)]
        orders.append(
            max(
                permutations(range(QUERIES)),
                key=lambda order: sum(table[q][r] for q, r in enumerate(order)),
            )
        )
    merged_classes, merged_masks = [], []
    for q in range(QUERIES):
        found = [(classes[v][order[q]], masks[v][order[q]]) for v, order in enumerate(orders)]
        weights = [1 - scores[-1] for scores, _ in found]
        merged_classes.append(sum(scores for scores, _ in found) / len(found))
        weighted = sum(w * mask for w, (_, mask) in zip(weights, found, strict=True))
        merged_masks.append(weighted / sum(weights))
    return torch.stack(merged_classes), torch.stack(merged_masks)


def test_average_of_flips_and_scales(monkeypatch):
    """Against the slow form: three sizes, each flip, queries that see nothing in some views."""
    model = five_queries()
    sizes = [(33, 50), (45, 67), (61, 90), (45, 67)]
    torch.manual_seed(0)
    views, samples = [], []
    for i, size in enumerate(sizes):
        classes = drawn_classes(4.0) + 0.3 * torch.randn(QUERIES, 11)
        classes[i, -1] += 6  # in each view another query sees nothing
        masks = drawn_masks(*size) + 0.3 * torch.randn(QUERIES, *size)
        views.append((classes, masks))
        order = torch.randperm(QUERIES) if i else torch.arange(QUERIES)
        samples.append(as_view(model, classes, masks, FLIPS[i], order, (64, 96)))
    captured = []
    predict = model.panoptic_fusion_head.predict

    def capture(classes, masks, *args, **kwargs):
        captured.append((classes[0], masks[0]))
        return predict(classes, masks, *args, **kwargs)

    monkeypatch.setattr(model.panoptic_fusion_head, "predict", capture)
    (merged,) = HCFormerTTAModel(model).merge_preds([samples])
    ((classes, masks),) = captured
    expected_classes, expected_masks = merge_slowly(views, (61, 90))
    assert len(classes) == QUERIES
    torch.testing.assert_close(classes.double().softmax(-1), expected_classes)
    torch.testing.assert_close(masks.double().sigmoid(), expected_masks, atol=1e-6, rtol=1e-5)
    assert merged.pred_panoptic_seg.sem_seg.shape == (1, 61, 90)
    assert sorted(merged.pred_segments.queries.tolist()) == [
        0,
        1,
        2,
        3,
    ]  # numbers of the first view


def test_only_needed_queries_are_decoded(monkeypatch):
    model = five_queries()
    panoptic_alone = dict(model.test_cfg, instance_on=False, semantic_on=False)
    monkeypatch.setattr(model.panoptic_head, "test_cfg", panoptic_alone)
    decoded = []
    decode = model.panoptic_head.decode
    monkeypatch.setattr(
        model.panoptic_head,
        "decode",
        lambda masks, *args: decoded.append(masks.shape[1]) or decode(masks, *args),
    )
    order = torch.arange(QUERIES)
    views = [
        as_view(model, drawn_classes(9.0), drawn_masks(40, 50), flip, order, (64, 64))
        for flip in FLIPS
    ]
    HCFormerTTAModel(model).merge_preds([views])
    assert decoded == [4] * 4  # the fifth sees nothing


def test_masks_of_probability_zero_and_one_stay_finite(monkeypatch):
    model = five_queries()
    masks = drawn_masks(40, 50) * 1e4
    classes = drawn_classes(300.0)  # every probability is 0 or 1
    order = torch.arange(QUERIES)
    views = [as_view(model, classes, masks, flip, order, (64, 64)) for flip in FLIPS]
    for sample in views:
        sample.set_metainfo(dict(ori_shape=(71, 90)))
    (merged,) = HCFormerTTAModel(model).merge_preds([views])
    assert merged.pred_segments.scores.tolist() == pytest.approx([1] * 4, abs=0.01)
    assert merged.pred_confidence.data.isfinite().all()


def test_weights_that_are_not_finite_are_warned_of():
    model = five_queries()
    order = torch.arange(QUERIES)
    classes = torch.full((QUERIES, 11), torch.nan)
    views = [
        as_view(model, classes, drawn_masks(40, 50), flip, order, (64, 64)) for flip in FLIPS[:2]
    ]
    with pytest.warns(UserWarning, match="expected finite class logits"):
        HCFormerTTAModel(model).merge_preds([views])


def test_views_tell_whether_they_are_flipped():
    model = five_queries()
    order = torch.arange(QUERIES)
    (sample,) = [as_view(model, drawn_classes(9.0), drawn_masks(40, 50), None, order, (64, 64))]
    sample.pop("flip")
    with pytest.raises(InputError, match=r"^expected flip in the metainfo of every view.*prob=0"):
        HCFormerTTAModel(model).merge_preds([[sample]])


def test_other_models_are_refused():
    with pytest.raises(InputError, match=r"got EncoderDecoder without; use mmseg"):
        HCFormerTTAModel(segmentor())


def augmented_config(shapes, work_dir, path):
    config = quick_config(shapes, work_dir, path)
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.model = dict(**config.tta_model, module=config.model)
    return config


def test_runner_of_mmengine(shapes, tmp_path):
    """A batch of three images through MMEngine's own runner, in the scope of mmdet."""
    config = augmented_config(shapes, tmp_path, INSTANCE_CONFIG)
    assert config.default_scope == "mmdet"
    config.test_dataloader.batch_size = 3
    scores = Runner.from_cfg(config).test()
    assert 0 <= scores["coco/segm_mAP"] <= 1


def test_the_model_is_built_from_its_config():
    model = MODELS.build(dict(type="hcformer_mm.HCFormerTTAModel", module=model_config()))
    assert isinstance(model, HCFormerTTAModel)
    assert set(model.state_dict()) == {f"module.{name}" for name in detector().state_dict()}
