"""Command line of demo/image_demo.py."""

import errno
import json
import os
import sys

import image_demo
import mmcv
import numpy as np
import pytest
from PIL import Image

from hcformer_mm.apis import HCFormerInferencer
from hcformer_mm.visualization import FigureStyle
from tests.helpers.predictions import scene, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(2):
        mmcv.imwrite(scene(i), str(folder / f"scene{i}.png"))
    return folder


@pytest.fixture
def run(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(image, *arguments, files=model):
        line = ["image_demo", image, *files, *arguments, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in line])
        image_demo.main()

    return run


def test_an_image_into_a_file(run, model, images, tmp_path, capsys):
    run(images / "scene0.png", "--out", "deep/scene.png")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["scene.png"]
    assert capsys.readouterr().out.splitlines()[-1] == "deep/scene.png"
    inferencer = HCFormerInferencer(*model, "cpu")
    (sample,) = inferencer(images / "scene0.png")
    image = np.asarray(Image.open(images / "scene0.png"))
    drawn = np.asarray(Image.open(tmp_path / "deep" / "scene.png"))
    assert np.array_equal(drawn, inferencer.draw(image, sample))


def test_a_folder_into_a_folder(run, images, tmp_path, capsys):
    categories = HCFormerInferencer("hcformer_r18_shapes-panoptic").classes.names
    content = dict(
        images=[dict(id=7 + i, file_name=f"scene{i}.png") for i in range(2)],
        categories=[dict(id=i, name=name) for i, name in enumerate(categories)],
    )
    (tmp_path / "gt.json").write_text(json.dumps(content))
    options = ["--batch-size", "2", "--dtype", "bfloat16", "--ann-file", "gt.json"]
    run(images, "--out", "out.v2", *options)
    names = ["scene0.png", "scene1.png"]
    assert sorted(path.name for path in (tmp_path / "out.v2" / "vis").iterdir()) == names
    entries = json.loads((tmp_path / "out.v2" / "panoptic.json").read_text())["images"]
    assert [image["id"] for image in entries] == [7, 8]
    captured = capsys.readouterr()
    assert "2 images in out.v2/vis" in captured.out
    assert "2/2" in captured.err


