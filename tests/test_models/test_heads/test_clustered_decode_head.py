"""Per-pixel classifiers on clusters: decoding, losses and prediction of mmseg's heads."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import EncHead, SegformerHead, UPerHead
from mmseg.structures import SegDataSample
from torch.nn import functional as F

from hcformer_mm.models import ClusteredDecodeHead, HCASPPHead, HCFCNHead, HCPSPHead
from hcformer_mm.models.utils.mask_decoding import decode_class_logits, decode_mask_logits
from hcformer_mm.ops import soft_assign
from hcformer_mm.structures.clustered_features import ClusteredFeatures
from tests.helpers import reference
from tests.helpers.devices import assert_same, on_each_device
from tests.helpers.models import resnet

NUM_CLASSES = 5
PARENTS = {HCFCNHead: "FCNHead", HCPSPHead: "PSPHead", HCASPPHead: "ASPPHead"}
SPACES = ["logit", "probability"]


@pytest.fixture(autouse=True)
def scope_of_segmentors():
    """mmseg's heads name their losses without a scope, and a runner leaves its own behind."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        yield


class HCSegformerHead(ClusteredDecodeHead, SegformerHead):
    """SegFormer's head, clustered by one line."""


class HCUPerHead(ClusteredDecodeHead, UPerHead):
    """UPerNet's head, likewise."""


class HCEncHead(ClusteredDecodeHead, EncHead):
    """A head whose forward pass returns more than logits."""


def head_options(in_channels=8, **options):
    return dict(in_channels=in_channels, channels=6, num_classes=NUM_CLASSES, in_index=-1) | options


def twins(head, **options):
    """A clustered head and its parent with the same weights, in float64 and evaluation mode."""
    own = {key: options.pop(key) for key in ("mask_space", "loss_scale_weight") if key in options}
    torch.manual_seed(0)
    clustered = head(**head_options(**options), **own).double().eval()
    parent = head.__mro__[2](**head_options(**options)).double().eval()
    # mmseg starts from weights so small that the classes would hardly differ.
    torch.nn.init.normal_(clustered.conv_seg.weight, std=0.5)
    parent.load_state_dict(clustered.state_dict())
    return clustered, parent


def random_features(*sizes, channels=8):
    """Two random maps, the coarsest under assignments of the given sizes, in float64."""
    torch.manual_seed(1)
    assignments, scales = [], []
    for height, width in sizes:
        fine = F.normalize(torch.randn(2, 4, height, width).double(), dim=1)
        rows, cols = (height + 1) // 2, (width + 1) // 2
        coarse = F.normalize(torch.randn(2, 4, rows, cols).double(), dim=1)
        scales.append(torch.tensor([0.3 - 0.5 * len(scales)]).double().requires_grad_())
        assignments.append(soft_assign(fine, coarse, scales[-1]))
    maps = [torch.randn(2, 3, *sizes[0]).double()]
    maps.append(torch.randn(2, channels, rows, cols).double().requires_grad_())
    return ClusteredFeatures(maps, assignments=assignments, scales=scales)


def decoded_by_reference(logits, assignments, mask_space):
    if mask_space == "probability":
        return reference.class_probability_logits(logits, assignments)
    for assignment in reversed(assignments):
        logits = reference.decode(logits, reference.to_matrix(assignment), *assignment.shape[-2:])
    return logits


def labeled(*labels):
    """Samples with the given label maps."""
    return [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]


def segmentor(head, *, level=3, backbone=None, downsampling="original", **options):
    """An EncoderDecoder of a ResNet-18, the given head on its last map, and an auxiliary head."""
    wrapped = backbone or resnet("mmseg")
    channels = {18: (256, 512), 50: (1024, 2048)}[wrapped["depth"]]
    config = dict(
        type="mmseg.EncoderDecoder",
        data_preprocessor=dict(type="mmseg.SegDataPreProcessor", size_divisor=32),
        backbone=dict(
            type="hcformer_mm.HCBackbone",
            hierarchical_level=level,
            downsampling=downsampling,
            backbone=wrapped,
        ),
        decode_head=head_options(channels[1], type=head, dropout_ratio=0.0),
        auxiliary_head=head_options(
            channels[0], type="mmseg.FCNHead", in_index=2, dropout_ratio=0.0
        ),
        train_cfg=dict(),
        test_cfg=dict(mode="whole"),
    )
    if level is None:
        config["backbone"] = wrapped
    torch.manual_seed(0)
    model = MODELS.build(config | options)
    return model.to(torch.get_default_device())  # tells the data preprocessor


def batch(size=(64, 96)):
    torch.manual_seed(2)
    labels = torch.randint(0, NUM_CLASSES, (2, *size))
    labels[0, :5] = 255
    return torch.randn(2, 3, *size), labeled(*labels)


def total(losses):
    return sum(value for name, value in losses.items() if "loss" in name)


