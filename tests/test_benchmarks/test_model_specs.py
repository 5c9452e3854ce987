"""Configs with settings of their own, as the command line has them."""

from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.model_specs import parse_variants
from tests.helpers.models import SHAPES_CONFIG

NAME = Path(SHAPES_CONFIG).stem
QUERIES = "model.panoptic_head.num_queries"


def test_settings_are_of_one_variant_alone():
    first, second = parse_variants([f"{NAME}@{QUERIES}=7", NAME])
    assert first.file.name == second.file.name == f"{NAME}.py"
    assert [v.name for v in (first, second)] == [f"{NAME}@{QUERIES}=7", NAME]
    assert first.config().model.panoptic_head.num_queries == 7
    assert second.config().model.panoptic_head.num_queries != 7


def test_settings_go_before_those_of_all():
    options = {QUERIES: 9, "model.test_cfg.iou_thr": 0.5}
    own, common = parse_variants([f"{NAME}@{QUERIES}=7", NAME], options=options)
    assert own.options == {QUERIES: 7, "model.test_cfg.iou_thr": 0.5}
    assert common.options == options


def test_values_are_read_as_of_every_tool():
    (variant,) = parse_variants([f"{NAME}@a=[1,2]@b.c=x,y@d=None"])
    assert variant.options == {"a": [1, 2], "b.c": ["x", "y"], "d": None}


def test_names_are_unique():
    variants = parse_variants([NAME, f"{NAME}@a=1", NAME, SHAPES_CONFIG])
    assert [v.name for v in variants] == [NAME, f"{NAME}@a=1", f"{NAME} (2)", f"{NAME} (3)"]


def test_models_are_prepared_one_by_one():
    plain, fast = parse_variants([NAME, f"{NAME}@fuse-conv-bn@channels-last"])
    plain, fast = plain.build(0), fast.build(0)
    norms = [
        sum(isinstance(m, _BatchNorm) for m in model.backbone.modules()) for model in (plain, fast)
    ]
    assert norms[0] > norms[1] == 0
    weights = [model.backbone.backbone.layer1[0].conv1.weight for model in (plain, fast)]
    assert [w.is_contiguous(memory_format=torch.channels_last) for w in weights] == [False, True]


def test_all_are_prepared_alike():
    variants = parse_variants([NAME, NAME], fuse_bn=True, channels_last=True)
    assert all(v.fuse_bn and v.channels_last for v in variants)


def test_weights_of_each():
    variants = parse_variants([NAME, NAME], weights=["random", "a.pth"])
    assert [v.weights for v in variants] == [None, Path("a.pth")]
    with pytest.raises(ValueError, match="expected 2 --checkpoints, one per config"):
        parse_variants([NAME, NAME], weights=["a.pth"])


@pytest.mark.parametrize("setting", ["fast", "", "fuse-conv-bn@slow"])
def test_unknown_settings(setting):
    with pytest.raises(ValueError, match="expected CONFIG, and after each @ key=value"):
        parse_variants([f"{NAME}@{setting}"])
