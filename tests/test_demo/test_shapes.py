"""The steps of `make demo`: progress, failures, the page; and all of it with a short training."""

import json
import re
import sys

import pytest
import shapes
from mmengine.config import Config
from PIL import Image

from tests.helpers.installing import ROOT

RUN = "20260101_000000/vis_data"


@pytest.fixture
def demo(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "ROOT", tmp_path)
    monkeypatch.setattr(shapes, "read_config", lambda path: Config.fromfile(ROOT / shapes.CONFIG))
    return shapes.Demo(tmp_path / "work")


def log(work_dir, run, *steps, rest=""):
    path = work_dir / run / "scalars.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f'{{"loss": 1.5, "step": {step}}}\n' for step in steps) + rest)


def draw(work_dir, run, iteration):
    path = work_dir / run / f"vis_image/val_clusters_000000_{iteration}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)
    return path


def test_iterations_of_the_newest_run(tmp_path, capsys):
    log(tmp_path, "20250101_000000/vis_data", 10, 400)
    draw(tmp_path, "20250101_000000/vis_data", 20)
    count = shapes.Iterations(tmp_path, 300)
    assert count() == 300
    log(tmp_path, RUN, rest='{"loss"')
    assert count() == 300
    log(tmp_path, RUN, 310, 320, rest='{"loss": 1.5, "st')
    assert count() == 320
    assert capsys.readouterr().out == ""
    first = draw(tmp_path, RUN, 320)
    assert count() == 320
    draw(tmp_path, RUN, 330)
    assert count() == 320
    assert re.findall(r"first image after \d+\.\d min: (.*)\n", capsys.readouterr().out) == [
        str(first)
    ]
    assert sorted(shapes.drawn_in_training(tmp_path)) == [20, 320, 330]


def test_progress_in_a_log(demo, capsys):
    """A line at each tenth, with the time that is left; nothing of the tool's own output."""
    counted = iter([5, 6, 12, 18, 20])
    code = "import time; print('wall', 'of', 'text'); time.sleep(2.2)"
    demo.run("training", "-c", code, count=lambda: next(counted, 20), total=20)
    found = capsys.readouterr()
    assert "wall of text" not in found.out + found.err
    assert "== training: python -c" in found.out and "work/training.log" in found.out
    lines = found.err.strip().splitlines()
    assert [re.search(r"\d+/20", line).group() for line in lines] == [
        "6/20",
        "12/20",
        "18/20",
        "20/20",
    ]
    assert all(re.search(r"training: +\d+%.*<\d\d:\d\d", line) for line in lines)
    assert (demo.work_dir / "training.log").read_text() == "wall of text\n"
    assert re.fullmatch(r"\d+\.\d min", demo.minutes["training"])


def test_a_step_that_fails(demo):
    code = "print('first'); raise SystemExit('tool: what is wrong')"
    with pytest.raises(shapes.StepError) as error:
        demo.run("evaluation", "-c", code)
    assert "'evaluation' failed with exit code 1; work/evaluation.log ends in:" in str(error.value)
    assert "tool: what is wrong\nRun the same command again" in str(error.value)
    assert not demo.minutes


def test_an_interrupted_step_ends_its_tool(demo, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    code = f"import time; time.sleep(60); open({str(tmp_path / 'late')!r}, 'w')"
    with pytest.raises(KeyboardInterrupt):
        demo.run("training", "-c", code, count=interrupt)
    assert not (tmp_path / "late").exists()


def test_settings_that_must_not_change(demo, monkeypatch):
    """Where the validation begins may change, but not the number of iterations."""
    saved = demo.work_dir / shapes.CONFIG.name
    saved.parent.mkdir()
    config = demo.config.copy()
    config.train_cfg = {**config.train_cfg, "val_begin": 7}
    config.dump(saved)
    monkeypatch.setattr(shapes, "read_config", Config.fromfile)
    demo.check_training()
    config.train_cfg = {**config.train_cfg, "max_iters": 7}
    config.dump(saved)
    with pytest.raises(shapes.StepError, match=r"other settings \(train_cfg\.max_iters\)"):
        demo.check_training()


def test_blame_has_the_parts_in_their_order():
    parts = ("stem", "level_1", "level_2", "classification", "decoding", "classification/missed")
    metrics = {
        f"clusters/blame/{figure}/{part}": number
        for figure in ("PQ", "PQ_th", "PQ_st", "mIoU")
        for number, part in enumerate(parts)
    }
    header, first, *rest = shapes.blame(metrics)
    assert header == ("", "stem", "level 1", "level 2", "classification")
    assert first == ("PQ", "0.0", "1.0", "2.0", "3.0")
    assert [row[0] for row in rest] == ["PQ of things", "PQ of stuff", "mIoU"]


@pytest.mark.slow
def test_all_steps(monkeypatch, tmp_path, capsys):
    """A short training: every step runs, a second call skips it, and the page shows its results."""
    for name in ("tools", "demo"):
        (tmp_path / name).symlink_to(ROOT / name)
    config = tmp_path / shapes.CONFIG
    config.parent.mkdir(parents=True)
    config.write_text(
        f"_base_ = {str(ROOT / shapes.CONFIG)!r}\n"
        "train_cfg = dict(max_iters=30, val_interval=30)\n"
        "param_scheduler = [dict(type='ConstantLR', factor=1, by_epoch=False)]\n"
    )
    monkeypatch.setattr(shapes, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["shapes.py", "--work-dir", str(tmp_path / "work")])
    shapes.main()
    found = capsys.readouterr()
    assert "first image after" in found.out and "page        work/index.html" in found.out
    assert "30/30" in found.err
    page = (tmp_path / "work/index.html").read_text()
    assert page.count("<img ") >= 4 + 2
    assert "after 20 iterations" in page and "after 30 iterations" in page
    metrics = json.loads((tmp_path / "work/evaluation/worst.json").read_text())["metrics"]
    for title, key, factor in shapes.METRICS:
        assert f"<td>{title}</td><td>{metrics[key] * factor:.1f}</td>" in page
    shapes.main()
    assert capsys.readouterr().out.count("already done") == 4  # twice each, in the table too
