"""Types that nothing registers and settings that no class has: refused before data are read."""

from copy import deepcopy
from unittest import mock

import pytest
from mmdet.datasets import CocoPanopticDataset
from mmengine.config import Config
from mmengine.registry import DATASETS, OPTIM_WRAPPER_CONSTRUCTORS, TRANSFORMS

from hcformer_mm.engine.run_checks.components import component_faults
from tests.helpers.models import SHAPES_CONFIG
from tests.helpers.tools import quick_config, run_tool
from tests.test_configs import CONFIGS, read

SPLITS = ("train", "val", "test")
DATASET, STEP = "train_dataloader.dataset", "train_dataloader.dataset.pipeline.2"


def faults(config, splits=SPLITS):
    return list(component_faults(config, splits))


@pytest.fixture(scope="module")
def shapes_config():
    return Config.fromfile(SHAPES_CONFIG)


@pytest.mark.parametrize("path", CONFIGS)
def test_configs_of_the_zoo_are_right(path):
    assert faults(read(path)) == []


TYPES = {
    "val_evaluator.0": ("CocoMetrik", "a registered metric as val_evaluator[0].type", "CocoMetric"),
    DATASET: ("CocoPanopticDatset", "registered dataset", "CocoPanopticDataset"),
    "train_dataloader.sampler": ("InfinitSampler", "registered data sampler", "InfiniteSampler"),
    "train_dataloader.batch_sampler": ("Aspect", "train_dataloader.batch_sampler.type", ""),
    STEP: ("mmdet.Resiz", "train_dataloader.dataset.pipeline[2].type", "Resize"),
    "default_hooks.checkpoint": ("CheckpontHook", "default_hooks.checkpoint.type", "CheckpointH"),
    "custom_hooks.0": (
        "DataCheckHok",
        "a registered hook as custom_hooks[0].type",
        "DataCheckHook",
    ),
    "optim_wrapper": ("OptimWraper", "as optim_wrapper.type", "OptimWrapper"),
    "optim_wrapper.optimizer": ("AdamX", "a registered optimizer", "Adam"),
    "param_scheduler.0": ("LinearRL", "as param_scheduler[0].type", "LinearLR"),
    "train_cfg": ("IterTrainLoop", "a registered loop as train_cfg.type", "IterBasedTrainLoop"),
    "val_cfg": ("ValLop", "as val_cfg.type", "ValLoop"),
}


@pytest.mark.parametrize(("key", "case"), TYPES.items(), ids=list(TYPES))
def test_types_that_nothing_registers(key, case, shapes_config):
    name, expected, near = case
    config = deepcopy(shapes_config)
    config.merge_from_dict({f"{key}.type": name})
    (fault,) = (one for one in faults(config) if name in one)
    assert expected in fault and f"got {name!r}" in fault and near in fault
    assert ("did you mean" in fault) == bool(near)


SETTINGS = {
    "train_cfg.max_iter": "IterBasedTrainLoop in train_cfg, got 'max_iter' (did you mean max_iters",
    "train_dataloader.batch_size": "of train_dataloader that can be built, got ValueError: batch_s",
    "train_dataloader.num_worker": "got 'num_worker' (did you mean num_workers",
    f"{DATASET}.anno_file": "in train_dataloader.dataset, got 'anno_file' (did you mean ann_file",
    f"{STEP}.scales": "of Resize in train_dataloader.dataset.pipeline[2], got 'scales' (did you",
    "train_dataloader.sampler.shufle": "of InfiniteSampler in train_dataloader.sampler, got 'shuf",
    "optim_wrapper.optimizer.rate": "of AdamW in optim_wrapper.optimizer, got 'rate'; correct",
    "optim_wrapper.clip_grads": "in optim_wrapper, got 'clip_grads' (did you mean clip_grad?)",
    "param_scheduler.0.start": "of LinearLR in param_scheduler[0], got 'start'; correct or",
    "custom_hooks.0.fast": "of DataCheckHook in custom_hooks[0], got 'fast'",
    "val_evaluator.1.metrics": "of CocoMetric in val_evaluator[1], got 'metrics' (did you mean met",
}


@pytest.mark.parametrize(("key", "expected"), SETTINGS.items(), ids=list(SETTINGS))
def test_settings_that_no_class_has(key, expected, shapes_config):
    config = deepcopy(shapes_config)
    config.merge_from_dict({key: 0})
    (fault,) = faults(config)
    assert expected in fault


