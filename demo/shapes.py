"""Render the Shapes set, train HCFormer on it on two CPU cores, evaluate it and draw results.

A second run continues where the first was interrupted, and skips what is done. Each step writes its
output to a file; the terminal shows how far it is, and in the end where the page of results is.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hcformer_mm.utils.threads  # noqa: F401

from mmengine.config import Config
from page import write_page
from tqdm import tqdm

from hcformer_mm.datasets.shapes_writer import is_standard
from hcformer_mm.utils.config import read_config
from hcformer_mm.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Path("configs/shapes/hcformer_tiny_shapes-panoptic.py")
DATA = Path("data/shapes")
GROUND_TRUTH = DATA / "annotations/panoptic_val.json"
# Few objects, tiny and thin ones, overlapping ones, and a crowd.
IMAGES = [DATA / f"val/{number:06}.jpg" for number in (10, 23, 33, 44)]
# Title, key in the metrics of the run, and factor to a percentage.
METRICS = (
    ("PQ", "coco_panoptic/PQ", 1),
    ("PQ of things", "coco_panoptic/PQ_th", 1),
    ("PQ of stuff", "coco_panoptic/PQ_st", 1),
    ("mask AP", "coco/segm_mAP", 100),
    ("mIoU", "sem_seg/mIoU", 1),
)
# Iterations after which an image is drawn, before the last: the first comes within a minute.
DRAWN = (20, 100, 300, 1000)
# What a training run writes into its folder: losses, and the drawings.
SCALARS, DRAWINGS = "*/vis_data/scalars.json", "*/vis_data/vis_image/val_clusters_*.png"
# Settings that must not change when training resumes.
TRAINING = ("model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg.max_iters")


class StepError(Exception):
    """A step failed; the message gives the reason and what to do."""


class Demo:
    """Steps of the demo, and the time that each took."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.config = read_config(ROOT / CONFIG)
        self.minutes: dict[str, str] = {}
        self.worst: dict[str, Path] = {}

    def run(
        self, title: str, *command: object, count: Callable[[], int] = int, total: int | None = None
    ) -> None:
        """Run a tool of the project as a subprocess, and show how far it is.

        Args:
            title: What it does; its output goes to the file of this name in the work directory.
            command: The tool and its arguments.
            count: Number of iterations that are done.
            total: Number of all iterations; None if they are not counted.
        """
        line = [str(word) for word in command]
        log = ROOT / self.work_dir / f"{title}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        print(f"\n== {title}: python {' '.join(line)} > {shown(log)}", flush=True)
        start = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-u", *line], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                follow(process, title, count, total)
            finally:
                process.terminate()  # no effect on one that has ended
                process.wait()
        if process.returncode:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise StepError(
                f"'{title}' failed with exit code {process.returncode}; {shown(log)} ends in:\n"
                f"{last}\nRun the same command again to continue from here."
            )
        self.minutes[title] = f"{(time.monotonic() - start) / 60:.1f} min"

    def skip(self, title: str) -> None:
        print(f"\n== {title}: already done")
        self.minutes[title] = "already done"

    def make_data(self) -> None:
        if (ROOT / GROUND_TRUTH).is_file():
            if not is_standard(ROOT / DATA):
                raise StepError(
                    f"{DATA} differs from the set that this version renders by default. Remove it, "
                    "or render it again: python tools/dataset_converters/make_shapes.py --overwrite"
                )
            return self.skip("data")
        self.run("data", "tools/dataset_converters/make_shapes.py", "--out", DATA)

    def checkpoint(self) -> Path | None:
        """Newest checkpoint in the work directory."""
        pointer = ROOT / self.work_dir / "last_checkpoint"
        if not pointer.is_file():
            return None
        path = self.work_dir / Path(pointer.read_text().strip()).name
        return path if (ROOT / path).is_file() else None

    def check_training(self) -> None:
        """Refuse to resume or overwrite a training run with other settings."""
        earlier = ROOT / self.work_dir / CONFIG.name  # the runner saves its config here
        if not earlier.is_file():
            return
        then = read_config(earlier)
        changed = [key for key in TRAINING if value(then, key) != value(self.config, key)]
        if changed:
            raise StepError(
                f"{self.work_dir} holds a training run with other settings ({', '.join(changed)}). "
                "Add --fresh to delete it, or --work-dir to choose another folder."
            )

    def train(self) -> None:
        self.check_training()
        done, iterations = self.checkpoint(), self.config.train_cfg.max_iters
        first = 0 if done is None else int(done.stem.removeprefix("iter_"))
        if first == iterations:
            return self.skip("training")
        options = [
            "default_hooks.logger.interval=10",
            f"train_cfg.val_begin={iterations + 1}",  # the evaluation follows
        ]
        drawn = [*(iteration for iteration in DRAWN if iteration < iterations), iterations]
        self.run(
            "training",
            *("tools/train.py", CONFIG, "--fast", "--work-dir", self.work_dir, "--resume"),
            *("--draw", *drawn, "--cfg-options", *options),
            count=Iterations(ROOT / self.work_dir, first),
            total=iterations,
        )

    def evaluate(self) -> dict[str, float]:
        """Metrics of the newest checkpoint on the validation split; the worst images are drawn."""
        folder = self.work_dir / "evaluation"
        out = folder / "worst.json"
        self.run(
            "evaluation",
            *("tools/analysis_tools/evaluate_clusters.py", CONFIG, self.checkpoint()),
            *("--work-dir", folder, "--worst", 1, "--out", out),
        )
        result = json.loads((ROOT / out).read_text())
        self.worst = {
            f"{kind.replace('_', ' ')}: {Path(one['image']).stem} loses {one['loss']:.2f} of PQ": (
                ROOT / one["sheet"]
            )
            for kind, images in result["worst"].items()
            for one in images
        }
        return result["metrics"]

    def draw(self) -> Path:
        folder = self.work_dir / "vis"
        tool = ("tools/visualize_clusters.py", CONFIG, self.checkpoint())
        self.run("drawings", *tool, "--img", *IMAGES, "--gt", GROUND_TRUTH, "--out", folder)
        return folder


