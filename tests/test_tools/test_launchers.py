"""Scripts that start several processes: by torchrun, and by a stand-in for Slurm's ``srun``."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch

from tests.helpers.installing import executable
from tests.helpers.tools import ROOT, quick_config, read_metrics, run_tool

SCRIPTS = sorted(ROOT.glob("tools/*.sh"))


def run(script, *arguments, **variables):
    return subprocess.run(
        ["bash", f"tools/{script}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_scripts_are_found():
    names = {path.name for path in SCRIPTS}
    assert names >= {"dist_train.sh", "dist_test.sh", "slurm_train.sh", "slurm_test.sh"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    checker = ["shellcheck"] if shutil.which("shellcheck") else ["bash", "-n"]
    done = subprocess.run([*checker, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_usage(script):
    done = run(script.name, "config.py")
    assert done.returncode == 2
    assert f"usage: bash tools/{script.name} " in done.stderr


@pytest.fixture
def recorded(tmp_path):
    """A stand-in for a program that writes its arguments to a file, one a line."""

    def make(name):
        program = executable(tmp_path / name, f'printf "%s\\n" "$@" > {tmp_path}/arguments')
        return program, lambda: (tmp_path / "arguments").read_text().splitlines()

    return make


@pytest.mark.parametrize(
    ("script", "own", "last"),
    [
        ("slurm_train.sh", "work dir", ["--work-dir", "work dir"]),
        ("slurm_test.sh", "weights.pth", ["weights.pth"]),
    ],
)
def test_slurm(recorded, script, own, last):
    program, arguments = recorded("srun")
    path = f"{program.parent}:{os.environ['PATH']}"
    call = (script, "gpu", "my job", "config.py", own, "--cfg-options", "a=1", "b='x y'")
    assert run(*call, PATH=path).returncode == 0
    tool = script.replace("slurm_", "tools/").replace(".sh", ".py")
    expected = [
        *("--partition=gpu", "--job-name=my job", "--gres=gpu:8", "--ntasks=8"),
        *("--ntasks-per-node=8", "--cpus-per-task=5", "--kill-on-bad-exit=1"),
        *(sys.executable, "-u", tool, "config.py", *last, "--launcher", "slurm"),
        *("--cfg-options", "a=1", "b='x y'"),
    ]
    assert arguments() == expected
    variables = dict(GPUS="4", CPUS_PER_TASK="2", SRUN_ARGS="--qos=low --time=60")
    assert run(*call, PATH=path, **variables).returncode == 0
    changed = ["--gres=gpu:4", "--ntasks=4", "--ntasks-per-node=4", "--cpus-per-task=2"]
    assert arguments()[2:9] == [*changed, "--kill-on-bad-exit=1", "--qos=low", "--time=60"]


@pytest.mark.parametrize(
    ("script", "own"), [("dist_train.sh", []), ("dist_test.sh", ["weights.pth"])]
)
def test_several_machines(recorded, script, own):
    program, arguments = recorded("python")
    variables = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", PORT="12345")
    run(script, "config.py", *own, 8, "--work-dir", "a b", PYTHON=program, **variables)
    tool = script.replace("dist_", "tools/").replace(".sh", ".py")
    assert arguments() == [
        *("-m", "torch.distributed.run", "--nnodes=2", "--node_rank=1"),
        *("--master_addr=10.0.0.1", "--master_port=12345", "--nproc_per_node=8"),
        *(tool, "config.py", *own, "--launcher", "pytorch", "--work-dir", "a b"),
    ]


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory):
    """A Shapes config for one iteration on the CPU."""
    folder = tmp_path_factory.mktemp("launchers")
    config = quick_config(shapes, folder / "work_dir")
    config.train_cfg.update(max_iters=1, val_interval=1)
    config.dump(folder / "config.py")
    return folder / "config.py"


@pytest.mark.slow
def test_two_processes_on_the_cpu(config, tmp_path):
    """Two processes test three images: the metrics count each of them once."""
    gloo = ("--cfg-options", "env_cfg.dist_cfg.backend=gloo")
    done = run("dist_train.sh", config, 2, *gloo, PORT=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    weights = config.parent / "work_dir/iter_1.pth"
    together, alone = tmp_path / "together", tmp_path / "alone"
    done = run("dist_test.sh", config, weights, 2, "--work-dir", together, *gloo, PORT=free_port())
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Iter(test) [2/2]" in done.stdout + done.stderr
    run_tool("tools/test.py", config, weights, "--work-dir", alone)
    expected = read_metrics(alone)["mIoU"]
    assert read_metrics(together)["mIoU"] == pytest.approx(expected, abs=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_gpus_are_the_default(config):
    """Without GPUs, the error says what to add."""
    with pytest.raises(SystemExit, match=r"add --cfg-options env_cfg\.dist_cfg\.backend=gloo"):
        run_tool("tools/train.py", config, "--launcher", "pytorch")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])
