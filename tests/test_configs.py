"""Every config builds, takes a training step and predicts; the paper's protocol stands in it."""

from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm

from tests.models import COCO_CONFIG, SHAPES_CONFIG, data_sample

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "configs").glob("*/*.py")
    if path.parent.name != "_base_"
)


def build(path):
    config = Config.fromfile(ROOT / path)
    init_default_scope(config.default_scope)
    config.model.backbone.backbone.init_cfg = None
    torch.manual_seed(0)
    return config, MODELS.build(config.model)


def test_configs_are_found():
    assert {COCO_CONFIG, SHAPES_CONFIG} <= set(CONFIGS)


@pytest.mark.parametrize("path", CONFIGS)
def test_trains_a_step_and_predicts(path):
    _, model = build(path)
    stuff = model.num_things_classes
    model.data_preprocessor.batch_augments = None
    batch = dict(
        inputs=[torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)] * 2,
        data_samples=[data_sample((64, 96), stuff_label=stuff) for _ in range(2)],
    )
    model.train()
    prepared = model.data_preprocessor(batch, training=True)
    losses = model(**prepared, mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    model.eval()
    with torch.no_grad():
        prediction = model.test_step(batch)[0]
    for kind in ("pred_panoptic_seg", "pred_sem_seg", "pred_instances"):
        assert kind in prediction


@pytest.mark.parametrize("path", CONFIGS)
def test_pipelines_are_built(path):
    config = Config.fromfile(ROOT / path)
    init_default_scope(config.default_scope)
    for split in ("train", "val", "test"):
        steps = config[f"{split}_dataloader"].dataset.pipeline
        assert len(Compose(steps).transforms) == len(steps)


@pytest.mark.parametrize("path", CONFIGS)
def test_leaves_are_short(path):
    assert len((ROOT / path).read_text().splitlines()) <= 30


@pytest.mark.parametrize("path", CONFIGS)
def test_classes_are_those_of_the_dataset(path):
    config = Config.fromfile(ROOT / path)
    init_default_scope(config.default_scope)
    with DATASETS.switch_scope_and_registry(None) as registry:
        metainfo = registry.get(config.test_dataloader.dataset.type).METAINFO
    head = config.model.panoptic_head
    assert head.num_things_classes == len(metainfo["thing_classes"])
    assert head.num_stuff_classes == len(metainfo["stuff_classes"])
    assert config.model.panoptic_fusion_head.num_things_classes == head.num_things_classes
    assert config.model.panoptic_fusion_head.num_stuff_classes == head.num_stuff_classes


def test_protocol_of_the_paper_on_coco():
    """Appendix D.1, read back from what is built."""
    config, model = build(COCO_CONFIG)
    # The wrapper of mixed precision needs a GPU; what it wraps does not.
    assert config.optim_wrapper.type == "AmpOptimWrapper"
    config.optim_wrapper.type = "OptimWrapper"
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    assert wrapper.clip_grad_kwargs == dict(max_norm=0.01, norm_type=2)
    settings = {id(g["params"][0]): (g["lr"], g["weight_decay"]) for g in wrapper.param_groups}
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm, _BatchNorm, torch.nn.Embedding)
    undecayed = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters()}
    seen = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        seen += 1
        lr, decay = settings[id(parameter)]
        assert lr == pytest.approx(1e-5 if name.startswith("backbone.") else 1e-4), name
        assert decay == pytest.approx(0.0 if id(parameter) in undecayed else 0.05), name
    assert seen > 200

    assert config.train_cfg.max_iters == 368750
    assert config.param_scheduler.milestones == [327778, 355092]
    assert config.param_scheduler.gamma == 0.1
    assert config.auto_scale_lr.base_batch_size == 16
    head = config.model.panoptic_head
    assert (head.num_queries, head.transformer_decoder.num_layers) == (100, 8)
    assert config.model.backbone.init_scale == 0.1
    weights = [head[loss].loss_weight for loss in ("loss_cls", "loss_mask", "loss_dice")]
    assert [*weights, head.loss_scale_weight] == [2.0, 5.0, 5.0, 0.1]
    assert head.loss_cls.class_weight == [1.0] * 133 + [0.1]


def test_pipeline_of_the_paper_on_coco():
    """Large-scale jitter on 1024x1024 crops; images of 800 to 1333 in the test."""
    config = Config.fromfile(ROOT / COCO_CONFIG)
    steps = {step["type"]: step for step in config.train_dataloader.dataset.pipeline}
    resize = steps["RandomResize"]
    assert resize.scale == (1024, 1024)
    assert resize.ratio_range == (0.1, 2.0)
    assert resize.keep_ratio
    assert steps["mmdet.RandomCrop"].crop_size == (1024, 1024)
    assert config.model.data_preprocessor.batch_augments[0].size == (1024, 1024)
    test = {step["type"]: step for step in config.test_dataloader.dataset.pipeline}
    assert test["Resize"].scale == (1333, 800)


def test_model_index_is_complete():
    """Every leaf of configs/hcformer stands in its metafile; every file that it names exists."""
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    models, collections = [], set()
    for name in index["Import"]:
        metafile = yaml.safe_load((ROOT / name).read_text())
        for collection in metafile["Collections"]:
            assert {"Name", "Metadata", "Paper", "README"} <= set(collection)
            assert (ROOT / collection["README"]).is_file()
            collections.add(collection["Name"])
        models += metafile["Models"]
    for model in models:
        assert {"Name", "In Collection", "Config", "Metadata", "Results"} <= set(model)
        assert model["In Collection"] in collections
        assert Path(model["Config"]).stem == model["Name"]
    assert {m["Config"] for m in models} == {c for c in CONFIGS if "/hcformer/" in c}


def test_parameters_of_the_model_index():
    (metafile,) = (ROOT / "configs/hcformer").glob("metafile.yml")
    for model in yaml.safe_load(metafile.read_text())["Models"]:
        _, built = build(model["Config"])
        count = sum(parameter.numel() for parameter in built.parameters())
        assert count == model["Metadata"]["Parameters"]
