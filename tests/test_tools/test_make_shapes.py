"""The command line of ``tools/dataset_converters/make_shapes.py``."""

import pytest

TOOL = "dataset_converters/make_shapes.py"


def test_makes_and_refuses(run_tool, tmp_path, capsys):
    out = tmp_path / "shapes"
    arguments = ("--out", out, "--num-train", 2, "--num-val", 1, "--size", 96, 128, "--workers", 1)
    run_tool(TOOL, *arguments)
    assert "2 training and 1 validation images in" in capsys.readouterr().out
    assert len(list((out / "train").iterdir())) == 2
    (out / "stale.txt").touch()
    with pytest.raises(SystemExit, match=f"make_shapes: expected a new folder, but {out} exists"):
        run_tool(TOOL, *arguments)
    assert (out / "stale.txt").exists()
    run_tool(TOOL, *arguments, "--overwrite")
    assert not (out / "stale.txt").exists()


def test_bad_number(run_tool, tmp_path):
    with pytest.raises(SystemExit, match="expected num_val of at least 1, got 0"):
        run_tool(TOOL, "--out", tmp_path / "shapes", "--num-val", 0)
