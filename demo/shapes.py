"""Render the Shapes set, train HCFormer on it on two CPU cores, evaluate it and draw results.

A second run continues where the first was interrupted, and skips what is done.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hcformer_mm.utils.threads  # noqa: F401

from hcformer_mm.datasets.shapes_writer import is_standard
from hcformer_mm.utils.config import read_config
from hcformer_mm.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Path("configs/shapes/hcformer_r18_shapes-panoptic.py")
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
# Settings that must not change when training resumes.
TRAINING = ("model", "train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg")


class StepError(Exception):
    """A step failed; the message gives the reason and what to do."""


class Demo:
    """Steps of the demo, and the time that each took."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.config = read_config(ROOT / CONFIG)
        self.minutes: dict[str, str] = {}

    def run(self, title: str, *command: object) -> None:
        """Run a tool of the project as a subprocess that prints to the terminal."""
        line = [str(word) for word in command]
        print(f"\n== {title}: python {' '.join(line)}\n", flush=True)
        start = time.monotonic()
        code = subprocess.run([sys.executable, *line], cwd=ROOT, check=False).returncode
        if code:
            raise StepError(
                f"'{title}' failed with exit code {code}; see its output above. "
                "Run the same command again to continue from here."
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
        changed = [key for key in TRAINING if then.get(key) != self.config.get(key)]
        if changed:
            raise StepError(
                f"{self.work_dir} holds a training run with other settings ({', '.join(changed)}). "
                "Add --fresh to delete it, or --work-dir to choose another folder."
            )

    def train(self) -> None:
        self.check_training()
        done = self.checkpoint()
        if done is not None and done.stem == f"iter_{self.config.train_cfg.max_iters}":
            return self.skip("training")
        self.run("training", "tools/train.py", CONFIG, "--work-dir", self.work_dir, "--resume")

    def evaluate(self) -> dict[str, float]:
        """Metrics of the newest checkpoint on the validation split."""
        folder = self.work_dir / "evaluation"
        before = set((ROOT / folder).glob("*/*.json"))
        self.run("evaluation", "tools/test.py", CONFIG, self.checkpoint(), "--work-dir", folder)
        new = set((ROOT / folder).glob("*/*.json")) - before
        # The runner writes the metrics of a test into <time>/<time>.json.
        logs = [path for path in new if path.stem == path.parent.name]
        metrics = json.loads(logs[0].read_text()) if logs else {}
        missing = [key for _, key, _ in METRICS if metrics.get(key) is None]
        if missing:
            raise StepError(f"the evaluation wrote no {', '.join(missing)} in {folder}")
        return {title: metrics[key] * factor for title, key, factor in METRICS}

    def draw(self) -> Path:
        folder = self.work_dir / "vis"
        tool = ("tools/visualize_clusters.py", CONFIG, self.checkpoint())
        self.run("drawings", *tool, "--img", *IMAGES, "--gt", GROUND_TRUTH, "--out", folder)
        return folder


def report(demo: Demo, metrics: dict[str, float], drawings: Path) -> None:
    """Print metrics, times, the files and the next step."""
    checkpoint = demo.checkpoint()
    rows = [
        *((title, f"{value:.1f}") for title, value in metrics.items()),
        None,
        *demo.minutes.items(),
    ]
    width = max(len(row[0]) for row in rows if row)
    value_width = max(len(row[1]) for row in rows if row)
    rule = "-" * (width + 2 + value_width)
    print(f"\nHCFormer, ResNet-18, Shapes validation split\n{rule}")
    for row in rows:
        print(f"{row[0]:{width}}  {row[1]:>{value_width}}" if row else rule)
    print(
        f"{rule}\ncheckpoint  {checkpoint}\ndrawings    {drawings}\n\n"
        f"Next, draw an image of your own:\n"
        f"  {os.path.relpath(sys.executable, ROOT)} tools/visualize_clusters.py \\\n"
        f"    {CONFIG} \\\n    {checkpoint} \\\n"
        f"    --img my_image.jpg --out {drawings}"
    )


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
