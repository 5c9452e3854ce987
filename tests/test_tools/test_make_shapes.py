"""The command line of ``tools/dataset_converters/make_shapes.py``."""

import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/dataset_converters/make_shapes.py"


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name="__main__")

    return run


def test_makes_and_refuses(run, tmp_path, capsys):
    out = tmp_path / "shapes"
    arguments = ("--out", out, "--num-train", 2, "--num-val", 1, "--size", 96, 128, "--workers", 1)
    run(*arguments)
    assert "2 training and 1 validation images in" in capsys.readouterr().out
    assert len(list((out / "train").iterdir())) == 2
    (out / "stale.txt").touch()
    with pytest.raises(SystemExit, match=f"make_shapes: expected a new folder, but {out} exists"):
        run(*arguments)
    assert (out / "stale.txt").exists()
    run(*arguments, "--overwrite")
    assert not (out / "stale.txt").exists()


def test_bad_number(run, tmp_path):
    with pytest.raises(SystemExit, match="expected num_val of at least 1, got 0"):
        run("--out", tmp_path / "shapes", "--num-val", 0)
