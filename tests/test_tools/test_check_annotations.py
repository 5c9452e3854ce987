"""The tools that check annotations report alike."""

import json
import shutil

import pytest
from PIL import Image

PANOPTIC = "dataset_converters/check_panoptic.py"
INSTANCES = "dataset_converters/check_instances.py"
SEMANTIC = "dataset_converters/check_semantic.py"


@pytest.fixture
def root(shapes, tmp_path):
    return shutil.copytree(shapes, tmp_path / "shapes")


@pytest.fixture
def commands(root):
    """The command line of each tool for the training split."""
    annotations, images = root / "annotations", root / "train"
    panoptic = (PANOPTIC, annotations / "panoptic_train.json", annotations / "panoptic_train")
    return {
        PANOPTIC: (*panoptic, "--img-dir", images),
        INSTANCES: (INSTANCES, annotations / "instances_train.json", "--img-dir", images),
        SEMANTIC: (SEMANTIC, images, root / "semantic/train", "--num-classes", 10),
    }


TOOLS = pytest.mark.parametrize("tool", [PANOPTIC, INSTANCES, SEMANTIC])


@TOOLS
@pytest.mark.parametrize("num_workers", [1, 2])
def test_clean(run_tool, commands, capsys, tool, num_workers):
    run_tool(*commands[tool], "--num-workers", num_workers)
    out, err = capsys.readouterr()
    assert "clean" in out
    assert len(err.splitlines()) <= 1  # no bar in a file


@TOOLS
def test_findings(run_tool, root, commands, capsys, tool):
    """A truncated image does not keep the others from being checked."""
    images = sorted((root / "train").glob("*.jpg"))
    images[0].write_bytes(images[0].read_bytes()[:-200])
    for image in images[1:]:
        Image.new("RGB", (5, 7)).save(image)
    with pytest.raises(SystemExit) as raised:
        run_tool(*commands[tool], "--limit", 1)
    name = tool.split("/")[1].removesuffix(".py")
    assert raised.value.code == f"{name}: 3 findings"
    out = capsys.readouterr().out
    assert f"{images[0]}: expected a whole image" in out
    assert "... and 1 more of this kind" in out
    assert "       1  error: unreadable file\n" in out
    assert "       2  error: size\n" in out


def test_notes_are_no_findings(run_tool, root, commands, capsys):
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 1]
    file.write_text(json.dumps(content))
    run_tool(*commands[INSTANCES])
    out = capsys.readouterr().out
    assert f"{file}: 1 of 3 images have no annotation" in out
    assert "       1  note: image without objects\n" in out
    assert "check_instances: clean" in out


def test_figures(run_tool, commands, capsys):
    run_tool(*commands[PANOPTIC], "--figures")
    out = capsys.readouterr().out
    assert "2 cells of stride 32 wide" in out
    assert "check_panoptic: clean" in out
    run_tool(*commands[PANOPTIC], "--figures", 64)
    assert "2 cells of stride 64 wide" in capsys.readouterr().out


@pytest.mark.parametrize("tool", [PANOPTIC, INSTANCES])
@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_no_coco_file(run_tool, root, commands, tool, text):
    file = commands[tool][1]
    file.write_text(text)
    with pytest.raises(SystemExit, match=f"check_.*: expected {file} to ") as raised:
        run_tool(*commands[tool])
    assert "\n" not in raised.value.code


@TOOLS
def test_missing_files(run_tool, root, commands, capsys, tool):
    missing = root / "nowhere"
    command = [tool, missing, *commands[tool][2:]]
    with pytest.raises(SystemExit) as raised:
        run_tool(*command)
    assert raised.value.code == 2
    kind = "folder" if tool == SEMANTIC else "file"
    assert f"expected a {kind}, got {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--num-workers", 0), "--num-workers: expected an integer from 1 on, got '0'"),
        (("--num-classes", 0), "--num-classes: expected an integer from 1 on, got '0'"),
        (("--limit", -1), "--limit: expected an integer from 0 on, got '-1'"),
    ],
)
def test_numbers_out_of_range(run_tool, commands, capsys, option, message):
    with pytest.raises(SystemExit, match="2"):
        run_tool(*commands[SEMANTIC], *option)
    assert message in capsys.readouterr().err
