"""tools/visualize_clusters.py on untrained models: images drawn, files written, errors."""

import json
import runpy
import shutil
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from hcformer_mm.apis.cluster_inferencer import ClusterInferencer
from hcformer_mm.apis.inference import build_model
from hcformer_mm.apis.inputs import open_images
from tests.helpers.predictions import write_video

ROOT = Path(__file__).parents[2]
PANOPTIC = "configs/shapes/hcformer_r18_shapes-panoptic.py"
INSTANCE = "configs/shapes/hcformer_r18_shapes-instance.py"
SEMANTIC = "configs/shapes/hcformer_r18_shapes-semantic.py"
PER_PIXEL = "configs/shapes/hc-fcn32s_r18_shapes-semantic.py"
CachedInferencer = lru_cache(ClusterInferencer)  # builds each model once


@pytest.fixture
def run(run_tool, monkeypatch):
    """Run the tool, with small panels."""
    monkeypatch.setattr("hcformer_mm.apis.cluster_inferencer.ClusterInferencer", CachedInferencer)

    def run(*arguments):
        run_tool("visualize_clusters.py", *arguments, "--side", 96, "--device", "cpu")

    return run


def read(path):
    return np.asarray(Image.open(path))


def test_a_sheet_for_each_image_of_a_folder(run, shapes, checkpoint, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    gt = shapes / "annotations/panoptic_val.json"
    arguments = (PANOPTIC, checkpoint(PANOPTIC), "--img", shapes / "val", "--out", out)
    run(*arguments, "--gt", gt, "--batch-size", 2)
    with_gt = {path.name: read(path) for path in out.iterdir()}
    assert sorted(with_gt) == ["000000.png", "000001.png", "000002.png"]
    # Images of about 96 × 72: four rows of four columns.
    height, width, _ = with_gt["000000.png"].shape
    assert 4 * 80 < width < 6 * 96 and 4 * 60 < height < 6 * 96
    printed = capsys.readouterr()
    assert "3/3" in printed.err and f"3 images in {out}" in printed.out

    run(*arguments, "--gt", gt, "--batch-size", 1)
    for name, one in with_gt.items():
        assert np.array_equal(read(out / name), one)
    run(*arguments)
    assert len(read(out / "000000.png")) < 0.85 * height  # no errors, no ground truth


def test_a_broken_image_of_a_folder_is_counted(run, shapes, checkpoint, tmp_path):
    folder, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(shapes / "val", folder)
    whole = (folder / "000001.jpg").read_bytes()
    (folder / "000001.jpg").write_bytes(whole[: len(whole) // 2])
    with (
        pytest.warns(UserWarning, match=r"skipped: .*000001\.jpg"),
        pytest.raises(SystemExit, match="1 of 3 images could not be read"),
    ):
        run(PANOPTIC, checkpoint(PANOPTIC), "--img", folder, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["000000.png", "000002.png"]


def test_layout_and_connected_parts(run, shapes, checkpoint, tmp_path):
    image, gt = shapes / "val/000000.jpg", shapes / "annotations/panoptic_val.json"
    arguments = (PANOPTIC, checkpoint(PANOPTIC), "--img", image, "--gt", gt, "--out", tmp_path)
    run(*arguments, "--layout", "figure-5")
    plain = read(tmp_path / "000000.png")
    assert len(plain) < 3.5 * 96  # two rows
    run(*arguments, "--layout", "figure-5", "--connected")
    assert not np.array_equal(read(tmp_path / "000000.png"), plain)


@pytest.mark.parametrize(
    ("config", "gt"),
    [
        (INSTANCE, "annotations/instances_val.json"),
        (SEMANTIC, "semantic/val"),
        (SEMANTIC, "annotations/panoptic_val.json"),
        (PER_PIXEL, "semantic/val"),
    ],
)
def test_models_of_every_kind(run, shapes, checkpoint, tmp_path, config, gt):
    image = shapes / "val/000001.jpg"
    arguments = (config, checkpoint(config), "--img", image, "--out", tmp_path)
    run(*arguments, "--gt", shapes / gt)
    full = len(read(tmp_path / "000001.png"))
    run(*arguments)
    assert full > len(read(tmp_path / "000001.png"))


def test_images_of_one_name_in_two_folders(run, shapes, checkpoint, tmp_path):
    """Each has its own sheet with its own ground truth."""
    first = shapes / "semantic/val/000000.png"
    flipped = tmp_path / "flipped.png"
    Image.fromarray(np.fliplr(read(first))).save(flipped)
    sheets = {}
    for maps in ((first, flipped), (flipped, first)):
        root = tmp_path / maps[0].stem
        for folder, label_map in zip("ab", maps, strict=True):
            for kind, file in (("images", shapes / "val/000000.jpg"), ("maps", label_map)):
                copied = root / kind / folder / f"0001{file.suffix}"
                copied.parent.mkdir(parents=True)
                shutil.copy(file, copied)
        images = (root / "images/a", root / "images/b")
        arguments = (SEMANTIC, checkpoint(SEMANTIC), "--img", *images, "--gt", root / "maps")
        run(*arguments, "--layout", "figure-5", "--out", root / "out")
        for folder, label_map in zip("ab", maps, strict=True):
            sheet = read(root / f"out/{folder}/0001.png")
            assert np.array_equal(sheets.setdefault(label_map, sheet), sheet)
    assert not np.array_equal(*sheets.values())
    (root / "maps/b/0001.png").unlink()
    with pytest.raises(SystemExit, match=r"its own for each image in .*, got one for .*a/0001\.j"):
        run(*arguments, "--out", root / "none")


def test_instances_below_the_threshold_are_not_drawn(run, shapes, checkpoint, tmp_path):
    image = shapes / "val/000000.jpg"
    arguments = (INSTANCE, checkpoint(INSTANCE), "--img", image, "--out", tmp_path)
    sheets = []
    for threshold in (0, 1):
        run(*arguments, "--score-thr", threshold)
        sheets.append(read(tmp_path / "000000.png"))
    none = sheets[1]
    assert not np.array_equal(*sheets)
    # The prediction, second of the first column, is gray from top to bottom.
    middle = none[len(none) // 3 : len(none) // 2, 20:90]
    assert (middle == middle[..., :1]).all()


def test_frames_of_a_video(run, checkpoint, tmp_path):
    frames = [np.full((72, 96, 3), value, np.uint8) for value in (60, 120)]
    video = write_video(tmp_path / "street.avi", frames)
    arguments = (PANOPTIC, checkpoint(PANOPTIC), "--img", video)
    out = tmp_path / "out"
    run(*arguments, "--out", out)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["street_000000.png", "street_000001.png"]
    with pytest.raises(SystemExit, match="frames of a video have no ground truth"):
        run(*arguments, "--out", out, "--gt", tmp_path)
    (tmp_path / "b").mkdir()
    shutil.copy(video, tmp_path / "b")
    with pytest.raises(SystemExit, match="got two called street_000000; draw the videos separ"):
        run(*arguments, tmp_path / "b" / video.name, "--out", tmp_path / "both")


def test_labels_that_count_from_1(tmp_path):
    """The command line or the checkpoint's metainfo asks for reduce_zero_label."""
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(tmp_path / "a.png")
    tool = runpy.run_path(str(ROOT / "tools/visualize_clusters.py"))
    classes = SimpleNamespace(names=["one"])
    for flag, meta in ((True, {}), (False, dict(reduce_zero_label=True)), (False, {})):
        inferencer = SimpleNamespace(
            classes=classes, model=SimpleNamespace(dataset_meta=dict(classes=("one",), **meta))
        )
        args = SimpleNamespace(gt=tmp_path, reduce_zero_label=flag)
        truth = tool["read_ground_truth"](args, inferencer, open_images([tmp_path / "a.png"]))
        if flag or meta:
            assert truth.read("a.jpg", (1, 2)).segments.tolist() == [[255, 0]]
        else:
            with pytest.raises(ValueError, match="labels below 1,"):
                truth.read("a.jpg", (1, 2))


def test_no_sheet_replaces_an_image(run, shapes, checkpoint, tmp_path):
    image = tmp_path / "a.png"
    Image.open(shapes / "val/000000.jpg").save(image)
    content = image.read_bytes()
    with pytest.raises(SystemExit, match=r"would replace an image, got .*, which has .*a\.png;"):
        run(PANOPTIC, checkpoint(PANOPTIC), "--img", tmp_path, "--out", tmp_path)
    assert image.read_bytes() == content


def test_images_without_ground_truth_are_named_first(run, shapes, checkpoint, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(shapes / "val", images)
    for name in "abcde":
        shutil.copy(images / "000000.jpg", images / f"{name}.jpg")
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"no ground truth of a\.jpg, b\.jpg, c\.jpg and 2 more"):
        run(
            *(PANOPTIC, checkpoint(PANOPTIC), "--img", images, "--out", out),
            *("--gt", shapes / "annotations/panoptic_val.json"),
        )
    assert not out.exists()


def test_errors_are_one_line(run, shapes, checkpoint, tmp_path):
    out, image = tmp_path / "out", shapes / "val/000000.jpg"
    weights = checkpoint(PANOPTIC)
    (tmp_path / "no.json").write_text(json.dumps({"images": []}))
    Path(tmp_path / "broken.jpg").write_bytes(b"no image")
    for arguments, message in (
        ((PANOPTIC, weights, "--img", "nothing.jpg"), "no such image: nothing.jpg"),
        (("nowhere", weights, "--img", image), "expected a config file"),
        ((PANOPTIC, tmp_path / "no.pth", "--img", image), "no.pth"),
        ((PANOPTIC, checkpoint(INSTANCE), "--img", image), "does not fit"),
        (
            (PANOPTIC, weights, "--img", image, "--gt", tmp_path / "no.json"),
            "to have a list of categories",
        ),
        ((PANOPTIC, weights, "--img", image, "--gt", "nowhere"), "no such ground truth: nowhere"),
        ((PANOPTIC, weights, "--img", image, image), "both be called 000000"),
        (
            (PANOPTIC, weights, "--img", image, "--font", tmp_path / "no.json"),
            "expected a font that scales, got",
        ),
    ):
        with pytest.raises(SystemExit) as exit_:
            run(*arguments, "--out", out)
        assert str(exit_.value).startswith("visualize_clusters: ")
        assert message in str(exit_.value)
        assert not out.exists()
    with pytest.raises(SystemExit, match=r"OpenCV can read, got .*broken\.jpg"):
        run(PANOPTIC, weights, "--img", tmp_path / "broken.jpg", "--out", out)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--score-thr", 7, "a number from 0 to 1, got '7'"),
        ("--score-thr", "nan", "a number from 0 to 1, got 'nan'"),
        ("--batch-size", 0, "an integer from 1 on, got '0'"),
        ("--side", 0.5, "an integer from 1 on, got '0.5'"),
    ],
)
def test_numbers_out_of_range(run, tmp_path, capsys, option, value, message):
    with pytest.raises(SystemExit, match="2"):
        run("config", "weights", "--img", "image", "--out", tmp_path, option, value)
    assert f"argument {option}: expected {message}" in capsys.readouterr().err


def test_model_without_clusters(run, shapes, tmp_path):
    config = Config.fromfile(ROOT / PANOPTIC)
    config.model.backbone.hierarchical_level = 0
    config.dump(tmp_path / "flat.py")
    torch.save({"state_dict": build_model(config).state_dict()}, tmp_path / "flat.pth")
    with pytest.raises(SystemExit, match="HCBackbone with hierarchical_level >= 1"):
        run(
            *(tmp_path / "flat.py", tmp_path / "flat.pth"),
            *("--img", shapes / "val/000000.jpg", "--out", tmp_path / "out"),
        )
