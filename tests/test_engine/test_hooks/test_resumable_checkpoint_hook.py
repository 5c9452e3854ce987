"""A killed run goes on as if nothing had happened, and no failure costs a saved checkpoint."""

import itertools
import os
import resource
import shutil
import signal

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.runner import set_random_seed

from hcformer_mm.checkpoints.io import load_checkpoint
from hcformer_mm.engine.hooks.resumable_checkpoint_hook import CheckpointBackend
from hcformer_mm.utils.errors import InputError
from tests.helpers.training import Killed, Watch, noisy_runner


def train(work_dir, *, kill_after=None, hooks=(), **options):
    """Train, and return the images of every iteration and the final parameters."""
    watch = Watch(kill_after)
    runner = noisy_runner(work_dir, custom_hooks=[watch, *hooks], **options)
    if kill_after is None:
        runner.train()
    else:
        with pytest.raises(Killed):
            runner.train()
    return watch.images, {name: p.detach().clone() for name, p in runner.model.named_parameters()}


def logged(work_dir):
    """What the last run in a folder has logged."""
    return max(work_dir.glob("*/*.log")).read_text()


def saved(work_dir):
    return sorted(path.name for path in work_dir.glob("*.pth"))


FINITE = dict(loader=dict(sampler=dict(type="DefaultSampler", shuffle=True)))
EPOCHS = dict(by_epoch=True, steps=5)
# Options, and the iteration after which the run is killed. There are checkpoints after iterations
# 4, 8, ..., validations after 3, 6, ..., and 4 iterations in an epoch.
RUNS = {
    "iterations": (dict(), 10),
    "before_validation": (dict(interval=6), 6),
    "passes": (FINITE, 10),
    "end_of_a_pass": (FINITE, 8),
    "epochs": (dict(EPOCHS, interval=2), 13),
    "inside_an_epoch": (dict(EPOCHS, interval=3, checkpoint=dict(by_epoch=False)), 7),
    "end_of_an_epoch": (dict(EPOCHS, checkpoint=dict(by_epoch=False)), 8),
    "average": (dict(hooks=[dict(type="EMAHook", momentum=0.1)]), 10),
    "best": (dict(interval=3, checkpoint=dict(save_best="mean", rule="less")), 8),
}


@pytest.mark.parametrize("name", list(RUNS))
def test_parameters_equal_those_of_an_uninterrupted_run(name, tmp_path, monkeypatch):
    """Bit for bit, with the same images in every iteration."""
    monkeypatch.setattr("mmengine.runner.loops.time.sleep", lambda _: None)
    options, kill_after = RUNS[name]
    images, whole = train(tmp_path / "whole", **options)
    before, _ = train(tmp_path / "killed", kill_after=kill_after, **options)
    set_random_seed(99)
    after, resumed = train(tmp_path / "killed", resume=True, **options)
    assert len(images) == 20 and before == images[:kill_after]
    assert 20 - kill_after <= len(after) < 20 and after == images[-len(after) :]
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


def test_without_a_fixed_seed(tmp_path):
    """The resumed run draws another seed before it reads the checkpoint."""
    free = dict(randomness=dict(seed=None))
    before, _ = train(tmp_path / "killed", kill_after=10, **free)
    shutil.copytree(tmp_path / "killed", tmp_path / "again")
    after, one = train(tmp_path / "killed", resume=True, **free)
    again, two = train(tmp_path / "again", resume=True, **free)
    assert after[:2] == before[8:] and after == again
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_workers_go_on_with_the_order(tmp_path):
    """Those of the seed, although they draw other random numbers."""
    loader = dict(num_workers=2, persistent_workers=True)
    images, _ = train(tmp_path / "whole", steps=8)
    train(tmp_path / "killed", loader=loader, steps=8, kill_after=5)
    after, _ = train(tmp_path / "killed", loader=loader, steps=8, resume=True)
    assert after == images[4:]


def test_another_order_is_told(tmp_path):
    train(tmp_path, kill_after=5)
    train(tmp_path, resume=True, steps=6, loader=dict(batch_size=1))
    assert "batch_size was 2 and is 1." in logged(tmp_path)


def test_checkpoints_without_random_states_resume(tmp_path):
    """Those of MMEngine's own hook: the order of the images goes on."""
    images, _ = train(tmp_path / "whole", steps=10)
    train(tmp_path / "killed", checkpoint=dict(type="CheckpointHook"), kill_after=9)
    after, _ = train(tmp_path / "killed", resume=True, steps=10)
    assert after == images[8:]
    assert "holds no random states" in logged(tmp_path / "killed")


def test_accumulated_gradients_are_not_dropped_without_a_word(tmp_path):
    wrapper = dict(optimizer=dict(type="SGD", lr=0.01), accumulative_counts=3)
    train(tmp_path, steps=2, optim_wrapper=wrapper)
    assert "divisible by accumulative_counts = 3, got 4" in logged(tmp_path)


