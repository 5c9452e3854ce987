"""What holds for every size, number and value: the models' right result, or one clear error."""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch.nn import functional as F

from hcformer_mm.models import ClusteringModule, HCFormerFusionHead
from hcformer_mm.models.losses.mask_criterion import MaskCriterion
from hcformer_mm.models.utils.mask_decoding import decode_class_logits, decode_mask_logits
from hcformer_mm.ops import soft_assign
from hcformer_mm.structures.clustered_features import ClusteredFeatures
from tests.helpers import reference
from tests.helpers.models import backbone, data_sample, detector, model_config
from tests.helpers.strategies import SCALES, SIZES, half, maps

HALF_PRECISION = [torch.bfloat16, torch.float16]
SPACES = st.sampled_from(["logit", "probability"])


@cache
def model():
    """A detector of 20 queries and 10 classes."""
    return detector().eval()


def assignments_of(data, size, levels, dtype=torch.float64, batch=1):
    """Assignments of some levels, and the size of the coarsest cells."""
    assignments = []
    for _ in range(levels):
        fine, coarse = (data.draw(maps((batch, 3, *s), dtype)) for s in (size, half(size)))
        fine, coarse = (F.normalize(x, dim=1) for x in (fine, coarse))
        assignments.append(soft_assign(fine, coarse, data.draw(SCALES)))
        size = half(size)
    return assignments, size


