"""Every config builds, takes a training step and predicts; sizes and costs are the reference's."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from tests.helpers.models import COCO_CONFIG, SHAPES_CONFIG, data_sample
from tools.analysis_tools.get_flops import count_multiply_adds

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("[!_]*/*.py"))

HCFORMER = "configs/hcformer/hcformer"
R50 = COCO_CONFIG
R50_PLUS = f"{HCFORMER}-plus_r50_8xb2-lsj-100e_coco-panoptic.py"
R50_ADE = f"{HCFORMER}_r50_8xb2-160k_ade20k-512x512.py"
R50_PLUS_ADE = f"{HCFORMER}-plus_r50_8xb2-320k_ade20k-512x512.py"
R50_CITYSCAPES = f"{HCFORMER}_r50_8xb2-90k_cityscapes-512x1024.py"
SWIN_S = "swin-s-p4-w7-224_8xb2"
SWIN_L = "swin-l-p4-w12-384-in21k_8xb2"

# Trained parameters of the released model classes, in millions; to the last one where it is known.
PARAMETERS = {
    R50: 38.39,
    R50_PLUS: 45.819555,
    f"{HCFORMER}-plus_r50_standard-decoder_8xb2-lsj-100e_coco-panoptic.py": 45.793699,
    f"{HCFORMER}_{SWIN_S}-lsj-50e_coco-panoptic.py": 62.41,
    f"{HCFORMER}-plus_{SWIN_S}-lsj-100e_coco-panoptic.py": 70.17,
    f"{HCFORMER}_{SWIN_L}-lsj-100e_coco-panoptic.py": 209.47,
    f"{HCFORMER}-plus_{SWIN_L}-lsj-200e_coco-panoptic.py": 217.04,
}
LEVEL = "model.backbone.hierarchical_level"
LAYERS = "model.panoptic_head.transformer_decoder.num_layers"
PARAMETERS_OF_VARIANTS = [
    ({LEVEL: 0}, 37.42),
    ({LEVEL: 1}, 37.97),
    ({LEVEL: 2}, 38.25),
    ({LAYERS: 1}, 27.34),
    ({LAYERS: 2}, 28.91),
    ({LAYERS: 4}, 32.07),
    ({LAYERS: 16}, 51.02),
    ({"model.backbone.downsampling": "original"}, 38.12),
]
# Their multiply-adds, in thousands of millions; without normalization and offsets, which ours have.
MULTIPLY_ADDS = [
    (R50, {LEVEL: 0}, (800, 1088), 74.46),
    (R50, {LEVEL: 1}, (800, 1088), 75.16),
    (R50, {LEVEL: 2}, (800, 1088), 76.58),
    (R50, {LEVEL: 3}, (800, 1088), 79.47),
    (R50_PLUS, {}, (800, 1088), 88.00),
    (R50_ADE, {}, (512, 512), 24.92),
    (R50_PLUS_ADE, {}, (512, 512), 27.02),
    (R50_CITYSCAPES, {}, (1024, 2048), 189.46),
]


@cache
def _read(path):
    return Config.fromfile(ROOT / path)


def read(path, options=None):
    """Return a fresh copy of a config, with options merged; each file is parsed once."""
    config = deepcopy(_read(path))
    config.merge_from_dict(options or {})
    init_default_scope(config.default_scope)
    return config


def build(config):
    """Build the model with random weights, without init_weights, which would download."""
    torch.manual_seed(0)
    return revert_sync_batchnorm(MODELS.build(config.model))


def trained(model):
    """Number of trained parameters, in millions."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6


@pytest.fixture(scope="module", params=CONFIGS)
def zoo(request):
    """Path, config and model of each config."""
    config = read(request.param)
    return request.param, config, build(config)


def test_configs_are_found():
    assert {SHAPES_CONFIG, *PARAMETERS, R50_ADE, R50_CITYSCAPES} <= set(CONFIGS)


def batch(config, model, size, original):
    """Two random images of a config's task, with ground truth."""
    if config.default_scope == "mmseg":
        metainfo = dict(img_shape=size, ori_shape=original, pad_shape=size, img_path="")
        samples = [SegDataSample(metainfo=metainfo) for _ in range(2)]
        for sample in samples:
            labels = torch.randint(0, model.num_classes, (1, *size))
            labels[..., :8] = 255
            sample.gt_sem_seg = PixelData(data=labels)
    else:
        stuff = model.num_things_classes if model.num_stuff_classes else None
        samples = [data_sample(size, original=original, stuff_label=stuff) for _ in range(2)]
        if stuff is None:
            for sample in samples:
                del sample.gt_sem_seg
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in samples]
    return dict(inputs=images, data_samples=samples)