def value(config: Config, key: str) -> Any:
    """A setting of a config, None if it is missing."""
    for name in key.split("."):
        config = (config or {}).get(name)
    return config


class Iterations:
    """Counts the iterations that a training run logs, and tells once of the first image it draws.

    Args:
        work_dir: Folder of the run, before it starts.
        first: Iterations that an interrupted run has done.
    """

    def __init__(self, work_dir: Path, first: int) -> None:
        self.work_dir = work_dir
        self.done = first
        self.start = time.monotonic()
        self.earlier = {*work_dir.glob(SCALARS), *work_dir.glob(DRAWINGS)}
        self.drawn = False

    def __call__(self) -> int:
        for path in {*self.work_dir.glob(SCALARS)} - self.earlier:
            complete = path.read_text().rpartition("\n")[0]
            if complete:
                self.done = json.loads(complete.splitlines()[-1])["step"]
        drawings = {*self.work_dir.glob(DRAWINGS)} - self.earlier
        if drawings and not self.drawn:
            self.drawn = True
            minutes = (time.monotonic() - self.start) / 60
            tqdm.write(f"   first image after {minutes:.1f} min: {shown(min(drawings))}")
        return self.done


def follow(
    process: subprocess.Popen[bytes], title: str, count: Callable[[], int], total: int | None
) -> None:
    """Show on standard error, until a process ends, how far it is and how long it will take.

    A terminal gets one line that changes; a file or a pipe a line at each tenth of the iterations.
    """
    first, start, tenth = count(), time.monotonic(), 0
    layout = None if total else "{desc}: {elapsed}"
    options = dict(initial=first, unit="it", bar_format=layout, smoothing=0, disable=None)
    with tqdm(total=total, desc=title, **options) as bar:
        while process.poll() is None:
            time.sleep(0.5)
            done = count()
            if not bar.disable:
                bar.update(done - bar.n)
                bar.refresh()
            elif total and 10 * done // total > tenth:
                tenth = 10 * done // total
                seconds = time.monotonic() - start
                line = tqdm.format_meter(done, total, seconds, prefix=title, initial=first)
                print(line, file=sys.stderr, flush=True)


