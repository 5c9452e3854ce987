"""`make quick`: the tiny model draws rendered images, with a browser and without."""

import sys
import webbrowser

import numpy as np
import pytest
import quick
from PIL import Image
from tiny import TINY, render_images

from hcformer_mm.datasets.ground_truth import open_ground_truth
from hcformer_mm.datasets.shapes import METAINFO
from hcformer_mm.datasets.shapes_writer import write_shapes
from hcformer_mm.structures.panoptic import Classes


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["quick.py", *map(str, arguments)])
    quick.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("quick")


def test_without_a_browser(monkeypatch, folder, capsys):
    run(monkeypatch, "--out", folder, "--no-open")
    output = capsys.readouterr().out
    assert f"open {folder / 'index.html'} in a browser" in output
    assert f"demo/explorer.py {TINY}" in output
    page = (folder / "index.html").read_text()
    assert page.count("<img ") == len(list(folder.glob("*.png"))) == 4
    assert f"<td>parameters</td><td>{3.9} M</td>" in page


def test_with_a_browser(monkeypatch, folder):
    served = []
    monkeypatch.setattr(quick, "write", lambda out: out / "index.html")
    monkeypatch.setattr(quick.explorer, "serve", served.append)
    run(monkeypatch, "--out", folder, "--open")
    (arguments,) = served
    assert arguments.open and arguments.config == TINY and arguments.checkpoint is None
    assert [path.name for path in arguments.examples] == sorted(
        path.name for path in (folder / "images").iterdir()
    )


def test_a_browser_needs_a_window(monkeypatch):
    def none():
        raise webbrowser.Error

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(webbrowser, "get", object)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not quick.has_browser()
    monkeypatch.setenv("DISPLAY", ":0")
    assert quick.has_browser()
    monkeypatch.setattr(webbrowser, "get", none)
    assert not quick.has_browser()


def test_failures_are_one_sentence(monkeypatch, folder):
    monkeypatch.setattr(quick, "find_weights", lambda config: folder / "none.pth")
    with pytest.raises(SystemExit, match=r"quick: no such checkpoint: .*none\.pth"):
        run(monkeypatch, "--out", folder, "--no-open")


@pytest.mark.slow
def test_images_are_those_of_the_standard_set(tmp_path):
    """Of its validation split, up to the compression of the set's files."""
    write_shapes(tmp_path / "set", num_train=1, num_val=45, workers=1)
    classes = Classes.from_metainfo(METAINFO)
    truth = open_ground_truth(tmp_path / "set/annotations/panoptic_val.json", classes)
    for path, own in render_images(tmp_path).items():
        image = np.array(Image.open(path)).astype(int)
        other = np.array(Image.open(tmp_path / f"set/val/{path.stem}.jpg")).astype(int)
        assert np.abs(image - other).mean() < 5
        expected = truth.read(path.name, image.shape[:2])
        labels = (np.vectorize(one.categories.get)(one.segments) for one in (own, expected))
        assert np.array_equal(*labels)
        assert len(own.categories) == len(expected.categories)