def test_trains_a_step_and_predicts_what_the_metrics_read(zoo):
    _, config, model = zoo
    size, original = (64, 96), (80, 120)
    # No padding to the crop size.
    if config.default_scope == "mmseg":
        model.data_preprocessor.size, model.data_preprocessor.size_divisor = None, 32

    model.train()
    prepared = model.data_preprocessor(batch(config, model, size, original), training=True)
    total, _ = model.parse_losses(model(**prepared, mode="loss"))
    total.backward()
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    model.zero_grad()

    model.eval()
    with torch.no_grad():
        prediction = model.test_step(batch(config, model, size, original))[0]
    evaluators = config.test_evaluator
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    metrics = {evaluator.type.split(".")[-1] for evaluator in evaluators}
    assert metrics
    if "CocoPanopticMetric" in metrics:
        assert prediction.pred_panoptic_seg.sem_seg.shape == (1, *original)
    if {"CocoMetric", "CocoBoundaryMetric"} & metrics:
        instances = prediction.pred_instances
        assert instances.masks.shape[1:] == original
        assert len(instances.masks) == len(instances.scores) == len(instances.labels) > 0
        assert instances.labels.max() < model.num_things_classes
    if "SemSegMetric" in metrics:
        assert prediction.pred_sem_seg.sem_seg.shape == (1, *original)
    if "IoUMetric" in metrics:
        assert prediction.pred_sem_seg.data.shape == (1, *original)
        assert prediction.seg_logits.data.shape == (model.num_classes, *original)
        whole = model.test_cfg
        model.test_cfg = ConfigDict(mode="slide", crop_size=(64, 64), stride=(32, 32))
        with torch.no_grad():
            prediction = model.test_step(batch(config, model, size, original))[0]
        model.test_cfg = whole
        assert prediction.pred_sem_seg.data.shape == (1, *original)
    asked = {"CocoPanopticMetric": "panoptic", "SemSegMetric": "semantic"}
    for metric, result in asked.items():
        if f"{result}_on" in config.model.test_cfg:
            assert config.model.test_cfg[f"{result}_on"] == (metric in metrics)


def test_parameters(zoo):
    path, _, model = zoo
    if path in PARAMETERS:
        known = len(str(PARAMETERS[path]).partition(".")[2])
        assert trained(model) == pytest.approx(PARAMETERS[path], abs=0.01 if known == 2 else 1e-9)
    folder = (ROOT / path).parent
    if (folder / "metafile.yml").is_file():
        listed = yaml.safe_load((folder / "metafile.yml").read_text())["Models"]
        parameters = sum(p.numel() for p in model.parameters())
        # test_model_zoo.py says which configs are listed.
        entries = [m for m in listed if m["Config"] == path]
        assert [m["Metadata"]["Parameters"] for m in entries] == [parameters] * len(entries)


@pytest.mark.parametrize(("options", "reference"), PARAMETERS_OF_VARIANTS)
def test_parameters_of_variants(options, reference):
    model = build(read(R50, options))
    assert trained(model) == pytest.approx(reference, abs=0.01)
    # The affine terms of the frozen normalization do not count.
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad) / 1e6
    assert frozen == pytest.approx(0.053, abs=1e-3)


@pytest.mark.parametrize(("path", "options", "size", "reference"), MULTIPLY_ADDS)
def test_multiply_adds(path, options, size, reference):
    count = count_multiply_adds(build(read(path, options)), *size).total() / 1e9
    assert count == pytest.approx(reference, rel=0.02)


def test_pipelines_are_built(zoo):
    _, config, _ = zoo
    splits = ("train", "val", "test")
    pipelines = [config[f"{split}_dataloader"].dataset.pipeline for split in splits]
    for steps in [*pipelines, config.get("tta_pipeline", [])]:
        assert len(Compose(steps).transforms) == len(steps)


def test_leaves_are_short():
    assert all(len((ROOT / path).read_text().splitlines()) <= 30 for path in CONFIGS)


def test_classes_are_those_of_the_dataset(zoo):
    _, config, _ = zoo
    dataset = config.test_dataloader.dataset
    with DATASETS.switch_scope_and_registry(None) as registry:
        metainfo = dataset.get("metainfo") or registry.get(dataset.type).METAINFO
    if config.default_scope == "mmseg":
        heads = [config.model.decode_head, config.model.get("auxiliary_head")]
        for head in filter(None, heads):
            assert head.num_classes == len(metainfo["classes"])
        return
    if "panoptic_on" in config.model.test_cfg and not config.model.test_cfg.panoptic_on:
        classes = (len(metainfo["classes"]), 0)
    else:
        classes = (len(metainfo["thing_classes"]), len(metainfo["stuff_classes"]))
    semantic = config.model.get("panoptic_head") or config.model.semantic_head
    for head in (semantic, config.model.panoptic_fusion_head):
        assert (head.num_things_classes, head.num_stuff_classes) == classes