@on_each_device
@pytest.mark.parametrize("mask_space", SPACES)
@pytest.mark.parametrize("sizes", [[(9, 14), (5, 7)], [(1, 11), (1, 6), (1, 3)], [(8, 1)]])
@pytest.mark.parametrize("head", PARENTS)
def test_logits_are_mmsegs_decoded(head, sizes, mask_space):
    """Values and gradients, at odd and one-pixel sizes, against explicit matrices."""
    features = random_features(*sizes)
    clustered, parent = twins(head, mask_space=mask_space)
    logits = clustered(features)
    expected = decoded_by_reference(parent(features), features.assignments, mask_space)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)

    weight = torch.randn_like(expected)
    leaves = [features[-1], *features.scales]
    gradients = torch.autograd.grad(
        (logits * weight).sum(),
        [*leaves, *clustered.parameters()],
        retain_graph=True,  # the assignments' part is shared
        allow_unused=True,
    )
    wanted = torch.autograd.grad(
        (expected * weight).sum(), [*leaves, *parent.parameters()], allow_unused=True
    )
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-8, atol=1e-9)


@on_each_device
def test_class_probabilities_that_vanish_stay_finite():
    assignments = [a.float() for a in random_features((6, 6)).assignments]
    logits = torch.tensor([400.0, 0.0]).view(1, 2, 1, 1).repeat(2, 1, 3, 3).requires_grad_()
    decoded = decode_class_logits(logits, assignments, "probability")
    decoded.sum().backward()
    assert decoded.isfinite().all() and logits.grad.isfinite().all()
    assert (decoded[:, 0] > decoded[:, 1]).all()


@pytest.mark.parametrize("mask_space", SPACES)
def test_half_precision_is_decoded_in_full(mask_space):
    assignments = [a.float() for a in random_features((6, 6)).assignments]
    logits = torch.randn(2, 4, 3, 3).bfloat16()
    decoded, expected = (
        decode_class_logits(x, assignments, mask_space) for x in (logits, logits.float())
    )
    torch.testing.assert_close(decoded, expected)


@on_each_device
@pytest.mark.parametrize("mask_space", SPACES)
def test_single_channel_is_a_binary_mask(mask_space):
    features = random_features((6, 6))
    logits = torch.randn(2, 1, 3, 3).double()
    torch.testing.assert_close(
        decode_class_logits(logits, features.assignments, mask_space),
        decode_mask_logits(logits, features.assignments, mask_space),
    )


@on_each_device
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"align_corners": True},
        {"sampler": dict(type="mmseg.OHEMPixelSampler", thresh=0.7, min_kept=20)},
        {
            "loss_decode": [
                dict(type="mmseg.CrossEntropyLoss", loss_name="loss_ce"),
                dict(type="mmseg.DiceLoss", loss_name="loss_dice", loss_weight=3.0),
            ]
        },
    ],
    ids=["plain", "align_corners", "OHEM", "two losses"],
)
def test_losses_and_predictions_are_mmsegs_on_decoded_logits(options):
    features = random_features((9, 14), (5, 7))
    clustered, parent = twins(HCFCNHead, **options)
    decoded = decoded_by_reference(parent(features), features.assignments, "logit")
    samples = labeled(*torch.randint(0, NUM_CLASSES, (2, 33, 50)))
    losses = clustered.loss(features, samples, {})
    scale = losses.pop("loss_scale")
    expected = parent.loss_by_feat(decoded, samples)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    # The second scale is negative.
    torch.testing.assert_close(scale, torch.tensor(0.1 * (0.3 + 0.2)).double())

    metas = [dict(img_shape=(33, 50))] * 2
    torch.testing.assert_close(
        clustered.predict(features, metas, {}), parent.predict_by_feat(decoded, metas)
    )


@on_each_device
def test_scale_regularizer_has_a_weight_and_a_gradient():
    features = random_features((9, 14), (5, 7))
    clustered, _ = twins(HCFCNHead, loss_scale_weight=2.0)
    losses = clustered.loss(features, labeled(*torch.zeros(2, 9, 14).long()), {})
    gradients = torch.autograd.grad(losses["loss_scale"], features.scales)
    assert [g.item() for g in gradients] == [2.0, -2.0]


@on_each_device
@pytest.mark.parametrize("mask_space", SPACES)
@pytest.mark.parametrize(("head", "parent"), PARENTS.items())
def test_level_zero_is_mmseg_bit_for_bit(head, parent, mask_space):
    clustered = segmentor(f"hcformer_mm.{head.__name__}", level=0)
    clustered.decode_head.mask_space = mask_space
    plain = segmentor(f"mmseg.{parent}", level=None)
    weights = clustered.state_dict()
    plain.load_state_dict({k.replace("backbone.backbone", "backbone"): weights[k] for k in weights})

    images, samples = batch((61, 90))
    losses, expected = clustered.loss(images, samples), plain.loss(images, samples)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert_same(losses[name], value)

    clustered.eval(), plain.eval()
    for test_cfg in (dict(mode="whole"), dict(mode="slide", crop_size=(48, 48), stride=(32, 32))):
        for model in (clustered, plain):
            model.test_cfg = ConfigDict(test_cfg)
        with torch.no_grad():
            pair = zip(clustered.predict(images), plain.predict(images), strict=True)
            for own, other in pair:
                assert_same(own.seg_logits.data, other.seg_logits.data)
                assert torch.equal(own.pred_sem_seg.data, other.pred_sem_seg.data)