def test_what_is_missing(shapes_config):
    config = deepcopy(shapes_config)
    del config.train_dataloader["sampler"], config.train_cfg["max_iters"]
    del config.val_evaluator[0]["type"]
    assert [fault.partition(", ")[0] for fault in faults(config)] == [
        "expected train_cfg.max_iters",
        "expected a dict with type as train_dataloader.sampler",
        "expected a dict with type as val_evaluator[0]",
    ]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (dict(type="RandomFlip", prob=7), "of train_dataloader.dataset.pipeline[0] that can be b"),
        (
            dict(type="RandomApply", transforms=[dict(type="Resiz")]),
            "registered transform as train_dataloader.dataset.pipeline[0].transforms[0].type, got",
        ),
    ],
)
def test_values_and_steps_inside_steps(step, expected, shapes_config):
    config = deepcopy(shapes_config)
    config.train_dataloader.dataset.pipeline = [step]
    (fault,) = faults(config)
    assert expected in fault


def test_scores_of_label_maps(shapes_config):
    config = deepcopy(shapes_config)
    metric = dict(type="mmseg.IoUMetric", iou_metrics=["mDicee"])
    config.val_evaluator = dict(type="Evaluator", metrics=[metric])
    (fault,) = faults(config)
    assert "as val_evaluator.metrics[0].iou_metrics, such as 'mIoU'" in fault
    for names in ("mDice", ["mIoU", "mFscore"]):
        config.val_evaluator.metrics[0].iou_metrics = names
        assert faults(config) == []


def test_datasets_inside_wrappers(shapes_config):
    config = deepcopy(shapes_config)
    own = dict(config.train_dataloader.dataset, anno_file="a.json")
    repeated = dict(type="RepeatDataset", times=2, dataset=own)
    config.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[repeated])
    (fault,) = faults(config)
    assert "in train_dataloader.dataset.datasets[0].dataset, got 'anno_file'" in fault


@DATASETS.register_module()
class _Eager:
    """A dataset that is built in its own way."""

    def __init__(self, root, **options):
        raise FileNotFoundError(root)


@TRANSFORMS.register_module()
def _double(results):
    return results


@DATASETS.register_module()
class _Named:
    """A dataset that wraps none: ``dataset`` holds settings."""

    def __init__(self, dataset, pipeline):
        self.dataset = dataset


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class _Freezing:
    """Takes settings of its own from the configs of the wrapper and of the optimizer."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        self.frozen = optim_wrapper_cfg.pop("frozen")


def test_components_of_others_are_left_to_them(shapes_config):
    config = deepcopy(shapes_config)
    config.train_dataloader.dataset = dict(type=_Eager, root="nowhere", anything=1)
    config.val_dataloader.dataset = dict(type="mmengine._Eager", root="nowhere")
    config.test_dataloader.dataset = dict(type=_Named, dataset=dict(name="a"), pipeline="short")
    config.custom_hooks = [object()]
    config.optim_wrapper.update(constructor="_Freezing", frozen=1)
    config.optim_wrapper.optimizer.layer_decay = 0.5
    assert faults(config) == []


def test_loops_that_do_not_run_are_not_checked(shapes_config):
    config = deepcopy(shapes_config)
    config.test_evaluator[0].type = "CocoMetrik"
    assert faults(config, ["train", "val"]) == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("val_evaluator.0.type", "CocoMetrik", "registered metric as val_evaluator"),
        ("val_evaluator.0.prefixes", "x", "val_evaluator"),
        ("model.panoptic_head.type", "HCFormerHed", "did you mean hcformer_mm.HCFormerHead"),
        ("model.panoptic_head.num_querys", 3, "of model.panoptic_head.num_querys that can be"),
        (
            "visualizer.vis_backends.0.type",
            "LocalVisBackent",
            "visualizer.vis_backends[0].type, got",
        ),
        ("optim_wrapper.optimizer.lr", -1, "ValueError: Invalid learning rate: -1"),
        ("train_dataloader.batch_size", 0, "batch_size should be a positive integer"),
        ("train_dataloader", None, "to train with, got no train_dataloader"),
    ],
)
def test_training_ends_in_a_sentence(key, value, expected, shapes, tmp_path):
    """Before any data are read."""
    config = quick_config(shapes, tmp_path / "o")
    config.merge_from_dict({key: value})
    config.dump(tmp_path / "quick.py")
    read = mock.patch.object(CocoPanopticDataset, "full_init", side_effect=AssertionError)
    with read, pytest.raises(SystemExit) as stopped:
        run_tool("tools/train.py", tmp_path / "quick.py")
    assert stopped.value.code.startswith("train: ")
    assert expected in stopped.value.code and "\n" not in stopped.value.code
