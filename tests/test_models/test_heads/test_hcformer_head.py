from copy import deepcopy

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.registry import MODELS
from mmengine.structures import InstanceData, PixelData

from hcformer_mm.models import HCFormerHead
from hcformer_mm.models.heads.mask_transformer import _attention_mask
from hcformer_mm.models.utils.mask_decoding import decode_mask_logits
from hcformer_mm.structures.clustered_features import ClusteredFeatures
from tests.helpers import reference
from tests.helpers.devices import on_each_device
from tests.helpers.models import data_sample, detector, model_config


def clustered(batch=1, size=(64, 96), level=3, **overrides):
    model = detector(**{"backbone.hierarchical_level": level, **overrides})
    return model, model.extract_feat(torch.randn(batch, 3, *size))


@on_each_device
@pytest.mark.parametrize("mask_space", ["logit", "probability"])
def test_masks_are_the_decoded_masks_of_the_coarsest_cells(mask_space):
    model, features = clustered(**{"panoptic_head.mask_space": mask_space})
    head = model.panoptic_head.train()
    class_logits, coarse = head.group(features[-1])
    classes, decoded = head(features)
    assert len(classes) == len(decoded) == 4
    for i in range(4):
        assert torch.equal(classes[i], class_logits[i])
        torch.testing.assert_close(
            decoded[i], decode_mask_logits(coarse[i], features.assignments, mask_space)
        )
    assert (classes[0].shape, decoded[0].shape) == ((1, 20, 11), (1, 20, 16, 24))
    (last_classes,), (last_masks,) = head.eval()(features)
    assert torch.equal(last_classes, classes[-1])
    torch.testing.assert_close(last_masks, decoded[-1])


@on_each_device
@pytest.mark.parametrize(
    ("layers", "queries", "decoder"), [(1, 3, "masked"), (5, 40, "masked"), (5, 3, "standard")]
)
def test_any_number_of_layers_and_queries(layers, queries, decoder):
    model, features = clustered(
        **{
            "panoptic_head.decoder": decoder,
            "panoptic_head.transformer_decoder.num_layers": layers,
            "panoptic_head.num_queries": queries,
        }
    )
    class_logits, masks = model.panoptic_head.train()(features)
    assert len(class_logits) == len(masks) == layers + (decoder == "masked")
    assert masks[0].shape[1] == queries
    with torch.no_grad():
        (prediction,) = model.eval().predict(torch.randn(1, 3, 64, 96), [data_sample((64, 96))])
    assert len(prediction.pred_instances) <= 100


def test_attention_looks_where_the_mask_is():
    """A cell that a query's first mask excludes does not reach that query's cross-attention."""
    model, _ = clustered()
    head = model.panoptic_head.eval()
    torch.manual_seed(1)
    feature_map = torch.randn(1, 512, 4, 6)
    excluded = head.group(feature_map)[1][0][0].sigmoid() < 0.5  # (Q, h, w)
    excluded &= ~excluded.flatten(1).all(1)[:, None, None]
    y, x = (excluded.any(0) & ~excluded.all(0)).nonzero()[0].tolist()

    attended = []
    first = head.transformer_decoder.layers[0].cross_attn
    first.register_forward_hook(lambda module, args, output: attended.append(output[0]))
    head.group(feature_map)
    disturbance = torch.zeros(4, 6)
    disturbance[y, x] = 10.0
    head.decoder_input_proj.register_forward_hook(lambda module, args, out: out + disturbance)
    head.group(feature_map)
    before, after = attended
    unchanged = (before == after).all(dim=1)
    assert torch.equal(unchanged, excluded[:, y, x])


@torch.no_grad()
def randomize(module):
    """Draw all parameters at random: weights of 1 and biases of 0 would hide mistakes."""
    for parameter in module.parameters():
        parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)