@pytest.mark.parametrize("mask_space", SPACES)
def test_prediction_on_whole_images_and_in_windows(mask_space):
    model = segmentor("hcformer_mm.HCPSPHead").eval()
    model.decode_head.mask_space = mask_space
    images, _ = batch((61, 90))
    predictions = {}
    for name, crop in (("whole", None), ("one window", (61, 90)), ("windows", (48, 64))):
        slide = dict(mode="slide", crop_size=crop, stride=(32, 32))
        model.test_cfg = ConfigDict(slide if crop else dict(mode="whole"))
        with torch.no_grad():
            predictions[name] = model.predict(images)[1].seg_logits.data
    assert predictions["windows"].shape == (NUM_CLASSES, 61, 90)
    assert predictions["windows"].isfinite().all()
    torch.testing.assert_close(predictions["one window"], predictions["whole"])
    assert not torch.allclose(predictions["windows"], predictions["whole"])


def test_auxiliary_heads_are_mmsegs():
    """They read inner maps of the clustered features as of any tuple; no regularizer is added."""
    model = segmentor("hcformer_mm.HCFCNHead").eval()
    images, samples = batch()
    features = model.extract_feat(images)
    auxiliary = model.auxiliary_head
    expected = auxiliary.loss(tuple(features), samples, {})
    losses = model.loss(images, samples)
    assert {name for name in losses if name.startswith("aux")} == {"aux.loss_ce", "aux.acc_seg"}
    assert torch.equal(losses["aux.loss_ce"], expected["loss_ce"])
    assert "decode.loss_scale" in losses


@pytest.mark.parametrize(
    ("variant", "depth", "downsampling"),
    [("ResNetV1c", 18, "deform"), ("ResNetV1c", 50, "original"), ("ResNet", 50, "deform")],
)
def test_backbones_of_mmseg(variant, depth, downsampling):
    """With the normalization of the real configs; every parameter learns."""
    wrapped = resnet("mmseg", depth) | dict(
        type=f"mmseg.{variant}", norm_cfg=dict(type="SyncBN", requires_grad=True)
    )
    model = segmentor("hcformer_mm.HCFCNHead", backbone=wrapped, downsampling=downsampling)
    model = revert_sync_batchnorm(model)
    features = model.extract_feat(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[-2:]) for x in features] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [tuple(a.shape[-2:]) for a in features.assignments] == [(16, 24), (8, 12), (4, 6)]
    total(model.loss(*batch())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("head", [HCSegformerHead, HCUPerHead])
def test_any_head_of_mmseg_is_clustered_by_one_line(head):
    model = segmentor(
        "mmseg.FCNHead", decode_head=dict(type=head, **head_options([512], in_index=[3]))
    )
    images, samples = batch()
    losses = model.loss(images, samples)
    total(losses).backward()
    assert losses["decode.loss_scale"] > 0
    assert model.backbone.clusterings[0].fine_proj.weight.grad.abs().sum() > 0
    features = model.extract_feat(images)
    logits = model.decode_head.eval()(features)
    coarse = head.__mro__[2].forward(model.decode_head, features)
    expected = decoded_by_reference(coarse, features.assignments, "logit")
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            dict(type=HCUPerHead, in_channels=[64, 128, 256, 512], in_index=[0, 1, 2, 3]),
            ValueError,
            r"coarsest cells, \(2, 3\), got logits of \(16, 24\).*in_in",
        ),
        (
            dict(type=HCEncHead, in_channels=[512], in_index=[3], num_codes=4, use_se_loss=True),
            TypeError,
            "expected HCEncHead to return one map of logits, got tuple",
        ),
    ],
)
def test_heads_that_cannot_be_clustered_are_refused(options, error, message):
    model = segmentor("mmseg.FCNHead", decode_head=head_options(**options))
    with pytest.raises(error, match=message):
        model.loss(*batch())


def test_features_must_be_clustered():
    model = segmentor("hcformer_mm.HCFCNHead", level=None)
    with pytest.raises(TypeError, match="expected ClusteredFeatures from HCBackbone, got tuple"):
        model.loss(*batch())


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="expected mask_space among"):
        HCFCNHead(**head_options(), mask_space="pixel")
    with pytest.raises(TypeError, match="mask_spce"):
        HCFCNHead(**head_options(), mask_spce="logit")