def test_figures_and_tables(run, model, images, tmp_path):
    image = images / "scene0.png"
    look = ["--draw-mode", "contours", "--palette", "petroff10", "--enlarge", 400, "--no-names"]
    look += ["--legend", "--scale-bar", "2.5", "µm"]
    run(image, "--out", "drawn.png", *look)
    run(image, "--out", "out", *look, "--tables", "csv", "geojson")
    drawn = np.asarray(Image.open(tmp_path / "drawn.png"))
    style = FigureStyle("contours", "petroff10", 400, False, True, (2.5, "µm"))
    inferencer = HCFormerInferencer(*model, "cpu")
    (sample,) = inferencer(image)
    assert np.array_equal(
        drawn, inferencer.draw(np.asarray(Image.open(image)), sample, style=style)
    )
    assert np.array_equal(drawn, np.asarray(Image.open(tmp_path / "out" / "vis" / "scene0.png")))
    features = json.loads((tmp_path / "out" / "geojson" / "scene0.geojson").read_text())["features"]
    rows = (tmp_path / "out" / "objects.csv").read_text().splitlines()
    assert len(rows) == 1 + len(features) > 1
    for words, message in (
        (["--out", "drawn.png", "--tables", "csv"], "a folder for results with --tables"),
        (["--scale-bar", "four", "µm"], "for --scale-bar, such as 4 µm, got four µm"),
        (["--palette", "rainbow"], "expected a palette of matplotlib"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(image, *words)
    with pytest.raises(ValueError, match=r"expected out_dir for tables, got tables=\['csv'\]"):
        inferencer(image, tables=["csv"])


def test_a_large_image_in_tiles(run, model, images, tmp_path):
    image, sizes = images / "scene0.png", ["--tile", "64", "--tile-overlap"]
    run(image, "--out", "out", *sizes, "16")
    (sample,) = HCFormerInferencer(*model, "cpu")(image, tile_size=64, tile_overlap=16)
    labels = np.asarray(Image.open(tmp_path / "out" / "semantic" / "scene0.png"))
    assert np.array_equal(labels, sample.pred_sem_seg.sem_seg[0].numpy())
    with pytest.raises(SystemExit, match="image_demo: expected tile_overlap from 1 to 63"):
        run(image, *sizes, "64")


def test_thresholds_and_confidence(run, model, images, tmp_path):
    """In a folder, and in a drawing; by options of their own and by the config's."""
    words = ["--object-mask-thr", "0.99", "--iou-thr=0.2", "--max-per-image", "5"]
    run(images, "--out", "out", *words, "--confidence")
    options = dict(object_mask_thr=0.99, iou_thr=0.2, max_per_image=5)
    samples = HCFormerInferencer(*model, "cpu")(images, **options, confidence=True)
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    for i, (sample, entry) in enumerate(zip(samples, content, strict=True)):
        scores = [segment["score"] for segment in entry["segments_info"]]
        assert scores == sample.pred_segments.scores.tolist()
        written = np.asarray(Image.open(tmp_path / f"out/confidence/scene{i}.png"))
        assert np.abs(written / 255 - sample.pred_confidence.data[0].numpy()).max() < 0.003
    assert 0 < len(json.loads((tmp_path / "out" / "instances.json").read_text())) <= 10
    run(images / "scene0.png", "--out", "a.png", *words)
    changes = [f"model.test_cfg.{name}={value}" for name, value in options.items()]
    run(images / "scene0.png", "--out", "b.png", "--cfg-options", *changes)
    run(images / "scene0.png", "--out", "c.png")
    run(images / "scene0.png", "--out", "d.png", "--draw-scores")
    run(images / "scene0.png", "--out", "e", "--draw-scores")
    (tmp_path / "e/vis/scene0.png").rename(tmp_path / "e.png")
    one, same, other, scored, written = (
        np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abcde"
    )
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(scored, written) and not np.array_equal(scored, other)


@pytest.mark.parametrize(("words", "fast"), [((), True), (("--no-fast",), False)])
def test_fast_by_default(words, fast, run, images, monkeypatch):
    def inferencer(*args, **options):
        given.append(options["fast"])
        raise ValueError("enough")

    given = []
    monkeypatch.setattr(image_demo, "HCFormerInferencer", inferencer)
    with pytest.raises(SystemExit, match="enough"):
        run(images / "scene0.png", *words)
    assert given == [fast]


def test_the_default_folder(run, images, tmp_path):
    run(images / "scene1.png")
    assert (tmp_path / "work_dirs" / "image_demo" / "vis" / "scene1.png").is_file()


def test_a_folder_with_a_broken_image(run, images, tmp_path, capsys):
    """Left out and listed; all else is written."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(2):
        (folder / f"scene{i}.png").write_bytes((images / f"scene{i}.png").read_bytes())
    mmcv.imwrite(scene(2), str(folder / "half.jpg"))
    content = (folder / "half.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(content[: len(content) // 2])
    with (
        pytest.warns(UserWarning, match=r"skipped: .*half\.jpg"),
        pytest.raises(
            SystemExit, match=r"image_demo: 1 of 3 images could not be read: .*images.json"
        ),
    ):
        run(folder, "--out", "out")
    assert "2 images in out/vis" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["scene0.png", "scene1.png"]
    ((name, reason),) = [entry.values() for entry in content["failed"]]
    assert name == "half.jpg" and "half.jpg" in reason
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]) == 2
    with pytest.raises(SystemExit, match=r"image_demo: expected a complete image .*half\.jpg"):
        run(folder, "--out", "strict", "--strict")
    assert not (tmp_path / "strict" / "images.json").exists()
    with pytest.raises(SystemExit, match=r"image_demo: expected a complete image .*half\.jpg"):
        run(folder / "half.jpg")


def test_results_that_cannot_be_written(run, images, tmp_path, monkeypatch):
    """Said before the model runs, if it can be known; without a traceback in any case."""
    (tmp_path / "file").write_text("file")
    calls = []
    monkeypatch.setattr(HCFormerInferencer, "_forward", lambda *_: calls.append(1))
    for out in ("file", "file/out", "file/out.png"):
        with pytest.raises(SystemExit, match=r"image_demo: expected a folder .*for the results"):
            run(images / "scene0.png", "--out", out)
    assert not calls
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(SystemExit, match=r"image_demo: .*No space left on device.*scene0\.png"):
        run(images, "--out", "out")
    assert list((tmp_path / "out").rglob("*.*")) == []


@pytest.mark.parametrize("value", ["7", "-0.1", "nan", "much"])
@pytest.mark.parametrize("name", ["score-thr", "object-mask-thr", "iou-thr"])
def test_scores_out_of_range(run, images, tmp_path, capsys, name, value):
    with pytest.raises(SystemExit, match="2"):
        run(images / "scene0.png", f"--{name}={value}")
    assert f"expected a number from 0 to 1, got '{value}'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_errors_end_in_one_line(run, model, images, tmp_path):
    with pytest.raises(SystemExit, match=r"image_demo: no such image: nowhere\.png"):
        run("nowhere.png")
    with pytest.raises(SystemExit, match="image_demo: expected a folder for several images"):
        run(images, "--out", "out.png")
    with pytest.raises(SystemExit, match="image_demo: expected a folder for results"):
        run(images / "scene0.png", "--out", "out.png", "--ann-file", "gt.json")
    with pytest.raises(SystemExit, match=r"image_demo: expected a folder .* with --confidence"):
        run(images / "scene0.png", "--out", "out.png", "--confidence")
    with pytest.raises(SystemExit, match="image_demo: expected another file than the image"):
        run(images / "scene0.png", "--out", images / "scene0.png")
    one = tmp_path.with_name("one") / "a.png"
    one.parent.mkdir()
    one.write_bytes((images / "scene0.png").read_bytes())
    with pytest.raises(SystemExit, match="image_demo: expected another file than the image"):
        run(one.parent, "--out", one)
    with pytest.raises(SystemExit, match="image_demo: expected a config file"):
        run(images, files=("nowhere", model[1]))
    with pytest.raises(SystemExit, match=r"image_demo: .*nowhere\.pth"):
        run(images, files=(model[0], "nowhere.pth"))
    assert list(tmp_path.iterdir()) == []