@on_each_device
def test_standard_decoder_is_detrs():
    """Predictions of every layer and all gradients, against a plain composition in float64."""
    head = detector(**{"panoptic_head.decoder": "standard"}).panoptic_head.double()
    torch.manual_seed(1)
    randomize(head)
    feature_map = torch.randn(2, 512, 3, 5, dtype=torch.float64, requires_grad=True)

    memory = head.decoder_input_proj(feature_map).flatten(2).transpose(1, 2)
    position = head.decoder_positional_encoding(feature_map).double()
    query = torch.zeros(2, 20, 128, dtype=torch.float64)
    expected = []
    for layer in head.transformer_decoder.layers:
        query = reference.decoder_layer(layer, query, memory, head.query_embed.weight, position)
        normalized = reference.layer_norm(query, head.transformer_decoder.post_norm)
        mask_features = head.mask_proj(feature_map).flatten(2)
        masks = (head.mask_embed(normalized) @ mask_features).unflatten(2, (3, 5))
        expected.append((head.cls_embed(normalized), masks))

    computed = list(zip(*head.group(feature_map), strict=True))
    assert len(computed) == len(expected) == 3
    got, wanted = (
        torch.cat([x.flatten() for pair in pairs for x in pair]) for pairs in (computed, expected)
    )
    inputs = [feature_map, *head.parameters()]
    reference.assert_same_with_gradients(got, wanted, inputs, 1e-9, 1e-7, 1e-9)


@on_each_device
@pytest.mark.parametrize(("batch", "size"), [(2, (3, 5)), (1, (7, 1)), (1, (1, 1))])
def test_masked_decoder_is_mask2formers(batch, size):
    """Predictions of every layer and all gradients, against mmdet's modules in float64."""
    head = detector().panoptic_head.double()
    torch.manual_seed(1)
    randomize(head)
    feature_map = torch.randn(batch, 512, *size, dtype=torch.float64, requires_grad=True)
    computed = head.group(feature_map)

    theirs = deepcopy(head)  # with mmcv's attention and the same parameters
    for mine, other in zip(head.modules(), theirs.modules(), strict=True):
        other._parameters = mine._parameters
        if isinstance(other, MultiheadAttention):
            other.__class__ = MultiheadAttention
    mask_features = head.mask_proj(feature_map)
    memory = head.decoder_input_proj(feature_map).flatten(2).transpose(1, 2)
    memory = memory + head.level_embed.weight
    positions = dict(
        query_pos=head.query_embed.weight.expand(batch, -1, -1),
        key_pos=head.decoder_positional_encoding(feature_map).double(),
    )
    query = head.query_feat.weight.expand(batch, -1, -1)
    expected = [theirs._forward_head(query, mask_features, size)]
    for layer in theirs.transformer_decoder.layers:
        ignored = expected[-1][2]
        ignored = ignored & ~ignored.all(dim=-1, keepdim=True)
        query = layer(query, memory, memory, cross_attn_mask=ignored, **positions)
        expected.append(theirs._forward_head(query, mask_features, size))
    assert len(computed[0]) == len(computed[1]) == len(expected) == 4
    got = torch.cat([x.flatten() for pair in zip(*computed, strict=True) for x in pair])
    wanted = torch.cat([x.flatten() for triple in expected for x in triple[:2]])
    inputs = [feature_map, *head.parameters()]
    reference.assert_same_with_gradients(got, wanted, inputs, 1e-9, 1e-7, 1e-9)


@on_each_device
@pytest.mark.parametrize("decoder", ["masked", "standard"])
def test_predictions_of_the_last_layer_alone(decoder):
    head = detector(**{"panoptic_head.decoder": decoder}).panoptic_head
    feature_map = torch.randn(2, 512, 3, 5)
    layers, last = head.group(feature_map), head.group(feature_map, last_only=True)
    assert [len(values) for values in last] == [1, 1]
    torch.testing.assert_close([values[0] for values in last], [values[-1] for values in layers])


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_masks(dtype):
    """Zero counts as inside, as do undefined logits; a query outside of everything sees all."""
    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[-1.0, 0.0, 2.0], [-1.0, -2.0, -1e-4], [nan, -3.0, inf]], dtype=dtype)
    for beyond in (-1.0, 0.0, 1.0):  # the map
        padded = torch.nn.functional.pad(logits, (0, 5), value=beyond)[None]
        mask = _attention_mask(padded, 3)
        assert (mask.dtype, mask.shape) == (dtype, (1, 1, 3, 3))
        assert mask[0, 0].tolist() == [[-inf, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, -inf, 0.0]]


