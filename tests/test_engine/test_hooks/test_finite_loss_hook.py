"""Training stops at the iteration whose loss is not finite, and says what to do."""

import pytest

from hcformer_mm.engine import FiniteLossHook
from hcformer_mm.utils.errors import InputError
from tests.helpers.tools import quick_config, run_tool
from tests.helpers.training import NoisyModel, Watch, noisy_runner


@pytest.mark.parametrize("hooks", [{}, dict(runtime_info=None)], ids=["logged", "not_logged"])
def test_names_loss_iteration_and_last_checkpoint(hooks, tmp_path):
    runner = noisy_runner(tmp_path, model=NoisyModel(nan_at=6), custom_hooks=[FiniteLossHook()])
    if hooks:
        runner._hooks = [h for h in runner.hooks if type(h).__name__ != "RuntimeInfoHook"]
    with pytest.raises(InputError) as error:
        runner.train()
    message = str(error.value)
    assert "got loss = nan (images: " in message and "at iteration 6;" in message
    assert f"load_from={tmp_path}/iter_4.pth" in message


def test_finite_losses_pass(tmp_path):
    watch = Watch()
    noisy_runner(tmp_path, steps=3, custom_hooks=[FiniteLossHook(), watch]).train()
    assert len(watch.images) == 3


def test_exploding_training_ends_in_a_sentence(shapes, tmp_path):
    """The tool names the images; no checkpoint was saved yet."""
    config = quick_config(shapes, tmp_path / "run", batch_size=2)
    config.train_cfg.update(max_iters=30, val_interval=99)
    config.optim_wrapper.update(clip_grad=None)
    config.optim_wrapper.optimizer.lr = 1e30
    config.param_scheduler = None
    config.dump(tmp_path / "config.py")
    with pytest.raises(SystemExit) as error:
        run_tool("tools/train.py", tmp_path / "config.py")
    message = str(error.value)
    assert message.startswith("train: expected finite losses and weights, got ")
    assert "(images: " in message and ".jpg" in message and message.endswith("and start again")
