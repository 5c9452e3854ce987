"""Command line of demo/video_demo.py."""

import json
import sys

import mmcv
import pytest
import video_demo

from tests.helpers.moving_shapes import moving_shapes
from tests.helpers.predictions import write_model, write_video


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    frames = moving_shapes(0, frames=6, things=2, size=(64, 96))
    write_video(tmp_path / "street.avi", [frame.image for frame in frames])  # 5 frames a second

    def run(video, *arguments, files=model):
        line = ["video_demo", video, *files, *arguments, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", [str(word) for word in line])
        video_demo.main()

    return run


def test_a_video_into_a_folder(run, tmp_path, capsys):
    run("street.avi", "--out", "out", "--fps", "2.5", "--batch-size", "2")
    content = json.loads((tmp_path / "out" / "street.json").read_text())
    names = ["street_000000.png", "street_000002.png", "street_000004.png"]
    assert content["videos"][0]["file_names"] == names
    captured = capsys.readouterr()
    assert f"{len(content['annotations'])} objects in 3 frames, in out" in captured.out
    assert "3/3" in captured.err
    assert mmcv.VideoReader(str(tmp_path / "out" / "street.mp4")).fps == 2.5


def test_mots_without_a_drawing_into_the_default_folder(run, tmp_path):
    run("street.avi", "--format", "mots", "--no-draw", "--object-mask-thr", "0.1")
    assert [path.name for path in (tmp_path / "work_dirs/video_demo").iterdir()] == ["street.txt"]


def test_errors_end_in_one_line(run):
    with pytest.raises(SystemExit, match=r"video_demo: no such image: nowhere\.avi"):
        run("nowhere.avi")
    with pytest.raises(SystemExit, match="video_demo: expected fps of at most the video's 5, got"):
        run("street.avi", "--fps", "30")
    with pytest.raises(SystemExit, match=r"video_demo: .*nowhere\.pth"):
        run("street.avi", files=("hcformer_r18_shapes-panoptic", "nowhere.pth"))
