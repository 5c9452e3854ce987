"""Void of 255 is refused where 255 is a class."""

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from hcformer_mm.engine.run_checks.classes import heads_of
from hcformer_mm.engine.run_checks.datasets import parts_of
from hcformer_mm.engine.run_checks.void import void_faults
from hcformer_mm.utils.config import build_without_weights
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG
from tests.helpers.tools import ROOT

PER_PIXEL = "configs/shapes/hc-pspnet_r18_shapes-semantic.py"
VOID = 65535
RIGHT = {
    "model.decode_head.ignore_index": VOID,
    "model.data_preprocessor.seg_pad_val": VOID,
    "val_evaluator.ignore_index": VOID,
}


def faults(path, number, options=(), splits=("train", "val")):
    names = [f"class {index}" for index in range(number)]
    config = Config.fromfile(ROOT / path)
    config.merge_from_dict(dict(options))
    for key in ("decode_head", "auxiliary_head"):
        if key in config.model:
            config.model[key].num_classes = number
    parts = []
    with DefaultScope.overwrite_default_scope(config.default_scope):
        for split in splits:
            dataset = config[f"{split}_dataloader"].dataset
            dataset.metainfo = dict(classes=names, palette=[(0, 0, 0)] * number)
            if config.default_scope == "mmseg":
                dataset.type = "mmseg.BaseSegDataset"
            parts += parts_of(dataset, f"{split}_dataloader.dataset")
        model = build_without_weights(config)
        return list(void_faults(config, model, heads_of(model), parts, splits))


def test_every_setting_is_named():
    (fault,) = faults(SEMANTIC_CONFIG, 300)
    assert fault.startswith("expected void to be 65535, as 255 is one of the 300 classes")
    assert all(key in fault for key in RIGHT)
    (fault,) = faults(PER_PIXEL, 256, RIGHT)
    assert "in model.auxiliary_head.ignore_index; set them to 65535" in fault


@pytest.mark.parametrize(("number", "options"), [(255, {}), (10, {}), (300, RIGHT)])
def test_settings_that_fit_are_silent(number, options):
    assert not faults(SEMANTIC_CONFIG, number, options)


def test_a_test_does_not_pad_labels():
    options = {"model.decode_head.ignore_index": VOID, "test_evaluator.ignore_index": VOID}
    assert not faults(SEMANTIC_CONFIG, 300, options, splits=("test",))


def test_label_maps_of_8_bits_are_not_written():
    options = RIGHT | {"val_evaluator.output_dir": "maps"}
    (fault,) = faults(SEMANTIC_CONFIG, 300, options)
    assert "label maps by val_evaluator, which has 8 bits for a label, got 300" in fault
    assert not faults(SEMANTIC_CONFIG, 255, {"val_evaluator.output_dir": "maps"})


def test_panoptic_sets_have_255_classes_at_most():
    (fault, _) = faults(SHAPES_CONFIG, 256)
    assert fault.startswith("expected at most 255 classes in ShapesPanopticDataset (train_")
    assert not faults(SHAPES_CONFIG, 255)
