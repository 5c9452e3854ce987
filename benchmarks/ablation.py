"""Train configs with several seeds, and tabulate their results with mean and standard deviation.

A second run of the same command continues where the first was interrupted, and skips what is done;
more configs or seeds extend it.
"""

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from statistics import mean, median, stdev

import hcformer_mm.utils.threads  # noqa: F401

import matplotlib.pyplot as plt
import torch
from mmengine.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import measure, models
from hcformer_mm.engine.run_checks.lookup import is_named
from hcformer_mm.utils.arguments import add_cfg_options, number
from hcformer_mm.utils.atomic_write import replacing
from hcformer_mm.utils.config import read_config
from hcformer_mm.utils.errors import InputError
from tools.analysis_tools.get_flops import count_multiply_adds, count_parameters

TOOLS = Path(__file__).resolve().parents[1] / "tools"
# Column, key among a run's metrics, and factor to its unit.
COLUMNS = (
    ("PQ", "coco_panoptic/PQ", 1),
    ("PQ_th", "coco_panoptic/PQ_th", 1),
    ("PQ_st", "coco_panoptic/PQ_st", 1),
    ("Mask AP", "coco/segm_mAP", 100),
    ("AP^boundary", "coco/boundary_mAP", 100),
    ("mIoU", "sem_seg/mIoU", 1),
    ("mIoU", "mIoU", 1),
    ("Pixel accuracy", "aAcc", 1),
    ("Training (min)", "minutes", 1),
)
PARTS = ("stem", "level_1", "level_2", "level_3", "level_4", "level_5", "classification")
BEGIN, END = "<!-- tables of ablation.py{} -->", "<!-- end of tables -->"


def with_iterations(config: Config, iterations: int) -> None:
    """Shorten or lengthen a schedule that counts iterations; its warm-up stays as long.

    Raises:
        InputError: The config counts epochs, or its warm-up does not fit.
    """
    before = config.train_cfg.get("max_iters")
    if before is None:
        raise InputError(f"expected train_cfg.max_iters in {config.filename}, got epochs")
    config.train_cfg.max_iters = iterations
    schedules = config.param_scheduler
    for schedule in schedules if isinstance(schedules, list | tuple) else [schedules]:
        begin, end = schedule.get("begin", 0), schedule.get("end", before)
        warm_up = end if end < before else begin
        if warm_up >= iterations:
            raise InputError(f"expected more --iterations than the {warm_up} of the warm-up")
        if warm_up == begin and schedule.get("end") is not None:
            schedule.end = end - before + iterations
        if "T_max" in schedule:
            schedule.T_max = iterations - begin


def run_config(spec: models.ModelSpec, seed: int, iterations: int | None) -> Config:
    """Config of one run: seeded, evaluated once at its end, AP^boundary beside AP."""
    config = spec.config()
    config.merge_from_dict({"randomness.seed": seed})
    if iterations is not None:
        with_iterations(config, iterations)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    evaluators = config.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]
    if not any(is_named(one, "CocoBoundaryMetric") for one in evaluators):
        keys = ("ann_file", "backend_args")
        evaluators += [
            dict(type="hcformer_mm.CocoBoundaryMetric", **{key: one.get(key) for key in keys})
            for one in evaluators
            if is_named(one, "CocoMetric")
        ]
    config.test_evaluator = evaluators
    return config


def clusters(config: Config) -> bool:
    """Whether the model has clusters to score."""
    backbone = config.model.backbone
    return is_named(backbone, "HCBackbone") and backbone.get("hierarchical_level") != 0


def minutes_of(folder: Path) -> float:
    """Minutes of the training steps in a run's logs, whatever interrupted it."""
    times: dict[int, float] = {}
    for log in sorted(folder.glob("*/vis_data/scalars.json")):
        lines = (json.loads(line) for line in log.read_text().splitlines())
        times |= {line["step"]: line["time"] for line in lines if "loss" in line}
    steps = sorted(times)
    return sum((b - a) * times[b] for a, b in zip([0, *steps], steps, strict=False)) / 60


