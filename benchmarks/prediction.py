"""Compare tools/predict.py with its network alone, and draw the memory of a long run.

python benchmarks/prediction.py overhead hcformer_r18_shapes-panoptic --size 256 256
python benchmarks/prediction.py memory docs/images/prediction_memory.png --images 10000
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import hcformer_mm.utils.threads  # noqa: F401

import matplotlib.pyplot as plt
import psutil
from measure import measure
from PIL import Image
from tabulate import tabulate

from hcformer_mm.apis.bulk_inferencer import BulkInferencer, Share
from hcformer_mm.apis.result_writer import ResultWriter
from hcformer_mm.apis.run_folder import RunFolder
from hcformer_mm.apis.sources import open_sources
from hcformer_mm.datasets.shapes_generator import render_scene
from hcformer_mm.utils.arguments import number

ROOT = Path(__file__).parents[1]
KEEP_ALL = dict(object_mask_thr=0.0, iou_thr=0.0)
"""Random weights are sure of nothing: without thresholds there are segments to write."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    overhead = commands.add_parser("overhead", help="time of the whole beside the network's")
    overhead.add_argument("config")
    overhead.add_argument(
        "--checkpoint", type=Path, help="by default random weights, and no thresholds"
    )
    overhead.add_argument("--size", type=int, nargs=2, default=(512, 672), help="height and width")
    overhead.add_argument("--images", type=number(int, 1), default=32)
    overhead.add_argument("--batch-sizes", type=number(int, 1), nargs="+", default=(1, 8))
    overhead.add_argument("--rounds", type=number(int, 1), default=5)
    overhead.add_argument("--workers", type=number(int, 0))
    overhead.add_argument("--device")
    memory = commands.add_parser("memory", help="memory of a process over its images")
    memory.add_argument("figure", type=Path, help="the figure; its numbers are printed")
    memory.add_argument("--images", type=number(int, 100), default=10_000)
    return parser.parse_args()


def write_images(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Write scenes as JPEG files; beyond 16 they are the same under other names."""
    for i in range(number):
        file = folder / f"{i:05}.jpg"
        if i < 16:
            scene = Image.fromarray(render_scene((i,), size=size).image)
            scene.resize(size[::-1]).save(file)
        else:
            file.symlink_to(folder / f"{i % 16:05}.jpg")


def overhead(args: argparse.Namespace, root: Path) -> None:
    """Time the network on prepared images, and the whole, in turn."""
    write_images(root, args.images, args.size)
    inferencer = BulkInferencer(args.config, args.checkpoint, args.device)
    thresholds = {} if args.checkpoint else KEEP_ALL
    images = open_sources([root]).images
    runs = iter(range(10**6))
    rows = []
    for batch_size in args.batch_sizes:
        prepared = [inferencer._prepare(inferencer.bound(one), **thresholds) for one in images]
        batches = [prepared[i : i + batch_size] for i in range(0, len(prepared), batch_size)]

        def network(batches: list = batches) -> None:
            for batch in batches:
                inferencer._run(batch)

        def whole(batch_size: int = batch_size) -> None:
            folder = RunFolder(root / f"out{next(runs)}")
            writer = ResultWriter(folder.path, inferencer.classes, draw=False)
            folder.claim({})
            share, options = Share(batch_size), dict(workers=args.workers, **thresholds)
            for one in inferencer.records(images, writer, share, **options):
                folder.append(*one)
            folder.merge(writer)

        calls = dict(network=network, whole=whole)
        rows += measure(calls, dict(batch=batch_size), repeats=args.rounds, warmup=1)
    keys = ("name", "batch", "median (ms)", "ratio")
    table = [[row[key] for key in keys] for row in rows]
    print(f"{args.config}, {args.images} images of {args.size[0]} × {args.size[1]} pixels")
    print(tabulate(table, keys, floatfmt=".3f"))


def memory(args: argparse.Namespace, root: Path) -> None:
    """Run the tool on small images and sample its resident memory."""
    images, out = root / "images", root / "out"
    images.mkdir()
    write_images(images, args.images, (64, 96))
    options = ["test_dataloader.dataset.pipeline.1.scale=(48,32)"]
    command = [
        *(sys.executable, ROOT / "tools/predict.py", images, "hcformer_r18_shapes-panoptic"),
        *(random_weights(root), "--out", out, "--cfg-options", *options),
        *("--object-mask-thr", "0", "--iou-thr", "0", "--max-per-image", "10"),
    ]
    process = subprocess.Popen(list(map(str, command)))
    done, resident = [], []
    try:
        while process.poll() is None:
            time.sleep(2)
            try:
                number = sum(1 for _ in (out / "panoptic").iterdir())
                size = psutil.Process(process.pid).memory_info().rss / 2**20
            except (OSError, psutil.Error):
                continue  # nothing is there yet, or no more
            if size:  # a process that has ended has none
                resident.append(size)
                done.append(number)
    except KeyboardInterrupt:
        process.wait()  # the figure shows what was reached
    if process.returncode and not done:
        sys.exit(f"prediction: tools/predict.py ended with {process.returncode}")
    first, *_, last = resident
    print(f"{done[-1]} images; {first:.0f} MiB at first, {last:.0f} in the end")
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(done, resident)
    axes.set(xlabel="images", ylabel="resident memory (MiB)", ylim=(0, 1.2 * max(resident)))
    figure.savefig(args.figure, dpi=100)


def random_weights(root: Path) -> Path:
    """A checkpoint of the small model with random weights."""
    import torch

    model = BulkInferencer("hcformer_r18_shapes-panoptic", None, "cpu", fast=False).model
    torch.save(dict(state_dict=model.state_dict()), root / "weights.pth")
    return root / "weights.pth"


def main() -> None:
    args = parse_args()
    with TemporaryDirectory() as folder:
        dict(overhead=overhead, memory=memory)[args.command](args, Path(folder))


if __name__ == "__main__":
    main()