@pytest.fixture
def full_disk(monkeypatch):
    """Let every checkpoint after the first be cut off by a limit of the operating system."""
    put = LocalBackend.put
    calls = []

    def limited(self, obj, filepath):
        calls.append(filepath)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if len(calls) > 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(obj) // 2, limits[1]))
        try:
            put(self, obj, filepath)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(LocalBackend, "put", limited)


@pytest.mark.parametrize("kind", ["newest", "best"])
def test_a_full_disk_keeps_the_checkpoint_before(kind, tmp_path, full_disk, monkeypatch):
    """Older checkpoints are removed only when the new one is complete."""
    scores = itertools.count(0, -1)
    metric = "tests.helpers.training.Mean.compute_metrics"
    monkeypatch.setattr(metric, lambda self, results: dict(mean=next(scores)))
    options = dict(interval=100, save_best="mean", rule="less") if kind == "best" else {}
    with pytest.raises(
        InputError, match=r"to write a checkpoint .* to .*\.pth, got 'File too large'"
    ):
        train(tmp_path, checkpoint=dict(max_keep_ckpts=1, **options))
    (name,) = saved(tmp_path)
    assert name == ("best_mean_iter_3.pth" if kind == "best" else "iter_4.pth")
    load_checkpoint(tmp_path / name)
    assert not list(tmp_path.glob(".*"))


def test_killed_while_saving(tmp_path, monkeypatch):
    """The file under its name is the old one, and what was written is cleared away later."""
    path = tmp_path / "iter_4.pth"
    path.write_bytes(b"old")
    put = LocalBackend.put

    def killed(self, obj, filepath):
        put(self, obj[: len(obj) // 2], filepath)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(LocalBackend, "put", killed)
    if (child := os.fork()) == 0:
        CheckpointBackend().put(b"new content", path)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    (unfinished,) = tmp_path.glob(".*")
    assert unfinished.read_bytes() == b"new c"
    train(tmp_path, steps=1)
    assert not unfinished.exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("damage", ["no_pointer", "pointer_to_nothing", "empty_pointer", "cut_off"])
def test_resumes_from_the_newest_checkpoint_that_loads(damage, tmp_path):
    train(tmp_path, kill_after=9)
    pointer = tmp_path / "last_checkpoint"
    if damage == "no_pointer":
        pointer.unlink()
    elif damage == "cut_off":
        truncate(tmp_path / "iter_8.pth")
    else:
        pointer.write_text("somewhere/else/iter_8.pth" if damage == "pointer_to_nothing" else "")
    images, _ = train(tmp_path, resume=True, steps=9)
    newest = 4 if damage == "cut_off" else 8
    assert len(images) == 9 - newest
    assert f"Training resumes from {tmp_path}/iter_{newest}.pth, since" in logged(tmp_path)


def test_refuses_to_begin_again_if_no_checkpoint_loads(tmp_path):
    train(tmp_path, kill_after=9)
    for path in tmp_path.glob("*.pth"):
        truncate(path)
    with pytest.raises(InputError, match=r"(?s)iter_8\.pth.*iter_4\.pth.*train without --resume"):
        train(tmp_path, resume=True)


def test_begins_where_there_is_nothing_to_resume(tmp_path):
    images, _ = train(tmp_path, resume=True, steps=1)
    assert len(images) == 1
    assert "training starts from the beginning" in logged(tmp_path)


def test_a_training_that_is_over_is_told(tmp_path):
    train(tmp_path, steps=4)
    assert "Nothing is left" not in logged(tmp_path)
    images, _ = train(tmp_path, steps=4, resume=True)
    assert images == []
    assert "of iteration 4, and train_cfg ends after 4" in logged(tmp_path)


def test_a_validation_without_the_best_metric(tmp_path):
    """Training goes on, and the checkpoint of the iteration is there."""
    images, _ = train(tmp_path, steps=4, checkpoint=dict(save_best="PQ", rule="greater"))
    assert len(images) == 4
    assert saved(tmp_path) == ["iter_4.pth"]
    assert "No checkpoint is called best: expected PQ, as in" in logged(tmp_path)


class Diverge(Hook):
    """Puts a NaN into the weights."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 7:
            runner.model.linear.weight.data[0, 0] = torch.nan


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The last checkpoint stays the last good one."""
    expected = r"NaN or infinity in linear\.weight at iteration 8"
    with pytest.raises(InputError, match=expected) as error:
        train(tmp_path, hooks=[Diverge()], checkpoint=dict(max_keep_ckpts=1))
    assert saved(tmp_path) == ["iter_4.pth"]
    assert f"load_from={tmp_path}/iter_4.pth" in str(error.value)
