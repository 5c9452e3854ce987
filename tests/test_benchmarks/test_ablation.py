"""Ablations: schedules of other lengths, resumable runs, their table and figure."""

import json
import sys

import pytest

from benchmarks import ablation
from hcformer_mm.utils.config import read_config
from hcformer_mm.utils.errors import InputError
from tests.helpers.models import SHAPES_CONFIG

MASK2FORMER = "configs/shapes/mask2former_r18_shapes-panoptic.py"


def ablate(monkeypatch, work_dir, *arguments):
    command = ["ablation.py", *arguments, "--work-dir", work_dir, "--shape", 64, 96]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    monkeypatch.chdir(ablation.TOOLS.parent)
    ablation.ablate(ablation.parse_args())


def save(work_dir, results):
    """Write the metrics of finished runs, by name and seed."""
    for (config, seed), metrics in results.items():
        folder = work_dir / config / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(metrics))


def cells(text):
    """Cells of the tables in a text in Markdown, row by row."""
    rows = (line for line in text.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_schedule_is_shortened_behind_its_warm_up():
    config = read_config(SHAPES_CONFIG)
    warm_up, decay = config.param_scheduler
    ablation.with_iterations(config, 1000)
    assert config.train_cfg.max_iters == 1000
    assert (warm_up.begin, warm_up.end) == (0, 100)
    assert (decay.begin, decay.end, decay.T_max) == (100, 1000, 900)


def test_poly_decay_keeps_its_end_behind_the_last_iteration():
    config = read_config("configs/hcformer/hcformer_r50_8xb2-160k_ade20k-512x512.py")
    assert (config.train_cfg.max_iters, config.param_scheduler.end) == (160_000, 160_001)
    ablation.with_iterations(config, 80_000)
    assert config.param_scheduler.end == 80_001


def test_schedule_within_the_warm_up_is_refused():
    with pytest.raises(InputError, match="more --iterations than the 100 of the warm-up"):
        ablation.with_iterations(read_config(SHAPES_CONFIG), 100)


def test_models_without_clusters():
    names = ("hcformer_r18_shapes-panoptic", "hcformer_r18_level0_shapes-panoptic")
    ours, level_0, theirs = map(read_config, (*names, MASK2FORMER))
    assert [ablation.clusters(one) for one in (ours, level_0, theirs)] == [True, False, False]


def test_tables_take_the_place_of_earlier_ones_alone(tmp_path):
    file = tmp_path / "README.md"
    begin = "<!-- tables of ablation.py -->"
    for text in ("old", "new"):
        ablation.write_tables(text, str(file))
    file.write_text(f"Above.\n\n{file.read_text()}\nBelow.\n")
    ablation.write_tables("newer", str(file))
    tables = f"{begin}\n\nnewer\n{ablation.END}\n"
    assert file.read_text() == f"Above.\n\n{tables}\nBelow.\n"
    whole = file.read_text().replace(ablation.END, "")
    file.write_text(whole)
    ablation.write_tables("newer", str(file))
    assert file.read_text() == whole + tables


def test_a_file_holds_tables_of_several_names(tmp_path):
    file = tmp_path / "README.md"
    for name, text in (
        ("", "a"),
        ("#fcn", "b"),
        ("#psp", "c"),
        ("#fcn", "newer b"),
        ("", "newer a"),
    ):
        ablation.write_tables(text, f"{file}{name}")
    begins = [f"<!-- tables of ablation.py{name} -->" for name in ("", ": fcn", ": psp")]
    tables = zip(begins, ("newer a", "newer b", "c"), strict=True)
    assert file.read_text() == "".join(f"{b}\n\n{t}\n{ablation.END}\n" for b, t in tables)


def test_minutes_of_an_interrupted_run_count_each_step_once(tmp_path):
    for name, lines in {
        "1": [(10, 6.0), (20, 3.0), (30, 1.0)],  # repeated below, from the checkpoint at 20
        "2": [(30, 3.0), (40, 3.0)],
    }.items():
        log = tmp_path / name / "vis_data" / "scalars.json"
        log.parent.mkdir(parents=True)
        rows = [dict(loss=1.0, time=seconds, step=step) for step, seconds in lines]
        log.write_text("\n".join(map(json.dumps, [*rows, {"coco/segm_mAP": 0.1, "step": 40}])))
    assert ablation.minutes_of(tmp_path) == pytest.approx((60 + 30 + 30 + 30) / 60)


def test_a_run_that_fails_stops_no_other(monkeypatch, tmp_path):
    done = []

    def finish(run):
        if run.config.randomness.seed == 0:
            raise InputError("not finite")
        done.append(run.config.randomness.seed)

    monkeypatch.setattr(ablation.Run, "finish", finish)
    with pytest.raises(InputError, match="not finite"):
        ablate(monkeypatch, tmp_path, MASK2FORMER, "--seeds", 0, 1, 2)
    assert done == [1, 2]


def test_table_and_figure_of_finished_runs(monkeypatch, tmp_path, capsys):
    """Missing runs and metrics, and undefined ones, are left out."""
    name = "hcformer_r18_shapes-panoptic"
    blame = {f"clusters/blame/PQ/{part}": 2.0 for part in ("stem", "level_1", "classification")}
    results = {
        (name, 0): {"coco_panoptic/PQ": 61.0, "coco/boundary_mAP": 0.25, "minutes": 8.0, **blame},
        (name, 1): {"coco_panoptic/PQ": 63.0, "coco/boundary_mAP": float("nan"), **blame},
        ("mask2former_r18_shapes-panoptic", 0): {"coco_panoptic/PQ": 60.0},
    }
    save(tmp_path, results)
    figure, table = tmp_path / "figure.png", tmp_path / "table.md"
    command = (name, MASK2FORMER, "--seeds", 0, 1, "--tabulate", "--out", table, "--figure", figure)
    table.write_text("# Results\n")
    ablate(monkeypatch, tmp_path, *command)
    written = table.read_text()
    header, _, *body = cells(written)
    ours, theirs = (dict(zip(header, line, strict=True)) for line in body[:2])
    header, _, lost = body[2:]
    assert ours["PQ"] == "62.0 ± 1.4"
    assert ours["AP^boundary"] == "25.0"
    assert header == ["PQ lost", "stem", "level 1", "classification"]
    assert lost == [name, "2.0 ± 0.0", "2.0 ± 0.0", "2.0 ± 0.0"]
    assert (ours["Runs"], theirs["Runs"]) == ("2", "1")
    assert theirs["PQ"] == "60.0"
    assert theirs["AP^boundary"] == ""
    assert float(ours["Parameters (M)"]) == pytest.approx(12.5, abs=0.05)
    assert figure.stat().st_size > 10_000
    table.write_text(f"{written}Below.\n")
    ablate(monkeypatch, tmp_path, *command)
    again = table.read_text()
    assert again.startswith("# Results\n") and again.endswith("Below.\n")
    assert again.count("PQ lost") == 1
    with pytest.raises(InputError, match="got one with other settings; remove it, or choose"):
        ablate(monkeypatch, tmp_path, name, "--iterations", 1000)


def test_segmentors_are_scored_by_their_miou(monkeypatch, tmp_path):
    name, other = "hc-fcn32s_r18_shapes-semantic", "fcn32s_r18_shapes-semantic"
    blame = {"clusters/blame/mIoU/stem": 3.0, "clusters/blame/mIoU/level_1": 4.0}
    save(tmp_path, {(name, 0): {"mIoU": 60.0, "aAcc": 80.0, **blame}, (other, 0): {"mIoU": 59.0}})
    figure, table = tmp_path / "figure.png", tmp_path / "table.md"
    configs = [f"configs/shapes/{one}.py" for one in (name, other)]
    command = (*configs, "--tabulate", "--out", table, "--figure", figure)
    ablate(monkeypatch, tmp_path, *command)
    header, _, ours, theirs, *lost = cells(table.read_text())
    assert header[2:4] == ["mIoU", "Pixel accuracy"]
    assert (ours[2:4], theirs[2:4]) == (["60.0", "80.0"], ["59.0", ""])
    assert lost[0] == ["mIoU lost", "stem", "level 1"]
    assert lost[2:] == [[name, "3.0", "4.0"]]
    assert figure.stat().st_size > 10_000


@pytest.mark.slow
def test_runs_train_and_are_evaluated(monkeypatch, tmp_path, shapes):
    loader = {"dataset.data_root": f"{shapes}/", "num_workers": 0, "persistent_workers": False}
    annotations = f"{shapes}/annotations"
    options = {
        "test_evaluator.0.ann_file": f"{annotations}/panoptic_val.json",
        "test_evaluator.0.seg_prefix": f"{annotations}/panoptic_val/",
        "test_evaluator.1.ann_file": f"{annotations}/instances_val.json",
        "train_dataloader.batch_size": 1,
        **{f"{s}_dataloader.{key}": loader[key] for s in ("train", "test") for key in loader},
    }
    options |= {f"param_scheduler.{i}.{key}": 2 for i, key in ((0, "end"), (1, "begin"))}
    configs = [tmp_path / "ours.py", tmp_path / "theirs.py"]
    for config, file in zip((SHAPES_CONFIG, MASK2FORMER), configs, strict=True):
        read_config(config, options).dump(file)
    command = (*configs, "--iterations", 3)
    ablate(monkeypatch, tmp_path, *command)
    files = sorted(tmp_path.glob("*/seed_0/results.json"))
    ours, theirs = (json.loads(file.read_text()) for file in files)
    assert {"coco_panoptic/PQ", "coco/boundary_mAP", "sem_seg/mIoU"} <= ours.keys() & theirs.keys()
    assert "clusters/blame/PQ/stem" in ours.keys() - theirs.keys()
    assert ours["minutes"] > 0
    before = [file.stat().st_mtime_ns for file in files]
    ablate(monkeypatch, tmp_path, *command)
    assert [file.stat().st_mtime_ns for file in files] == before
