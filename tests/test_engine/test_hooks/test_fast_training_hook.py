"""Fast training has the losses of plain training, and puts the model back as it was."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, set_random_seed
from mmengine.runner import runner as runner_module

from hcformer_mm.checkpoints.io import load_checkpoint
from tests.helpers.conv_bn import overridden
from tests.helpers.tools import quick_config


@HOOKS.register_module()
class Watch(Hook):
    """Records the loss and the number of prepared layers; may raise after an iteration."""

    def __init__(self, fails_after=None):
        self.seen = []
        self.losses = []
        self.fails_after = fails_after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append(len(overridden(runner.model)))
        self.losses.append(float(outputs["loss"]))
        if self.fails_after == batch_idx:
            raise KeyError("of a hook")


@pytest.fixture
def build(shapes, tmp_path, run_device, monkeypatch):
    """The runner of a config with frozen BatchNorm, on each device."""
    monkeypatch.setattr(runner_module, "get_device", lambda: str(run_device))

    def runner(name, *hooks):
        config = quick_config(shapes, tmp_path / name, batch_size=2, hooks=hooks)
        config.default_hooks.logger.interval = 1
        config.model.backbone.backbone.update(
            norm_cfg=dict(type="BN", requires_grad=False), norm_eval=True
        )
        return Runner.from_cfg(config)

    return runner


def watch(runner):
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, Watch))
    return hook


FAST = dict(type="hcformer_mm.FastTrainingHook")


def test_the_losses_stay(build, tmp_path):
    """So do the names, shapes and values of the checkpoint."""
    states, losses, steps = [], [], []
    for name, hooks in (("plain", ()), ("fast", (FAST,))):
        runner = build(name, dict(type="Watch"), *hooks)
        before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
        set_random_seed(0)
        runner.train()
        after = dict(runner.model.named_parameters())
        steps.append(torch.cat([(after[name] - p).flatten() for name, p in before.items()]))
        assert [bool(n) for n in watch(runner).seen] == 2 * [name == "fast"]
        losses.append(watch(runner).losses)
        assert not overridden(runner.model)
        checkpoint = load_checkpoint(tmp_path / name / "iter_2.pth")
        states.append(checkpoint["state_dict"])
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert list(states[0]) == list(states[1])
    for name, expected in states[0].items():
        assert states[1][name].is_contiguous() == expected.is_contiguous(), name
    # Adam's steps have one length, and where a gradient is 0 rounding decides on the direction.
    assert steps[0].norm() > 0
    assert (steps[1] - steps[0]).norm() < 0.1 * steps[0].norm()


def test_averaged_weights_and_resumed_training(build, tmp_path):
    """MMEngine's average of a prepared model is validated, and training resumes."""
    ema = dict(type="EMAHook", momentum=0.5)
    runner = build("averaged", dict(type="Watch"), ema, FAST)
    runner.train()
    assert all(watch(runner).seen) and not overridden(runner.model)
    again = build("averaged-2", dict(type="Watch"), ema, FAST)
    again._load_from, again._resume = str(tmp_path / "averaged" / "iter_2.pth"), True
    again.train_loop._max_iters = 3
    again.train()
    assert len(watch(again).seen) == 1 and all(watch(again).seen)
    assert not overridden(again.model)


def test_after_an_error(build):
    runner = build("broken", dict(type="Watch", fails_after=0), FAST)
    with pytest.raises(KeyError, match="of a hook"):
        runner.train()
    assert overridden(runner.model)
    runner.val()
    assert not overridden(runner.model)