@given(st.data(), SIZES, st.integers(1, 3), st.integers(1, 3), SCALES)
def test_clustering_module(data, size, fine_channels, coarse_channels, scale):
    """One channel is normalized to zero, so that all candidates are alike."""
    torch.manual_seed(0)
    clustering = ClusteringModule(fine_channels, coarse_channels, 4, init_scale=scale).double()
    fine = data.draw(maps((1, fine_channels, *size)))
    coarse = data.draw(maps((1, coarse_channels, *half(size))))
    assignment = clustering(fine, coarse)
    torch.testing.assert_close(assignment.sum(1), torch.ones(1, *size).double())
    if 1 in (fine_channels, coarse_channels):
        allowed = reference.to_candidates(reference.neighbors(*size)[None].double(), *size)
        torch.testing.assert_close(assignment, allowed / allowed.sum(1, keepdim=True))
    for gradient in torch.autograd.grad(assignment[:, 4].sum(), list(clustering.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("downsampling", ["deform", "original"])
def test_backbone(downsampling):
    """Images of any size have a hierarchy of assignments that sum to one."""
    clustering = backbone(downsampling=downsampling).eval()

    @settings(max_examples=3)
    @given(st.sampled_from([(1, 1), (1, 90), (70, 1), (33, 47), (2, 3), (64, 31)]), st.booleans())
    def check(size, channels_last):
        image = torch.randn(1, 3, *size)
        if channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            features = clustering(image)
        assert len(features.assignments) == 3
        for feature_map, assignment in zip(features, features.assignments, strict=False):
            assert feature_map.shape[2:] == assignment.shape[2:]
        for assignment in features.assignments:
            assert (assignment.sum(1) - 1).abs().max() <= 1e-6

    check()


@given(st.data(), SIZES, st.integers(0, 3), SPACES)
def test_mask_decoding(data, size, levels, space):
    """In probability space, masks and complements, and all classes, still sum to one."""
    assignments, cells = assignments_of(data, size, levels)
    logits = data.draw(maps((1, 3, *cells), values=("normal", "zero", "equal")))
    masks = decode_mask_logits(logits, assignments, space)
    classes = decode_class_logits(logits, assignments, space)
    if space == "logit":
        expected = reference.decode_hierarchy(logits, assignments)
        torch.testing.assert_close(masks, expected)
        assert torch.equal(masks, classes)
        return
    torch.testing.assert_close(masks, -decode_mask_logits(-logits, assignments, space))
    if assignments:
        expected = reference.probability_logits(logits, assignments)
        torch.testing.assert_close(masks, expected)
        torch.testing.assert_close(classes.exp().sum(1), torch.ones(1, *size).double())


@given(st.data(), st.sampled_from(HALF_PRECISION), SPACES)
def test_half_precision_logits_stay_finite(data, dtype, space):
    """Mask logits up to 1e4, through three levels, with gradients of the assignments."""
    assignments, cells = assignments_of(data, (9, 13), 3, torch.float32)
    logits = data.draw(maps((1, 3, *cells), dtype, ("normal", "zero", "large")))
    with torch.autocast("cpu", dtype):
        for decode in (decode_mask_logits, decode_class_logits):
            assert decode(logits, assignments, space).isfinite().all()


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize(("scale", "space"), [(1e-4, "probability"), (10.0, "logit")])
def test_head_and_losses_in_half_precision(dtype, scale, space):
    """The coarsest map reaches 1e4."""
    torch.manual_seed(0)
    head = model().panoptic_head
    coarsest = 1e4 * (2 * torch.rand(1, 512, 1, 2) - 1)
    assignments = []
    for size in ((8, 12), (4, 6), (2, 3)):
        clustering = ClusteringModule(3, 4, init_scale=scale)
        maps = 1e4 * torch.rand(1, 3, *size), 1e4 * torch.rand(1, 4, *half(size))
        with torch.autocast("cpu", dtype):
            assignments.append(clustering(*(x.to(dtype) for x in maps)))
    features = ClusteredFeatures(
        [coarsest.to(dtype)], assignments=assignments, scales=[clustering.scale] * 3
    )
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype):
        patch.setattr(head, "mask_space", space)
        losses = head.loss(features, [data_sample((32, 48))])
    assert all(loss.isfinite() for loss in losses.values())
    # float16 needs MMEngine's loss scaling for its gradients.
    if dtype == torch.bfloat16:
        gradients = torch.autograd.grad(sum(losses.values()), list(head.parameters()))
        assert all(gradient.isfinite().all() for gradient in gradients)


@contextmanager
def same_points():
    """Random points that depend on their number alone."""

    def rand(*size, dtype=torch.float32, **options):
        first, number, axes = size[0] if len(size) == 1 else size
        generator = torch.Generator().manual_seed(number)
        points = torch.empty(1, number, axes, dtype=dtype).uniform_(generator=generator)
        return points.expand(first, -1, -1).clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", rand)
        yield


def segments(data, size, objects):
    """Masks of objects of any area: none, a pixel, a part or all of the image."""
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
    masks = torch.rand(objects, *size, generator=random) < 0.3
    for mask, kind in zip(masks, data.draw(st.lists(st.integers(0, 3), max_size=4)), strict=False):
        if kind < 3:
            mask[:] = kind == 1
        if kind == 2:
            mask[-1, -1] = True
    labels = torch.randint(10, (objects,), generator=random)
    return InstanceData(labels=labels, masks=masks.long())


@settings(max_examples=5)
@given(
    st.data(),
    SIZES,
    st.integers(0, 2),
    st.lists(st.sampled_from([0, 1, 3, 60, 300]), min_size=1, max_size=3),
    SPACES,
)
def test_criterion_equals_mmdets(data, size, levels, objects, space):
    """Images without objects, and with far more than the 20 queries, in one batch."""
    head, batch = model().panoptic_head, len(objects)
    assignments, cells = assignments_of(data, size, levels, torch.float32, batch)
    truth = [segments(data, (12, 17), number) for number in objects]
    kinds = ("normal", "zero", "equal", "large")
    classes = [data.draw(maps((batch, 20, 11, 1), torch.float32, kinds))[..., 0] for _ in range(2)]
    masks = [data.draw(maps((batch, 20, *cells), torch.float32, kinds)) for _ in range(2)]
    names = ("assigner", "sampler", "loss_cls", "loss_mask", "loss_dice", "class_weight")
    names += ("num_points", "oversample_ratio", "importance_sample_ratio")
    criterion = MaskCriterion(**{n: getattr(head, n) for n in names}, mask_space=space)
    metas = [{} for _ in objects]
    with same_points():
        losses = criterion(classes, masks, assignments, truth, metas)
        decoded = [decode_mask_logits(x, assignments, space) for x in masks]
        expected = head.loss_by_feat(classes, decoded, truth, metas)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert value.isfinite()
        torch.testing.assert_close(losses[name], value.sum(), rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("label", [-1, 10, 99])
def test_labels_that_are_no_classes(label):
    """10 is the label of "no object": mmdet would train it, and -1 too."""
    sample = data_sample((32, 48))
    sample.gt_instances.labels[1] = label
    sample.set_metainfo(dict(img_path="photo.jpg"))
    with pytest.raises(ValueError, match=rf"labels from 0 to 9 .*\[0, {label}\] in photo.jpg"):
        model().loss(torch.randn(1, 3, 32, 48), [sample])


@given(
    st.data(),
    SIZES,
    SIZES,
    st.integers(1, 12),
    st.sampled_from([torch.float32, *HALF_PRECISION]),
    st.booleans(),
)
def test_fusion_equals_mmdets(data, size, original, queries, dtype, filter_low_score):
    """Any size before and after resizing; mask logits up to 1e4 in half precision, too."""
    kinds = ("normal", "zero", "equal", "large")
    classes = 9 * data.draw(maps((1, queries, 4, 1), dtype, ("normal", "zero", "equal")))[..., 0]
    masks = data.draw(maps((1, queries, *size), dtype, kinds))
    options = dict(
        num_things_classes=data.draw(st.integers(0, 3)),
        test_cfg=dict(
            panoptic_on=True,
            instance_on=True,
            max_per_image=3,
            object_mask_thr=0.5,
            filter_low_score=filter_low_score,
        ),
    )
    options["num_stuff_classes"] = 3 - options["num_things_classes"]
    # Ours computes in float32; in half precision mmdet's sums over pixels overflow.
    (expected,), (found,) = (
        head(**options).predict(*logits, [data_sample(size, original=original)], True)
        for head, logits in (
            (MaskFormerFusionHead, (classes.float(), masks.float())),
            (HCFormerFusionHead, (classes, masks)),
        )
    )
    assert torch.equal(found["pan_results"].sem_seg, expected["pan_results"].sem_seg)
    wanted, instances = expected["ins_results"], found["ins_results"]
    assert torch.equal(instances.masks, wanted.masks)
    assert torch.equal(instances.labels, wanted.labels)
    torch.testing.assert_close(instances.scores, wanted.scores)


def test_fusion_of_another_number_of_classes():
    head = HCFormerFusionHead(num_things_classes=5, num_stuff_classes=4, test_cfg={})
    with pytest.raises(ValueError, match=r"the 9 classes .* got \(1, 20, 11\)"):
        head.predict(torch.zeros(1, 20, 11), torch.zeros(1, 20, 8, 8), [data_sample((8, 8))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hierarchical_level=6), "between 0 and 5"),
        (dict(hierarchical_level=-1), "between 0 and 5"),
        (dict(embed_channels=0), "embed_channels >= 1"),
        (dict(init_scale=float("nan")), "finite init_scale"),
        (dict(taps=["layer2.0", "layer5.0", "layer4.0"]), "got 'layer5.0'"),
        (dict(taps=["layer4.0", "layer3.0", "layer2.0"]), "finest first"),
        (dict(taps=["layer2.0", "layer2.0", "layer3.0"]), "without gaps"),
        (dict(taps=["layer2.0", "layer4.0"], hierarchical_level=2), "gaps"),
    ],
    ids=str,
)
def test_contradictions_of_a_backbone(options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_queries=0), "one query .* got .* 0 queries"),
        (dict(num_things_classes=0, num_stuff_classes=0), "one class"),
        (dict(num_things_classes=-1), r"one class .* got \(-1, 4\)"),
        (dict(num_stuff_classes=-1), r"one class .* got \(6, -1\)"),
    ],
    ids=str,
)
def test_contradictions_of_a_head(options, message):
    config = model_config().panoptic_head | dict(train_cfg=None, test_cfg=None) | options
    with pytest.raises(ValueError, match=message):
        MODELS.build(config)


def test_head_of_other_channels():
    with pytest.raises(ValueError, match=r"in_channels=512 for HCFormerHead, got \(1, 256, 2, 3\)"):
        model().panoptic_head.group(torch.zeros(1, 256, 2, 3))
