"""Processes that are killed: a data worker, and tools/train.py at ten random moments."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from multiprocessing import get_context

import pytest
import torch
from mmengine.hooks import Hook

from hcformer_mm.checkpoints.io import load_checkpoint
from tests.helpers.tools import ROOT, quick_config
from tests.helpers.training import noisy_runner

KILLS = 10


def in_a_process(function, *args, **options):
    """Call a function in a process that has nothing but the memory of this one."""
    process = get_context("fork").Process(target=function, args=args, kwargs=options)
    process.start()
    return process


class KillWorker(Hook):
    """Kills the data worker after the second iteration."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 1:
            os.kill(runner.train_loop.dataloader_iterator._iterator._workers[0].pid, signal.SIGKILL)


def train_with_a_killed_worker(work_dir):
    torch.set_num_threads(1)  # a forked process has no others
    loader = dict(num_workers=1, persistent_workers=True)
    runner = noisy_runner(work_dir, loader=loader, steps=10**6, custom_hooks=[KillWorker()])
    try:
        runner.train()
    except (RuntimeError, ConnectionError, EOFError) as error:
        # The latter two if it is killed while it hands an image over. Torch's handler would
        # raise the error again while this process ends.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        (work_dir / "error.txt").write_text(str(error))


def test_a_killed_data_worker_is_an_error(tmp_path):
    """Training does not wait for it."""
    # In a process of its own, since torch raises the error out of a signal handler.
    process = in_a_process(train_with_a_killed_worker, tmp_path)
    process.join(60)
    process.kill()  # if it waits
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "error.txt").exists()


def train_small(work_dir, **options):
    torch.set_num_threads(1)
    noisy_runner(work_dir, steps=200, loop=dict(val_interval=50), **options).train()


def test_ten_kills(tmp_path):
    """Each run starts, and the last ends with the parameters of a run without kills."""
    start = time.monotonic()
    in_a_process(train_small, tmp_path / "whole").join()
    whole = time.monotonic() - start
    chance = random.Random(0)
    ends = []
    while len(ends) < KILLS:
        process = in_a_process(train_small, tmp_path / "killed", resume=True)
        process.join(chance.uniform(0.1, 0.5) * whole)
        process.kill()
        process.join()
        ends.append(process.exitcode)
    process = in_a_process(train_small, tmp_path / "killed", resume=True)
    process.join()
    # A run that was done before its kill has ended well.
    assert process.exitcode == 0 and {-signal.SIGKILL} <= {*ends} <= {-signal.SIGKILL, 0}
    expected, found = (
        load_checkpoint(tmp_path / name / "iter_200.pth")["state_dict"]
        for name in ("whole", "killed")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


STEPS, INTERVAL = 50, 2


def start(config, work_dir, *arguments):
    """Start tools/train.py in a process of its own."""
    tool = [sys.executable, ROOT / "tools/train.py", config, "--work-dir", work_dir, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        tool, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process):
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]


def logged_steps(work_dir):
    """Iterations that the runs in a folder have logged, one list for each run that has begun."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    lines = [log.read_text().splitlines(keepends=True) for log in logs]
    return [[json.loads(x)["step"] for x in run if "loss" in x and x[-1] == "\n"] for run in lines]


@pytest.mark.slow
def test_ten_kills_of_the_tool(shapes, tmp_path):
    """Each run of HCFormer repeats at most an interval, and the last ends as without kills."""
    config = quick_config(shapes, tmp_path / "config", batch_size=2)
    config.train_cfg.update(max_iters=STEPS, val_interval=20)
    config.default_hooks.logger.interval = 1
    config.default_hooks.checkpoint = dict(
        type="hcformer_mm.ResumableCheckpointHook",
        interval=INTERVAL,
        by_epoch=False,
        max_keep_ckpts=2,
    )
    config.dump(tmp_path / "config.py")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(tmp_path / "config.py", whole))
    chance = random.Random(0)
    reached = 0
    for _ in range(KILLS):
        runs = len(logged_steps(killed))
        process = start(tmp_path / "config.py", killed, "--resume")
        wanted = chance.randint(0, 5)
        while wanted and (len(steps := logged_steps(killed)) == runs or len(steps[-1]) < wanted):
            assert process.poll() is None, process.stderr.read().decode()[-3000:]
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5 if wanted else 8.0))
        process.kill()
        process.communicate()
        steps = logged_steps(killed)
        if len(steps) > runs and steps[-1]:
            assert reached - INTERVAL < steps[-1][0] <= reached + 1
            reached = steps[-1][-1]
    assert INTERVAL < reached < STEPS
    finish(start(tmp_path / "config.py", killed, "--resume"))
    expected = load_checkpoint(whole / f"iter_{STEPS}.pth")["state_dict"]
    found = load_checkpoint(killed / f"iter_{STEPS}.pth")["state_dict"]
    assert list(found) == list(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
