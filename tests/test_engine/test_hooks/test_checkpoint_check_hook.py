"""A checkpoint that does not belong to what runs is refused, or, where it may, warned of."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import nn

from hcformer_mm.engine import CheckpointCheckHook
from tests.helpers.run_configs import Loop

NAMES = ("disc", "box", "grass")


class Net(nn.Module):
    """A backbone and a classifier."""

    def __init__(self, classes=3):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.cls = nn.Linear(4, classes)


def trained(model=None, classes=NAMES, **entries):
    """The content of a checkpoint."""
    meta = dict(iter=1, epoch=0, dataset_meta=dict(classes=classes))
    return dict(meta=meta, state_dict=(model or Net()).state_dict(), **entries)


@pytest.fixture
def logged(caplog):
    logger = logging.getLogger("checked")
    with caplog.at_level(logging.WARNING, "checked"):
        yield SimpleNamespace(
            logger=logger, text=lambda: " ".join(record.message for record in caplog.records)
        )


@pytest.fixture
def check(logged):
    """Let the hook check what a runner is about to load."""

    def check(content, model=None, *, classes=NAMES, mode="test", allow_partial=False, **own):
        model = model or Net()
        loops = dict(_train_loop=dict(), _test_loop=dict(), _val_loop=None)
        loop = Loop(None, SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=classes))))
        loops[f"_{mode if mode in ('test', 'val') else 'train'}_loop"] = loop
        runner = SimpleNamespace(
            **loops,
            model=model,
            cfg=Config(dict(model=dict()), filename=None),
            logger=logged.logger,
            work_dir="work_dirs/x",
            _load_from="x.pth",
            _resume=mode == "resume",
            **own,
        )
        CheckpointCheckHook(allow_partial=allow_partial).after_load_checkpoint(runner, content)
        return logged.text()

    return check


def wrapper(model, cls=torch.optim.AdamW, groups=1):
    parameters = list(model.parameters())
    options = dict(lr=0.1, momentum=0.9) if cls is torch.optim.SGD else dict(lr=0.1)
    parts = [dict(params=parameters[i::groups]) for i in range(groups)]
    return OptimWrapper(cls(parts, **options))


def interrupted(model=None, **options):
    """The content of a checkpoint with the state of a training."""
    model = model or Net()
    state = wrapper(model, **options).state_dict()
    return trained(model, optimizer=state, message_hub={}, param_schedulers=[])


@pytest.mark.parametrize("mode", ["test", "val", "load", "resume"])
def test_what_fits_passes(mode, check):
    model = Net()
    assert check(interrupted(), model, mode=mode, optim_wrapper=wrapper(model)) == ""


def test_names_differ_only_in_case(check):
    assert check(trained(classes=["Disc", "BOX", "grass"])) == ""


@pytest.mark.parametrize("meta", [None, {}, dict(dataset_meta=None), dict(dataset_meta={})])
def test_checkpoints_without_classes_pass(meta, check):
    assert check(dict(state_dict=Net().state_dict(), meta=meta)) == ""


@pytest.mark.parametrize("mode", ["test", "resume"])
def test_other_classes_are_refused_with_both_shapes(mode, check):
    model = Net(5)
    match = r"x\.pth does not fit .*cls\.weight \(3, 4\) for \(5, 4\), cls\.bias \(3,\) for \(5,\)"
    with pytest.raises(ValueError, match=match) as refused:
        check(interrupted(), model, mode=mode, optim_wrapper=wrapper(model))
    assert ("--allow-partial" in str(refused.value)) == (mode == "test")


@pytest.mark.parametrize("mode", ["test", "resume"])
@pytest.mark.parametrize("classes", [("box", "disc", "grass"), ("disc", "box", "sky"), ("disc",)])
def test_other_names_are_refused_with_both_lists(mode, classes, check):
    match = rf"trained on the classes {', '.join(classes)}, but .* has disc, box, grass; labels"
    model = Net()
    content = interrupted()
    content["meta"]["dataset_meta"]["classes"] = classes
    with pytest.raises(ValueError, match=match):
        check(content, model, mode=mode, optim_wrapper=wrapper(model))


def test_old_checkpoints_name_classes_in_capitals(check):
    content = trained()
    content["meta"]["dataset_meta"] = dict(CLASSES=("box", "disc", "grass"))
    with pytest.raises(ValueError, match="trained on the classes box, disc, grass"):
        check(content)


def test_partial_checkpoints_are_tested_on_demand(check):
    text = check(trained(classes=("a", "b", "c")), Net(5), allow_partial=True)
    assert "x.pth does not fit" in text
    assert "cls.bias (3,) for (5,)" in text
    assert "trained on the classes a, b, c" in text


def test_fine_tuning_is_told_once_what_the_model_lacks(check):
    text = check(trained(classes=("a", "b", "c")), Net(5), mode="load")
    assert text.count("does not fit") == 1
    assert "2 of another shape: cls.weight" in text
    assert "2 tensors are loaded" in text
    assert "trained on the classes a, b, c" in text
    assert "use the config" not in text
    assert "labels would be taken" not in text


@pytest.mark.parametrize("mode", ["load", "test"])
def test_nothing_to_load_is_refused(mode, check):
    content = dict(state_dict={"conv1.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"warm_start\.py converts what fits") as refused:
        check(content, mode=mode, allow_partial=True)
    assert "--allow-partial" not in str(refused.value)


def test_a_training_is_not_resumed_from_weights_alone(check):
    with pytest.raises(ValueError, match=r"lacks .* \(optimizer, message_hub\); begin .*load_from"):
        check(trained(), mode="resume", optim_wrapper=wrapper(Net()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(cls=torch.optim.SGD), "options momentum, but this training has one with .* betas"),
        (dict(groups=2), "with 2, 2 parameters .* but this training has one with 4 parameters"),
    ],
    ids=["kind", "groups"],
)
def test_a_training_is_not_resumed_with_another_optimizer(options, match, check):
    model = Net()
    with pytest.raises(ValueError, match=match):
        check(interrupted(**options), model, mode="resume", optim_wrapper=wrapper(model))


def test_wrapped_models_are_compared_inside(check):
    """DistributedDataParallel, and the wrapper of test-time augmentation, hold the model."""

    class Wrapper(MMDistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    assert check(trained(), Wrapper(Net())) == ""
    with pytest.raises(ValueError, match=r"cls\.bias \(3,\) for \(5,\)"):
        check(trained(), Wrapper(Net(5)))


def test_shards_are_not_compared(check):
    assert check(dict(state_dict={"_fsdp_wrapped_module._flat_param": torch.zeros(3)})) == ""
