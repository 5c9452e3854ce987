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


@pytest.mark.parametrize(
    ("option", "value", "numbers"),
    [
        ("--num-val", 0, "from 1 on"),
        ("--workers", 0, "from 1 on"),
        ("--seed", -1, f"from 0 to {2**32 - 1}"),
        ("--seed", 2**32, f"from 0 to {2**32 - 1}"),
    ],
)
def test_numbers_out_of_range(run_tool, tmp_path, capsys, option, value, numbers):
    with pytest.raises(SystemExit, match="2"):
        run_tool(TOOL, "--out", tmp_path / "shapes", option, value)
    assert f"{option}: expected an integer {numbers}, got '{value}'" in capsys.readouterr().err
