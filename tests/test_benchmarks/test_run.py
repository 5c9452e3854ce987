"""The benchmark as a user runs it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.models import SHAPES_CONFIG

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "benchmarks/run.py"
FCN = "mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py"


def run(command):
    """Run the tool in a process of its own, and return what it says."""
    result = subprocess.run(
        [sys.executable, str(TOOL), *map(str, command)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def test_models_side_by_side(tmp_path):
    files = [tmp_path / "times.json", tmp_path / "times.md"]
    command = [
        *("model", SHAPES_CONFIG, FCN, SHAPES_CONFIG),
        *("--shape", "64", "96", "96", "64", "--threads", "1", "--repeats", "2"),
        *("--mode", "predict", "--dtype", "float32", "bfloat16", "--baseline", "2"),
        *("--fuse-conv-bn", "--channels-last", "--profile", "3", "--out", *files),
    ]
    result = run(command)
    report = json.loads(files[0].read_text())
    hcformer, fcn = Path(SHAPES_CONFIG).stem, FCN.rpartition("/")[2].removesuffix(".py")
    rows = report["results"]
    assert len(rows) == 3 * 2 * 2
    assert [row["name"] for row in rows[:3]] == [hcformer, fcn, f"{hcformer} (2)"]
    assert {(row["mode"], row["shape"], row["dtype"], row["threads"]) for row in rows} == {
        ("predict", shape, dtype, 1)
        for shape in ("64x96", "96x64")
        for dtype in ("float32", "bfloat16")
    }
    assert report["baseline"] == fcn
    for row in rows:
        assert len(row["seconds"]) == 2
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert (row["ratio"] == 1) == (row["name"] == fcn)
    assert len(report["profiles"]) == len(rows)
    operators = report["profiles"][0]["operators"]
    assert len(operators) == 3
    assert all(row["operator"] != "aten::native_batch_norm" for row in operators)
    conditions = report["conditions"]
    assert conditions["weights"] == "random, random, random"
    assert (conditions["BatchNorm"], conditions["memory"]) == ("fused", "channels-last")
    assert {"CPU", "torch", "rounds", "warm-up", "seed"} <= set(conditions)
    assert "--fuse-conv-bn" in report["command"]

    # On screen stands what the file holds, without the log of the initialization.
    text = files[1].read_text()
    assert result.stdout.endswith(text + "\n")
    assert "timing predict 64x96 float32 1" in result.stdout.splitlines()
    assert "init_weights" not in result.stdout + result.stderr
    assert text.count(f"| {fcn} ") == len(rows) // 3


def test_operators(tmp_path):
    file = tmp_path / "operators.json"
    result = run(
        [
            *("ops", "--shape", "32", "64", "--stride", "8", "--channels", "3", "4"),
            *("--kept-queries", "5", "--threads", "1", "--repeats", "2", "--out", file),
        ]
    )
    report = json.loads(file.read_text())
    rows = report["results"]
    found = {(row["operator"], row["pass"], row["channels"]) for row in rows}
    both = ("forward", "forward+backward")
    assert found == {
        *(("clustering", one, "-") for one in both),
        *(("decoding", one, channels) for one in both for channels in (3, 4)),
        *(("deform", one, "-") for one in both),
        ("post-processing", "forward", 5),
    }
    baselines = {row["operator"]: row["name"] for row in rows if row["ratio"] == 1}
    assert baselines == {
        "clustering": "listing, contiguous",
        "decoding": "listing, contiguous",
        "deform": "mmcv, contiguous",
        "post-processing": "mmdet",
    }
    for row in rows:
        assert row["extra_bytes"] > 0
        assert row["ns_per_pixel"] == pytest.approx(1e9 * row["median_s"] / (32 * 64))
        assert (row["extra_ratio"] == 1) >= (row["name"] == baselines[row["operator"]])
    assert "listing, contiguous for clustering; " in report["baseline"]
    assert "peak extra (MiB)" in result.stdout and "ns/pixel" in result.stdout


FAST = "@fuse-conv-bn@channels-last"
FROZEN = "".join(
    f"@model.backbone.backbone.{option}"
    for option in ("norm_eval=True", "norm_cfg.type=BN", "norm_cfg.requires_grad=False")
)


def test_training(tmp_path):
    file = tmp_path / "training.json"
    other = f"{SHAPES_CONFIG}@model.panoptic_head.decode_matched_only=False"
    run(
        [
            *(
                "train",
                SHAPES_CONFIG,
                other,
                SHAPES_CONFIG + FROZEN + FAST,
                "--shape",
                "64",
                "96",
                "--phase",
                "head",
                "step",
            ),
            *("--objects", "3", "--threads", "1", "--repeats", "2", "--out", file),
        ]
    )
    report = json.loads(file.read_text())
    rows = report["results"]
    name = Path(SHAPES_CONFIG).stem
    names = [name, name + other.removeprefix(SHAPES_CONFIG), name + FROZEN + FAST]
    assert [(row["phase"], row["name"]) for row in rows] == [
        (phase, name) for phase in ("head", "step") for name in names
    ]
    assert [row["ratio"] == 1 for row in rows] == [True, False, False] * 2
    # Decoding all masks takes more memory than decoding those that are needed.
    assert rows[1]["extra_bytes"] > rows[0]["extra_bytes"]
    assert rows[3]["extra_bytes"] > rows[0]["extra_bytes"]
    assert "resident_bytes" not in rows[0]
    # A process with PyTorch in it, the model and its gradients.
    assert all(row["resident_bytes"] > row["extra_bytes"] + 100 * 2**20 for row in rows[3:])
    assert report["conditions"]["memory"] == "contiguous, contiguous, channels-last"
    assert report["conditions"]["objects"] == "3 on each image"


def test_a_model_prepared_and_one_as_it_is(tmp_path):
    file = tmp_path / "models.json"
    run(
        [
            *(
                "model",
                SHAPES_CONFIG,
                SHAPES_CONFIG + FAST,
                "--mode",
                "predict",
            ),
            *("--shape", "64", "96", "--kept-queries", "5", "--threads", "1", "--repeats", "1"),
            *("--profile", "100", "--out", file),
        ]
    )
    report = json.loads(file.read_text())
    assert report["conditions"]["BatchNorm"] == "as configured, fused"
    assert report["conditions"]["memory"] == "contiguous, channels-last"
    assert report["conditions"]["kept queries"] == "5"
    norms = [
        "aten::batch_norm" in {o["operator"] for o in p["operators"]} for p in report["profiles"]
    ]
    assert norms == [True, False]


@pytest.fixture
def fails(monkeypatch, capsys):
    """Run the tool in this process, and return what it exits with and says."""

    def run(*arguments, subcommand="model"):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [str(TOOL), subcommand, *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(TOOL), run_name="__main__")
        assert stopped.value.code
        return f"{stopped.value.code} {capsys.readouterr().err}"

    return run


SHAPE = ("--shape", "64", "96")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SHAPES_CONFIG, *SHAPE, "--repeats", "0"), "--repeats: expected an integer >= 1, got '0'"),
        ((SHAPES_CONFIG, *SHAPE, "--threads", "two"), "--threads: expected an integer >= 1"),
        ((SHAPES_CONFIG, *SHAPE, "--warmup", "-1"), "expected an integer >= 0, got '-1'"),
        ((SHAPES_CONFIG, *SHAPE, "--out", "a.txt"), "expected a file *.json or *.md, got 'a.txt'"),
        ((SHAPES_CONFIG, "--shape", "64"), "pairs H W, multiples of 32, got [64]"),
        ((SHAPES_CONFIG, "--shape", "64", "90"), "pairs H W, multiples of 32, got [64, 90]"),
        ((SHAPES_CONFIG, *SHAPE, "--baseline", "2"), "expected --baseline of 1 to 1, got 2"),
        ((SHAPES_CONFIG, *SHAPE, "--checkpoints", "random", "random"), "1 --checkpoints, one per"),
        ((SHAPES_CONFIG, *SHAPE, "--checkpoints", "no.pth"), "no such checkpoint: no.pth"),
        (
            (SHAPES_CONFIG, *SHAPE, "--cfg-options", "model.backbone.hierarchical_level=9"),
            "expected hierarchical_level between 0 and 3",
        ),
        (("nowhere.py", *SHAPE), "expected a config file or package::path, got 'nowhere.py'"),
        (("mmseg::nowhere.py", *SHAPE), "got 'mmseg::nowhere.py': no "),
        ((f"{SHAPES_CONFIG}@fast", *SHAPE), "expected CONFIG, and after each @ key=value"),
        ((FCN, *SHAPE, "--kept-queries", "5"), "expected a detector with a linear panoptic_head"),
    ],
)
def test_wrong_arguments(fails, arguments, message):
    assert message in fails(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "64", "90"), "pairs H W, multiples of 32, got [64, 90]"),
        (("--operator", "attention"), "invalid choice: 'attention'"),
        (("--stride", "32"), "invalid choice: 32"),
        (("--channels", "0"), "--channels: expected an integer >= 1, got '0'"),
    ],
)
def test_wrong_arguments_of_operators(fails, arguments, message):
    assert message in fails(*arguments, subcommand="ops")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SHAPES_CONFIG, *SHAPE, "--baseline", "2"), "expected --baseline of 1 to 1, got 2"),
        ((SHAPES_CONFIG, *SHAPE, "--batch", "0"), "--batch: expected an integer >= 1, got '0'"),
        ((f"{SHAPES_CONFIG}@fast", *SHAPE), "key=value, fuse-conv-bn or channels-last, got"),
        (
            (SHAPES_CONFIG, *SHAPE, "--fuse-conv-bn"),
            "expected frozen BatchNorm to fuse for training",
        ),
    ],
)
def test_wrong_arguments_of_training(fails, arguments, message):
    assert message in fails(*arguments, subcommand="train")
