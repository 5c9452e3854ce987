"""Epochs end, schedules step, and checkpoints are saved, or the user is told."""

import pytest
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.optim import LinearLR
from mmengine.registry import DATA_SAMPLERS, LOOPS, PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from hcformer_mm.engine.run_checks import schedule
from hcformer_mm.engine.run_checks.schedule import schedule_faults, schedule_warnings
from tests.helpers.run_configs import panoptic_config

EPOCHS = [
    dict(type="EpochBasedTrainLoop", max_epochs=2),
    dict(by_epoch=True, max_epochs=2),
]
ITERATIONS = [
    dict(type="IterBasedTrainLoop", max_iters=2),
    dict(by_epoch=False, max_iters=2),
]


def config(loop, **settings):
    made = panoptic_config("root")
    made.train_cfg = loop
    made.merge_from_dict(settings)
    return made


@pytest.mark.parametrize("loop", EPOCHS)
@pytest.mark.parametrize("sampler", ["InfiniteSampler", "mmdet.MultiSourceSampler"])
def test_endless_epochs(loop, sampler):
    (found,) = schedule_faults(config(loop, **{"train_dataloader.sampler.type": sampler}))
    assert f"got {sampler.rpartition('.')[2]};" in found
    assert "set train_dataloader.sampler.type='DefaultSampler'" in found
    ending = {"train_dataloader.sampler.type": "DefaultSampler"}
    assert list(schedule_faults(config(loop, **ending))) == []


@pytest.mark.parametrize("loop", ITERATIONS)
@pytest.mark.parametrize("sampler", ["InfiniteSampler", "DefaultSampler", "nowhere.Sampler"])
def test_iterations_take_any_sampler(loop, sampler):
    assert list(schedule_faults(config(loop, **{"train_dataloader.sampler.type": sampler}))) == []


STEPS = dict(type="MultiStepLR", milestones=[1], by_epoch=False)


@pytest.mark.parametrize("loop", ITERATIONS)
@pytest.mark.parametrize(
    ("schedulers", "key"),
    [
        (dict(STEPS, by_epoch=True), "param_scheduler"),
        ([STEPS, dict(type="MultiStepLR", milestones=[1])], r"param_scheduler[1]"),
        (dict(first=[STEPS], second=[dict(STEPS, by_epoch=True)]), "param_scheduler.second[0]"),
    ],
)
def test_schedule_without_steps(loop, schedulers, key):
    made = config(loop)
    made.param_scheduler = schedulers
    (found,) = schedule_faults(made)
    assert f"set {key}.by_epoch=False" in found


@pytest.mark.parametrize(
    "scheduler",
    [
        STEPS,
        dict(STEPS, by_epoch=True, convert_to_iter_based=True),
        dict(type="ReduceOnPlateauLR", monitor="loss"),
        None,
    ],
)
def test_schedule_with_steps(scheduler):
    made = config(ITERATIONS[0])
    made.param_scheduler = scheduler
    assert list(schedule_faults(made)) == []
    made = config(EPOCHS[0], **{"train_dataloader.sampler.type": "DefaultSampler"})
    made.param_scheduler = scheduler
    assert list(schedule_faults(made)) == []


@pytest.mark.parametrize("value", [0, -3, 2.5, "many", float("inf")])
@pytest.mark.parametrize("loop", ITERATIONS + EPOCHS)
def test_loops_without_length(loop, value):
    (name,) = {"max_iters", "max_epochs"} & set(loop)
    made = config({**loop, name: value}, **{"train_dataloader.sampler.type": "DefaultSampler"})
    made.param_scheduler = None
    (found,) = schedule_faults(made)
    assert f"as train_cfg.{name}, got {value!r}" in found
    made.train_cfg[name] = 1e4
    assert list(schedule_faults(made)) == []


def test_validation_after_no_iteration():
    made = config(dict(ITERATIONS[0], val_interval=0))
    (found,) = schedule_faults(made)
    assert "expected train_cfg.val_interval of at least 1, got 0" in found
    made.val_cfg = None
    assert list(schedule_faults(made)) == []


@LOOPS.register_module()
class _ShortEpochs(EpochBasedTrainLoop):
    """Ends an epoch by itself."""


@LOOPS.register_module()
class _IterationsInEpochs(IterBasedTrainLoop):
    """Calls the hooks of epochs, too."""


@DATA_SAMPLERS.register_module()
class _FiniteSampler(InfiniteSampler):
    """Ends an epoch."""


@PARAM_SCHEDULERS.register_module()
class _LRByIterations(LinearLR):
    """Counts iterations unless it is told otherwise."""

    def __init__(self, optimizer, **options):
        super().__init__(optimizer, **dict(by_epoch=False) | options)


@pytest.mark.parametrize(
    "settings",
    [
        {"train_cfg": dict(type="_ShortEpochs", max_epochs=2)},
        {"train_cfg": EPOCHS[0], "train_dataloader.sampler.type": "_FiniteSampler"},
        {
            "train_cfg": dict(type="_IterationsInEpochs", max_iters=2),
            "param_scheduler": dict(STEPS, by_epoch=True),
        },
        {"param_scheduler": dict(type="_LRByIterations", start_factor=0.5)},
        {"param_scheduler": dict(type=_LRByIterations, start_factor=0.5)},
    ],
)
def test_classes_of_others_may_count_otherwise(settings):
    made = config(settings.pop("train_cfg", ITERATIONS[0]))
    made.train_dataloader.sampler.type = "InfiniteSampler"
    made.param_scheduler = settings.pop("param_scheduler", None)
    made.merge_from_dict(settings)
    assert list(schedule_faults(made)) == []


def test_checkpoints_by_epochs():
    for loop in ITERATIONS:
        assert list(schedule_warnings(config(loop))) == []
        (found,) = schedule_warnings(config(loop, **{"default_hooks.checkpoint.by_epoch": True}))
        assert "no checkpoint is saved before the end" in found
        assert len(list(schedule_warnings(Config(dict(train_cfg=loop))))) == 1
        assert not list(
            schedule_warnings(Config(dict(train_cfg=loop, default_hooks=dict(checkpoint=None))))
        )
    by_epoch = {"default_hooks.checkpoint.by_epoch": True}
    assert list(schedule_warnings(config(EPOCHS[0], **by_epoch))) == []


@pytest.mark.parametrize(("device", "number"), [("cpu", 0), ("mps", 1), ("cuda", 0)])
def test_mixed_precision_does_not_run_on_mps(device, number, monkeypatch):
    monkeypatch.setattr(schedule, "get_device", lambda: device)
    found = list(schedule_faults(config(ITERATIONS[0], optim_wrapper=dict(type="AmpOptimWrapper"))))
    assert len(found) == number
    assert all("set optim_wrapper.type=OptimWrapper" in sentence for sentence in found)
