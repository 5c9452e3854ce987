"""The command line of ``tools/dataset_converters/panoptic_to_instances.py``."""

import json

import pytest

TOOL = "dataset_converters/panoptic_to_instances.py"


def test_writes_and_refuses(run_tool, shapes, tmp_path, capsys):
    panoptic, out = shapes / "annotations/panoptic_val.json", tmp_path / "instances.json"
    run_tool(TOOL, panoptic, panoptic.with_suffix(""), out, "--num-workers", 1)
    expected = json.loads((shapes / "annotations/instances_val.json").read_text())
    assert json.loads(out.read_text()) == expected
    assert f"{len(expected['annotations'])} instances in {out}" in capsys.readouterr().out
    out.unlink()
    with pytest.raises(SystemExit, match=r"panoptic_to_instances: expected .* segments_info"):
        run_tool(TOOL, shapes / "annotations/instances_val.json", panoptic.with_suffix(""), out)
    assert not out.exists()
    with pytest.raises(SystemExit, match=r"expected another file to write to than .*panoptic_val"):
        run_tool(TOOL, panoptic, panoptic.with_suffix(""), panoptic)
