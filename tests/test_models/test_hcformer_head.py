import pytest
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from hcformer_mm.models import HCFormerHead
from hcformer_mm.models.mask_decoding import decode_mask_logits
from hcformer_mm.structures import ClusteredFeatures
from tests.models import COCO_CONFIG, data_sample, detector, model_config


def clustered(batch=1, size=(64, 96), level=3, **overrides):
    model = detector(**{"backbone.hierarchical_level": level, **overrides})
    return model, model.extract_feat(torch.randn(batch, 3, *size))


def test_shapes_in_training_and_evaluation():
    model, features = clustered(batch=2)
    head = model.panoptic_head
    for mode, stages in (("train", 4), ("eval", 1)):
        getattr(head, mode)()
        class_logits, mask_logits = head(features)
        assert len(class_logits) == len(mask_logits) == stages
        assert all(c.shape == (2, 20, 11) for c in class_logits)
        assert all(m.shape == (2, 20, 16, 24) for m in mask_logits)


@pytest.mark.parametrize("mask_space", ["logit", "probability"])
def test_masks_are_the_decoded_masks_of_the_coarsest_cells(mask_space):
    model, features = clustered(**{"panoptic_head.mask_space": mask_space})
    head = model.panoptic_head.train()
    class_logits, coarse = head.group(features[-1])
    classes, decoded = head(features)
    for i in range(4):
        assert torch.equal(classes[i], class_logits[i])
        torch.testing.assert_close(
            decoded[i], decode_mask_logits(coarse[i], features.assignments, mask_space)
        )
    head.eval()
    torch.testing.assert_close(head(features)[1][0], decoded[-1])


def test_level_zero_is_not_decoded():
    model, features = clustered(level=0)
    _, masks = model.panoptic_head.eval()(features)
    assert masks[0].shape == (1, 20, 2, 3)


@pytest.mark.parametrize(("layers", "queries"), [(1, 3), (5, 40)])
def test_any_number_of_layers_and_queries(layers, queries):
    model, features = clustered(
        **{
            "panoptic_head.transformer_decoder.num_layers": layers,
            "panoptic_head.num_queries": queries,
        }
    )
    class_logits, masks = model.panoptic_head.train()(features)
    assert len(class_logits) == layers + 1
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
    head.decoder_input_proj.register_forward_hook(_disturb(y, x))
    head.group(feature_map)
    before, after = attended
    unchanged = (before == after).all(dim=1)
    assert torch.equal(unchanged, excluded[:, y, x])


def _disturb(y, x):
    def hook(module, args, output):
        output = output.clone()
        output[:, :, y, x] += 10.0
        return output

    return hook


def test_losses_of_all_stages_and_the_regulariser():
    model, features = clustered(batch=2)
    losses = model.panoptic_head.train().loss(features, [data_sample((64, 96)) for _ in range(2)])
    names = {
        f"{stage}loss_{kind}"
        for stage in ("", "d0.", "d1.", "d2.")
        for kind in ("cls", "mask", "dice")
    }
    assert set(losses) == names | {"loss_scale"}
    # Three levels of scale 0.1, weighted by 0.1.
    assert losses["loss_scale"].item() == pytest.approx(0.1 * 3 * 0.1)
    assert all(loss.isfinite() for loss in losses.values())


def test_regulariser_is_the_absolute_sum():
    model, _ = clustered()
    for clustering, scale in zip(model.backbone.clusterings, (-0.3, 0.2, 0.1), strict=True):
        torch.nn.init.constant_(clustering.scale, scale)
    features = model.extract_feat(torch.randn(1, 3, 64, 64))
    losses = model.panoptic_head.loss(features, [data_sample((64, 64))])
    assert losses["loss_scale"].item() == pytest.approx(0.1 * 0.6)


def test_no_regulariser_without_levels():
    model, features = clustered(level=0)
    assert "loss_scale" not in model.panoptic_head.train().loss(features, [data_sample((64, 96))])


@pytest.mark.parametrize("mask_space", ["logit", "probability"])
def test_every_trainable_parameter_gets_a_finite_gradient(mask_space):
    model = detector(**{"panoptic_head.mask_space": mask_space}).train()
    losses = model.loss(torch.randn(2, 3, 64, 96), [data_sample((64, 96)) for _ in range(2)])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_images_without_segments():
    model = detector().train()
    samples = [data_sample((64, 96)), data_sample((64, 96), things=0, stuff_label=None)]
    losses = model.loss(torch.randn(2, 3, 64, 96), samples)
    assert all(loss.isfinite() for loss in losses.values())
    empty = model.loss(torch.randn(1, 3, 64, 96), samples[1:])
    total = sum(empty.values())
    total.backward()
    assert total.isfinite()


def test_padding_of_the_batch():
    model = detector().train()
    samples = [
        data_sample((64, 96), padded=(64, 96)),
        data_sample((50, 70), padded=(64, 96)),
    ]
    losses = model.loss(torch.randn(2, 3, 64, 96), samples)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(("level", "millions"), [(0, 37.42), (1, 37.97), (2, 38.25), (3, 38.39)])
def test_parameters_of_the_paper(level, millions):
    """37 to 38 M (Table 5), where the affine terms of the frozen normalisation do not count."""
    model = detector(COCO_CONFIG, **{"backbone.hierarchical_level": level})
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert counts[True] / 1e6 == pytest.approx(millions, abs=0.01)
    assert counts[False] / 1e6 == pytest.approx(0.053, abs=1e-3)


def test_features_without_clustering_are_refused():
    head = detector().panoptic_head
    with pytest.raises(TypeError, match=r"expected ClusteredFeatures .* got tuple; wrap"):
        head((torch.randn(1, 512, 2, 2),))
    features = ClusteredFeatures([torch.randn(1, 512, 2, 2)], assignments=[], scales=[])
    assert head.eval()(features)[1][0].shape[-2:] == (2, 2)


def test_matching_does_not_overflow_in_half_precision():
    """A large segment that every query is sure to exclude: the sum of its cost exceeds float16."""
    head = detector(**{"train_cfg.num_points": 12544}).panoptic_head
    ground_truth = InstanceData(labels=torch.tensor([0]), masks=torch.ones(1, 32, 32))
    with torch.autocast("cpu", dtype=torch.float16):
        targets = head._get_targets_single(
            torch.zeros(20, 11), torch.full((20, 8, 8), -6.0), ground_truth, {}
        )
    labels = targets[0]
    assert (labels == 0).sum() == 1


def test_losses_under_autocast():
    model = detector().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(torch.randn(1, 3, 64, 96), [data_sample((64, 96))])
    total = sum(losses.values())
    total.backward()
    assert total.isfinite()


def test_bad_options():
    config = model_config().panoptic_head
    config.update(train_cfg=None, test_cfg=None)
    with pytest.raises(ValueError, match="mask_space"):
        MODELS.build({**config, "mask_space": "sigmoid"})
    with pytest.raises(ValueError, match="12 in all, got 11"):
        MODELS.build({**config, "num_stuff_classes": 5})
    with pytest.raises(ValueError, match="11 in all, got 0"):
        MODELS.build({**config, "loss_cls": dict(type="mmdet.CrossEntropyLoss")})
    with pytest.raises(ValueError, match="equal to feat_channels=64, got 128 and 128"):
        MODELS.build({**config, "feat_channels": 64})
    with pytest.raises(TypeError, match="num_query"):
        HCFormerHead(num_query=5)
