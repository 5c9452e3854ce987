"""The benchmark as a user runs it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import SHAPES_CONFIG

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/analysis_tools/benchmark.py"
FCN = "mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py"


def test_models_side_by_side(tmp_path):
    files = [tmp_path / "times.json", tmp_path / "times.md"]
    command = [
        *("model", SHAPES_CONFIG, FCN, SHAPES_CONFIG),
        *("--shape", "64", "96", "96", "64", "--threads", "1", "--repeats", "2"),
        *("--mode", "predict", "--dtype", "float32", "bfloat16", "--baseline", "2"),
        *("--fold-bn", "--channels-last", "--profile", "3", "--out", *map(str, files)),
    ]
    result = subprocess.run(
        [sys.executable, str(TOOL), *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]

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
    assert (conditions["BatchNorm"], conditions["memory"]) == ("folded", "channels-last")
    assert {"CPU", "torch", "rounds", "warm-up", "seed"} <= set(conditions)
    assert "--fold-bn" in report["command"]

    # On screen stands what the file holds, without the log of the initialisation.
    text = files[1].read_text()
    assert result.stdout.endswith(text + "\n")
    assert "timing predict 64x96 float32 1" in result.stdout.splitlines()
    assert "init_weights" not in result.stdout + result.stderr
    assert text.count(f"| {fcn} ") == len(rows) // 3


@pytest.fixture
def fails(monkeypatch, capsys):
    """Run the tool in this process, and return what it exits with and says."""

    def run(*arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [str(TOOL), "model", *arguments])
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
    ],
)
def test_wrong_arguments(fails, arguments, message):
    assert message in fails(*arguments)