def test_attention_masks_have_aligned_rows():
    """As attention on a GPU needs them; it would copy others."""
    head = detector().panoptic_head
    strides = []
    for layer in head.transformer_decoder.layers:
        layer.cross_attn.register_forward_pre_hook(
            lambda module, args, kwargs: strides.append(kwargs["attn_mask"].stride()),
            with_kwargs=True,
        )
    head.group(torch.randn(2, 512, 3, 7))
    assert len(strides) == 3
    for stride in strides:
        assert stride[-1] == 1 and all(step % 8 == 0 for step in stride[:-1])


def test_standard_decoder_has_no_query_features():
    """Its queries start at zero and predict nothing before the first layer."""
    masked, standard = (
        set(dict(detector(**{"panoptic_head.decoder": decoder}).panoptic_head.named_parameters()))
        for decoder in ("masked", "standard")
    )
    assert masked - standard == {"query_feat.weight", "level_embed.weight"}
    assert standard < masked


@on_each_device
def test_losses_of_all_layers_and_the_regularizer():
    model, features = clustered(batch=2)
    losses = model.panoptic_head.train().loss(features, [data_sample((64, 96)) for _ in range(2)])
    names = [f"loss_{kind}" for kind in ("cls", "mask", "dice")]
    prefixed = {prefix + name for prefix in ("", "d0.", "d1.", "d2.") for name in names}
    assert set(losses) == prefixed | {"loss_scale"}
    # Three levels of scale 0.1, weighted by 0.1.
    assert losses["loss_scale"].item() == pytest.approx(0.1 * 3 * 0.1)
    assert all(loss.isfinite() for loss in losses.values())

    for clustering, scale in zip(model.backbone.clusterings, (-0.3, 0.2, 0.1), strict=True):
        torch.nn.init.constant_(clustering.scale, scale)
    features = model.extract_feat(torch.randn(1, 3, 64, 64))
    losses = model.panoptic_head.loss(features, [data_sample((64, 64))])
    assert losses["loss_scale"].item() == pytest.approx(0.1 * 0.6)


@on_each_device
def test_level_zero_has_no_decoding_and_no_regularizer():
    model, features = clustered(level=0)
    head = model.panoptic_head.train()
    assert "loss_scale" not in head.loss(features, [data_sample((64, 96))])
    _, masks = head.eval()(features)
    assert masks[0].shape == (1, 20, 2, 3)


@on_each_device
@pytest.mark.parametrize(
    ("decoder", "mask_space", "downsampling"),
    [
        ("masked", "logit", "deform"),
        ("masked", "probability", "original"),
        ("standard", "logit", "original"),
        ("standard", "probability", "deform"),
    ],
)
def test_every_trainable_parameter_gets_a_finite_gradient(decoder, mask_space, downsampling):
    model = detector(
        **{
            "panoptic_head.decoder": decoder,
            "panoptic_head.mask_space": mask_space,
            "backbone.downsampling": downsampling,
        }
    ).train()
    losses = model.loss(torch.randn(2, 3, 64, 96), [data_sample((64, 96)) for _ in range(2)])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@on_each_device
def test_ground_truth_is_mmdets():
    """Labels, order and masks, with stuff, without, and without anything."""
    head = detector().panoptic_head
    samples = [
        data_sample((48, 40), things=5, stuff_label=8),
        data_sample((48, 40), things=0, stuff_label=9),
        data_sample((48, 40), things=0, stuff_label=None),
        data_sample((48, 40), things=3),
    ]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-3, 12, (1, 48, 40), generator=generator)
    samples[0].gt_sem_seg.sem_seg = torch.where(noise == 11, 255, noise)
    del samples[3].gt_sem_seg
    expected = head.preprocess_gt(
        [sample.gt_instances for sample in samples],
        [sample.get("gt_sem_seg") for sample in samples],
    )
    computed = head._ground_truth(samples)
    assert [len(truth) for truth in computed] == [9, 1, 0, 3]
    for mine, theirs in zip(computed, expected, strict=True):
        assert torch.equal(mine.labels, theirs.labels)
        assert torch.equal(mine.masks.long(), theirs.masks)