class Run:
    """One training and its evaluation, in a folder of its own."""

    def __init__(self, folder: Path, config: Config, threads: int) -> None:
        self.folder, self.config, self.threads = folder, config, threads
        self.results = folder / "results.json"
        # Beside the folder, to which the training writes the config with settings of its own.
        file = folder.with_suffix(".py")
        if file.exists() and read_config(file).to_dict() != config.to_dict():
            raise InputError(
                f"expected the run of this config in {folder}, got one with other settings; remove "
                "it, or choose another --work-dir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            unfinished.write_text(config.pretty_text)
        self.file = file

    def _tool(self, name: str, *arguments: object) -> None:
        command = [sys.executable, str(TOOLS / name), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        log = self.folder / f"{Path(name).stem}.log"
        with log.open("a") as file:
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
            ).returncode
        if code:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise InputError(f"{shlex.join(command)} failed, see {log}:\n{tail}")

    def checkpoint(self) -> Path:
        return self.folder / f"iter_{self.config.train_cfg.max_iters}.pth"

    def finish(self) -> None:
        """Train and evaluate, as far as that is not done."""
        if self.results.exists():
            return
        print(f"{self.folder}: running", flush=True)
        if not self.checkpoint().exists():
            self._tool("train.py", self.file, "--work-dir", self.folder, "--resume")
        tested = self.folder / "test"
        if clusters(self.config):
            file = tested / "clusters.json"
            tool = "analysis_tools/evaluate_clusters.py"
            self._tool(tool, self.file, self.checkpoint(), "--work-dir", tested, "--out", file)
            metrics = json.loads(file.read_text())["metrics"]
        else:
            self._tool("test.py", self.file, self.checkpoint(), "--work-dir", tested)
            # The runner writes the metrics of a test into <time>/<time>.json.
            *_, last = sorted(tested.glob("*_*/*_*.json"))
            metrics = json.loads(last.read_text())
        with replacing(self.results) as unfinished:
            text = json.dumps({**metrics, "minutes": minutes_of(self.folder)}, indent=2)
            unfinished.write_text(text + "\n")
        print(f"{self.folder}: done", flush=True)

    def metrics(self) -> dict[str, float]:
        return dict(json.loads(self.results.read_text())) if self.results.exists() else {}


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "–"
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def values(runs: Iterable[Mapping[str, float]], key: str, factor: float = 1) -> list[float]:
    return [factor * run[key] for run in runs if key in run and math.isfinite(run[key])]


def score(runs: Iterable[Mapping[str, float]]) -> str:
    """The score of a model's task: mIoU for the models without PQ."""
    return "PQ" if values(runs, COLUMNS[0][1]) else "mIoU"


def scored_by(models: Iterable[Sequence[Mapping[str, float]]]) -> str:
    """Title of the scores of several models."""
    return " or ".join(sorted({score(runs) for runs in models}, reverse=True))


def lost(runs: Sequence[Mapping[str, float]], part: str) -> list[float]:
    """Points of the score that a part of the model loses."""
    return values(runs, f"clusters/blame/{score(runs)}/{part}")


def latencies(specs: Sequence[models.ModelSpec], args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of one prediction of each model, measured in turn."""
    calls = {
        spec.name: models.inference_call(spec.build(args), args.shape, mode="predict")
        for spec in specs
    }
    torch.set_num_threads(args.threads)
    rows = measure.measure(calls, {}, repeats=7, warmup=1)
    return {row["name"]: 1e3 * median(row["seconds"]) for row in rows}


def label(name: str) -> str:
    """Short name for a figure: without the data set at its end, nor the whole keys of settings."""
    stem, *settings = name.split("@")
    short = [re.sub(r"^[\w.]+\.(?=\w+=)", "", setting) for setting in settings]
    return " ".join([stem.rpartition("_")[0] or stem, *short])


def draw(rows: Sequence[measure.Row], runs: Mapping[str, list[dict[str, float]]], to: Path) -> None:
    """Draw the score against latency, and the parts of the blame of each model."""
    shown = {name: one for name, one in runs.items() if lost(one, "stem")}
    height = max(4.5, 0.3 * len(shown))
    figure = plt.figure(figsize=(15 if shown else 8, height), layout="constrained")
    latency = figure.add_subplot(1, 1 + bool(shown), 1)
    for i, row in enumerate(rows, start=1):
        name = row["Config"]
        wanted = score(runs[name])
        scores = [x for title, k, f in COLUMNS if title == wanted for x in values(runs[name], k, f)]
        if scores:
            point = (row["Latency (ms)"], mean(scores))
            deviation = stdev(scores) if len(scores) > 1 else 0
            style = dict(fmt="o", capsize=3, label=f"{i}  {label(name)}")
            latency.errorbar(*point, deviation, **style, color=plt.get_cmap("tab20")(i % 20))
            latency.annotate(i, point, (5, 4), textcoords="offset points", fontsize=8)
    latency.set(xlabel="latency (ms)", ylabel=scored_by(runs.values()))
    latency.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7)
    if shown:
        blame = figure.add_subplot(1, 2, 2)
        left = [0.0] * len(shown)
        for i, part in enumerate(PARTS):
            points = [lost(one, part) for one in shown.values()]
            if not any(points):
                continue
            widths = [mean(one or [0.0]) for one in points]
            color = (
                "lightgray" if part == PARTS[-1] else plt.get_cmap("viridis")(i / (len(PARTS) - 2))
            )
            name = part.replace("_", " ")
            blame.barh([*map(label, shown)], widths, left=left, color=color, label=name)
            left = [x + width for x, width in zip(left, widths, strict=True)]
        blame.set(xlabel=f"{scored_by(shown.values())} lost")
        blame.tick_params(axis="y", labelsize=7)
        blame.margins(y=0.01)
        blame.invert_yaxis()
        handles, parts = blame.get_legend_handles_labels()
        figure.legend(handles, parts, loc="outside upper right", ncols=len(PARTS), fontsize=7)
    figure.savefig(to, dpi=150)


def tables(rows: Sequence[measure.Row], title: str) -> str:
    """Results, and below them the parts of the blame of the models that have them, in Markdown."""
    results = [{k: v for k, v in row.items() if k not in PARTS} for row in rows]
    parts = [part for part in PARTS if any(part in row for row in rows)]
    blame = [
        {
            f"{title} lost": row["Config"],
            **{part.replace("_", " "): row.get(part) for part in parts},
        }
        for row in rows
        if "stem" in row
    ]
    return "\n\n".join(measure.as_table(part, ".1f") for part in (results, blame) if part) + "\n"


def write_tables(text: str, to: str) -> None:
    """Replace the tables that an earlier call wrote to ``FILE[#NAME]``, or add them at its end."""
    file, _, name = to.partition("#")
    path, begin = Path(file), BEGIN.format(name and f": {name}")
    content = path.read_text() if path.exists() else ""
    before, _, rest = content.partition(begin)
    _, end, after = rest.partition(END)
    if not end:  # where earlier tables end is unknown
        before, after = content, "\n"
    with replacing(path) as unfinished:
        unfinished.write_text(f"{before}{begin}\n\n{text}\n{END}{after}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    configs = "config file or name of a config of this package; its own settings follow as @k=v"
    add("configs", nargs="+", metavar="CONFIG[@SETTING]...", help=configs)
    add("--seeds", type=int, nargs="+", default=[0], help="seeds of the trainings (default: 0)")
    add("--iterations", type=number(int, 2), help="of each training (default: the config's)")
    add("--jobs", type=number(int, 1), default=1, help="trainings at a time (default: 1)")
    add("--threads", type=number(int, 1), default=1, help="threads of each (default: 1)")
    work_dir = "folder of a folder per run (default: work_dirs/ablation)"
    add("--work-dir", type=Path, default=Path("work_dirs/ablation"), help=work_dir)
    tabulate = "train nothing, and tabulate the runs that are done"
    add("--tabulate", action="store_true", help=tabulate)
    size = "image whose prediction is timed and counted (default: 192 256)"
    add("--shape", type=int, nargs=2, default=(192, 256), metavar=("H", "W"), help=size)
    out = "put the tables into this file, too, in place of those of the same name"
    add("--out", metavar="FILE.md[#NAME]", help=out)
    figure = "draw accuracy against latency, and the blame of each part, to this image"
    add("--figure", type=Path, metavar="FILE", help=figure)
    add_cfg_options(parser)
    args = parser.parse_args()
    args.cfg_options = args.cfg_options or {}
    args.checkpoints, args.device, args.seed = None, "cpu", 0
    args.fuse_conv_bn = args.channels_last = False  # what models.parse_specs() reads
    return args


def ablate(args: argparse.Namespace) -> None:
    specs = models.parse_specs(args)
    runs = {
        spec.name: [
            Run(
                args.work_dir.resolve() / spec.name.replace("/", "_") / f"seed_{seed}",
                run_config(spec, seed, args.iterations),
                args.threads,
            )
            for seed in args.seeds
        ]
        for spec in specs
    }
    if not args.tabulate:
        with ThreadPoolExecutor(args.jobs) as pool:  # one seed of every config first
            turns = [run for turn in zip(*runs.values(), strict=True) for run in turn]
            finished = [pool.submit(run.finish) for run in turns]
            try:
                wait(finished)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
        for one in finished:  # a run that failed stops no other
            one.result()
    results = {name: [run.metrics() for run in ones] for name, ones in runs.items()}
    times = latencies(specs, args)
    rows = []
    for spec in specs:
        model, found = spec.build(args), results[spec.name]
        row: measure.Row = {"Config": spec.name, "Runs": sum(map(bool, found))}
        for title, key, factor in COLUMNS:
            if numbers := values(found, key, factor):
                row[title] = spread(numbers)
        for part in PARTS:
            if numbers := lost(found, part):
                row[part] = spread(numbers)
        row["Parameters (M)"] = count_parameters(model) / 1e6
        row["Multiply-adds (G)"] = count_multiply_adds(model, *args.shape).total() / 1e9
        row["Latency (ms)"] = times[spec.name]
        rows.append(row)
    text = tables(rows, scored_by(results.values()))
    print(text)
    if args.out is not None:
        write_tables(text, args.out)
    if args.figure is not None:
        draw(rows, results, args.figure)


def main() -> None:
    try:
        ablate(parse_args())
    except (InputError, ValueError, OSError, RuntimeError) as error:
        sys.exit(f"ablation: {error}")


if __name__ == "__main__":
    main()
