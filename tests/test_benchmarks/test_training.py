"""Training on random batches: of detectors and segmentors, ours and the hosts'."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from benchmarks.model_specs import parse_variants
from benchmarks.training import random_batch, training_call
from hcformer_mm.apis.inference import build_model
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG

FCN = "mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py"
MASK2FORMER = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"
RETINANET = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"
SHAPE = (64, 96)


def prepared(text, **options):
    (variant,) = parse_variants([text])
    model, config = variant.build(0), variant.config()
    return model, config, random_batch(model, SHAPE, objects=3, **options)


def test_ground_truth_of_panoptic_segmentation():
    _, _, data = prepared(SHAPES_CONFIG)
    assert [image.shape for image in data["inputs"]] == [(3, *SHAPE)] * 2
    for sample in data["data_samples"]:
        masks = torch.from_numpy(sample.gt_instances.masks.masks).bool()
        labels, boxes = sample.gt_instances.labels, sample.gt_instances.bboxes.tensor
        assert masks.shape == (3, *SHAPE) and (labels < 6).all()
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        assert torch.equal(areas, masks.flatten(1).sum(1).float())  # rectangles
        semantic = sample.gt_sem_seg.sem_seg[0]
        covered = masks.any(0)
        assert (semantic[covered] < 6).all()
        assert ((semantic[~covered] >= 6) & (semantic[~covered] < 10)).all()
        assert (semantic[masks[-1]] == labels[-1]).all()  # the last one lies on top


def test_ground_truth_of_semantic_segmentation():
    model, _, data = prepared(SEMANTIC_CONFIG, batch=3)
    assert len(data["data_samples"]) == 3
    for sample in data["data_samples"]:
        labels = sample.gt_sem_seg.data
        assert labels.shape == (1, *SHAPE)
        assert len(labels.unique()) > 1 and labels.max() < model.decode_head.num_classes


def test_batches_are_those_of_the_seed():
    model, _, data = prepared(SHAPES_CONFIG)
    again, other = (random_batch(model, SHAPE, objects=3, seed=seed) for seed in (0, 1))
    for key in (lambda d: d["inputs"][1], lambda d: d["data_samples"][1].gt_sem_seg.sem_seg):
        assert torch.equal(key(data), key(again)) and not torch.equal(key(data), key(other))


@pytest.mark.parametrize("text", [SHAPES_CONFIG, SEMANTIC_CONFIG, FCN])
def test_a_step_trains(text):
    model, config, data = prepared(text)
    step = training_call(model, config, data)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = [step()["loss"] for _ in range(2)]
    assert all(torch.isfinite(loss) for loss in losses)
    assert model.training
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert {name.partition(".")[0] for name in moved} >= {"backbone"}
    assert len(moved) > len(before) / 2


def test_optimizer_is_that_of_the_config():
    model, config, data = prepared(SHAPES_CONFIG + "@optim_wrapper.optimizer.lr=0.0")
    config.optim_wrapper.optimizer.weight_decay = 0.0
    before = model.panoptic_head.cls_embed.weight.detach().clone()
    training_call(model, config, data)()
    assert torch.equal(model.panoptic_head.cls_embed.weight, before)
    # Without an accelerator there is no mixed precision.
    config.optim_wrapper.type = "AmpOptimWrapper"
    config.optim_wrapper.loss_scale = "dynamic"
    training_call(model, config, data)()
    config.pop("optim_wrapper")
    training_call(model, config, data)()
    assert not torch.equal(model.panoptic_head.cls_embed.weight, before)


def test_images_keep_their_size():
    """What configs pad images to in training would make models see different ones."""
    for text in (MASK2FORMER, FCN):
        model, config, data = prepared(text)
        sizes = []
        model.backbone.register_forward_pre_hook(lambda _, args, s=sizes: s.append(args[0].shape))
        training_call(model, config, data)()
        assert sizes == [(2, 3, *SHAPE)]


@pytest.mark.parametrize("text", [SHAPES_CONFIG, FCN])
def test_head_alone(text):
    model, config, data = prepared(text)
    calls = []
    backbone = model.backbone
    backbone.register_forward_hook(lambda *_: calls.append("backbone"))
    head = training_call(model, config, data, "head")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert calls == ["backbone"]  # once, beforehand
    gradients = head()
    head()
    assert calls == ["backbone"]
    maps = [g for g in gradients if g is not None and g.dim() == 4]
    assert any(g.shape[0] == 2 and g.abs().sum() > 0 for g in maps)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_gradients_of_the_clustering_come_from_the_head():
    model, config, data = prepared(SHAPES_CONFIG)
    gradients = training_call(model, config, data, "head")()
    assignments = [g for g in gradients if g is not None and g.dim() == 4 and g.shape[1] == 9]
    assert [tuple(g.shape[2:]) for g in assignments] == [(16, 24), (8, 12), (4, 6)]
    assert all(g.abs().sum() > 0 for g in assignments)


def test_detectors_without_such_a_head():
    model, config, data = prepared(RETINANET)
    assert torch.isfinite(training_call(model, config, data)()["loss"])
    with pytest.raises(
        ValueError, match=r"expected a detector with a panoptic_head or .* RetinaNet"
    ):
        training_call(model, config, data, "head")
    model.dataset_meta = None
    with pytest.raises(ValueError, match=r"expected a panoptic_head, or a test set .* RetinaNet"):
        random_batch(model, SHAPE)


def test_models_that_cannot_be_trained_say_so():
    config = Config.fromfile(SHAPES_CONFIG)
    model = build_model(config)
    data = random_batch(model, SHAPE)
    model.backbone = nn.Identity()
    with pytest.raises(RuntimeError, match="MaskFormer cannot be trained on random images"):
        training_call(model, config, data)()