@on_each_device
def test_images_without_segments():
    model = detector().train()
    samples = [data_sample((64, 96)), data_sample((64, 96), things=0, stuff_label=None)]
    images = torch.randn(2, 3, 64, 96)
    samples_without_padding = [samples[0], data_sample((64, 96))]
    losses = []
    for truth in (samples, samples, samples_without_padding):
        torch.manual_seed(1)
        losses.append(model.loss(images, truth))
    assert all(loss.isfinite() for loss in losses[0].values())
    # Losses are reproducible, so the difference comes from the ground truth alone.
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0]["loss_mask"] != losses[2]["loss_mask"]
    # Without any segment every parameter still gets a gradient, which DDP asks for.
    empty = model.loss(torch.randn(1, 3, 64, 96), samples[1:])
    assert empty["loss_mask"] == empty["loss_dice"] == 0 < empty["loss_cls"]
    gradients = torch.autograd.grad(sum(empty.values()), list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@on_each_device
def test_padding_of_the_batch():
    """Images are padded by the mean color, masks by background, labels by void."""
    model = detector().train()
    sizes = (64, 96), (50, 70)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    batch = dict(inputs=images, data_samples=[data_sample(size) for size in sizes])
    torch.manual_seed(1)
    losses = model(**model.data_preprocessor(batch, training=True), mode="loss")

    padded = torch.zeros(2, 3, 64, 96)
    samples = [data_sample(size) for size in sizes]
    for target, image, sample in zip(padded, images, samples, strict=True):
        _, height, width = image.shape
        rgb = image[[2, 1, 0]].float()
        mean, std = model.data_preprocessor.mean, model.data_preprocessor.std
        target[:, :height, :width] = (rgb - mean) / std
        sample.gt_instances.masks = sample.gt_instances.masks.pad((64, 96))
        labels = torch.full((1, 64, 96), 255)
        labels[:, :height, :width] = sample.gt_sem_seg.sem_seg
        sample.gt_sem_seg = PixelData(sem_seg=labels)
        sample.set_metainfo(dict(batch_input_shape=(64, 96)))
    torch.manual_seed(1)
    expected = model.loss(padded, samples)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


@pytest.mark.parametrize("option", ["pad_mask", "pad_seg"])
def test_ground_truth_without_padding_is_refused(option):
    """It would be stretched over the padded image."""
    model = detector(**{f"data_preprocessor.{option}": False}).train()
    images = [torch.zeros(3, 50, 70, dtype=torch.uint8)]
    batch = dict(inputs=images, data_samples=[data_sample((50, 70))])
    batch = model.data_preprocessor(batch, training=True)
    message = rf"expected masks and label maps of \(64, 96\).*got \(50, 70\).*{option}"
    with pytest.raises(ValueError, match=message):
        model(**batch, mode="loss")


def test_features_without_clustering_are_refused():
    head = detector().panoptic_head
    with pytest.raises(TypeError, match=r"expected ClusteredFeatures .* got tuple; wrap"):
        head((torch.randn(1, 512, 2, 2),))
    features = ClusteredFeatures([torch.randn(1, 512, 2, 2)], assignments=[], scales=[])
    assert head.eval()(features)[1][0].shape[-2:] == (2, 2)


def test_matching_does_not_overflow_in_half_precision():
    """The cost of a large segment that every query excludes exceeds float16."""
    head = detector(**{"train_cfg.num_points": 12544}).panoptic_head
    ground_truth = InstanceData(labels=torch.tensor([0]), masks=torch.ones(1, 32, 32))
    losses = []
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
            class_logits = torch.zeros(1, 20, 11, dtype=dtype)
            mask_logits = torch.full((1, 20, 8, 8), -6.0, dtype=dtype)
            losses.append(head.loss_by_feat([class_logits], [mask_logits], [ground_truth], [{}]))
    assert losses[0]["loss_mask"] > 20
    torch.testing.assert_close(losses[0], losses[1])


def test_losses_under_autocast():
    """The number of masks times points exceeds float16."""
    model = detector(**{"train_cfg.num_points": 12544}).train()
    losses = {}
    for dtype in (None, torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            image = torch.randn(1, 3, 64, 96)
            losses[dtype] = model.loss(image, [data_sample((64, 96), things=8)])
    exact = losses.pop(None)
    for half in losses.values():
        for name, value in exact.items():
            assert half[name].item() == pytest.approx(value.item(), rel=0.05), name
        sum(half.values()).backward()


def test_training_needs_a_train_cfg():
    config = model_config().panoptic_head
    head = MODELS.build({**config, "train_cfg": None, "test_cfg": None})
    with pytest.raises(ValueError, match="expected train_cfg with assigner"):
        head.loss_by_feat([torch.zeros(1, 20, 11)], [torch.zeros(1, 20, 8, 8)], [], [])


def test_weights_of_a_checkpoint_stay(tmp_path):
    config = model_config().panoptic_head
    config.update(train_cfg=None, test_cfg=None)
    stored = MODELS.build(config)
    for parameter in stored.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    path = tmp_path / "head.pth"
    torch.save(stored.state_dict(), path)
    head = MODELS.build({**config, "init_cfg": dict(type="Pretrained", checkpoint=str(path))})
    head.init_weights()
    assert all((parameter == 0.5).all() for parameter in head.parameters())


def check_xavier_uniform(module):
    """The largest weight reaches the bound, which a normal distribution exceeds."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            fan_out, fan_in = parameter.shape[:2]  # of a matrix or a 1×1 kernel
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.99 * bound < parameter.abs().max() <= bound, name


@pytest.mark.parametrize("decoder", ["masked", "standard"])
def test_initialization_of_the_decoder(decoder):
    torch.manual_seed(0)
    head = detector(**{"panoptic_head.decoder": decoder}).panoptic_head
    head.init_weights()
    check_xavier_uniform(head.transformer_decoder)


def test_weights_are_initialized_once():
    head = detector().panoptic_head
    head.init_weights()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    head.init_weights()
    for name, value in head.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_bad_options():
    config = model_config().panoptic_head
    config.update(train_cfg=None, test_cfg=None)
    with pytest.raises(ValueError, match="mask_space"):
        MODELS.build({**config, "mask_space": "sigmoid"})
    with pytest.raises(ValueError, match=r"'masked', 'standard'.*got 'detr'"):
        MODELS.build({**config, "decoder": "detr"})
    with pytest.raises(ValueError, match=r"equal to feat_channels=64, got \(128, 128\)"):
        MODELS.build({**config, "feat_channels": 64})
    with pytest.raises(TypeError, match="num_query"):
        HCFormerHead(num_query=5)


def test_class_weights():
    """They follow from the number of classes, unless the loss has its own."""
    config = model_config().panoptic_head
    head = MODELS.build({**config, "no_object_weight": 0.3})
    assert head.class_weight == head.loss_cls.class_weight == [1.0] * 10 + [0.3]
    assert "class_weight" not in config.loss_cls

    own = [0.5] * 5 + [2.0] * 5 + [0.2]
    head = MODELS.build({**config, "loss_cls": {**config.loss_cls, "class_weight": own}})
    assert head.class_weight == head.loss_cls.class_weight == own
    for wrong in (own[1:], []):
        loss_cls = {**config.loss_cls, "class_weight": wrong}
        with pytest.raises(
            ValueError, match=f"10 classes and no-object, 11 in all, got {len(wrong)}"
        ):
            MODELS.build({**config, "loss_cls": loss_cls})