def drawn_in_training(work_dir: Path) -> dict[int, Path]:
    """Drawings of the first validation image, by the number of iterations."""
    paths = sorted(work_dir.glob(DRAWINGS))  # of an interrupted run first
    return {int(path.stem.rpartition("_")[2]): path for path in paths}


def shown(path: Path) -> str:
    """A path as a reader in the folder of the clone would type it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def report(demo: Demo, metrics: dict[str, float], drawings: Path) -> None:
    """Write the page, and print metrics, times, the files and the next step."""
    checkpoint = demo.checkpoint()
    figures = [(title, f"{metrics[key] * factor:.1f}") for title, key, factor in METRICS]
    page = ROOT / demo.work_dir / "index.html"
    command = (
        f"{os.path.relpath(sys.executable, ROOT)} tools/visualize_clusters.py \\\n"
        f"    {CONFIG} \\\n    {checkpoint} \\\n"
        f"    --img my_image.jpg --out {drawings}"
    )
    write_page(
        page,
        f"{CONFIG.stem}, trained here",
        intro="A model that was trained from scratch on this machine, evaluated on the validation "
        "split. A sheet shows an image with its prediction, its ground truth and the clusters of "
        "each level of the hierarchy, the errors of the clusters in red.",
        tables={
            "Metrics, in percent": [("", "reached"), *figures],
            "Where the rest is lost, in percentage points": blame(metrics),
            "Times": [("step", ""), *demo.minutes.items()],
        },
        sections={
            "Images of the validation split": {
                path.stem: path for path in sorted((ROOT / drawings).glob("*.png"))
            },
            "What loses most, by kind of fault": demo.worst,
            "The first image during training": {
                f"after {iteration} iterations": path
                for iteration, path in sorted(drawn_in_training(ROOT / demo.work_dir).items())
            },
        },
        commands=[command, f"{os.path.relpath(sys.executable, ROOT)} demo/explorer.py"],
    )
    rows = [*figures, None, *demo.minutes.items()]
    width = max(len(row[0]) for row in rows if row)
    value_width = max(len(row[1]) for row in rows if row)
    rule = "-" * (width + 2 + value_width)
    print(f"\n{CONFIG.stem}, validation split\n{rule}")
    for row in rows:
        print(f"{row[0]:{width}}  {row[1]:>{value_width}}" if row else rule)
    print(
        f"{rule}\ncheckpoint  {checkpoint}\ndrawings    {drawings}\npage        {shown(page)}\n\n"
        f"Open the page in a browser. Next, draw an image of your own:\n  {command}"
    )


def blame(metrics: dict[str, float]) -> list[tuple[str, ...]]:
    """Table of the loss that each part of the model is charged with."""
    prefix = "clusters/blame/"
    parts = [key.removeprefix(f"{prefix}PQ/") for key in metrics if key.startswith(f"{prefix}PQ/")]
    parts = [part for part in parts if "/" not in part and part != "decoding"]  # sums and details
    titles = {"PQ": "PQ", "PQ_th": "PQ of things", "PQ_st": "PQ of stuff", "mIoU": "mIoU"}
    rows = [
        (title, *(f"{metrics[f'{prefix}{figure}/{part}']:.1f}" for part in parts))
        for figure, title in titles.items()
    ]
    return [("", *(part.replace("_", " ") for part in parts)), *rows]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=ROOT / "work_dirs" / CONFIG.stem,
        help="folder for checkpoints, metrics and drawings",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="delete that folder first and train from scratch"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    work_dir = args.work_dir.resolve()
    if args.fresh and work_dir.exists():
        # Delete only a folder in which this config was trained, not a mistyped one.
        if not (work_dir / CONFIG.name).is_file():
            sys.exit(f"demo: {work_dir} holds no training of {CONFIG}; delete it yourself")
        shutil.rmtree(work_dir)
    try:
        demo = Demo(work_dir.relative_to(ROOT) if work_dir.is_relative_to(ROOT) else work_dir)
        demo.make_data()
        demo.train()
        report(demo, demo.evaluate(), demo.draw())
    except (StepError, InputError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("\ndemo: interrupted; the same command continues from here")


if __name__ == "__main__":
    main()
