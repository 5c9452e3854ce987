"""Time operators and models side by side: medians, spread, ratios and peak memory."""

import argparse
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hcformer_mm.utils.threads  # noqa: F401

import torch
from mmengine.config import DictAction

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import measure, models, operators, runtimes
from hcformer_mm.apis.inference import check_device
from hcformer_mm.utils.arguments import number

CARD = ("card", "bandwidth", "peak", "launch_us")  # the GPU whose time is estimated
SHAPE_HELP = "image sizes, pairs of multiples of 32"


def report_file(text: str) -> Path:
    if not text.endswith((".json", ".md")):
        raise argparse.ArgumentTypeError(f"expected a file *.json or *.md, got {text!r}")
    return Path(text)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--repeats", type=number(int, 1), default=7, help="timed rounds (default: 7)")
    add("--warmup", type=number(int, 0), default=1, help="untimed rounds before those (default: 1)")
    own, threads = [torch.get_num_threads()], "numbers of threads (default: PyTorch's choice)"
    add("--threads", type=number(int, 1), nargs="+", default=own, metavar="N", help=threads)
    add("--device", default="cpu", help="cpu or a CUDA device (default: cpu)")
    profile = "also list the N slowest operators (12 if N is left out)"
    add("--profile", type=number(int, 1), nargs="?", const=12, metavar="N", help=profile)
    add_report_arguments(parser)


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    seed = "seed of weights, maps and images, except those of training (default: 0)"
    add("--seed", type=int, default=0, help=seed)
    files = "write the report to these files, *.json or *.md"
    add("--out", type=report_file, nargs="+", default=[], metavar="FILE", help=files)


def add_baseline_argument(parser: argparse.ArgumentParser) -> None:
    baseline = "ratios are to the I-th config, counted from 1 (default: 1)"
    parser.add_argument("--baseline", type=number(int, 1), default=1, metavar="I", help=baseline)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    configs = (
        "config file, name of a config of this package, or package::path for mmdet and mmseg; its "
        "own settings follow as @key=value, @fuse-conv-bn or @channels-last"
    )
    add("configs", nargs="+", metavar="CONFIG[@SETTING]...", help=configs)
    add("--shape", type=int, nargs="+", required=True, metavar=("H", "W"), help=SHAPE_HELP)
    add("--fuse-conv-bn", action="store_true", help="@fuse-conv-bn for all configs")
    add("--channels-last", action="store_true", help="@channels-last for all configs")
    overrides = "override settings of all configs, as key=value"
    add("--cfg-options", nargs="+", action=DictAction, default={}, help=overrides)
    weights = "weights of each config, a file or 'random'; all random if left out"
    add("--checkpoints", nargs="+", metavar="FILE", help=weights)


def add_kept_queries(parser: argparse.ArgumentParser) -> None:
    kept = "force N queries of mask transformers to be objects; the weights decide if left out"
    parser.add_argument("--kept-queries", type=number(int, 0), metavar="N", help=kept)


def add_batch_arguments(parser: argparse.ArgumentParser, images: int) -> None:
    add, batch = parser.add_argument, "images per training step (default: %(default)s)"
    add("--batch", type=number(int, 1), default=images, help=batch)
    add("--objects", type=number(int, 1), default=10, help="objects per image (default: 10)")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    subcommands = parser.add_subparsers(required=True, metavar="SUBCOMMAND")

    def subcommand(name: str, text: str, **defaults: Any) -> argparse.ArgumentParser:
        added = subcommands.add_parser(name, help=text, description=text)
        added.set_defaults(**{"run": run, **defaults})
        return added

    text = "time operators against reference implementations"
    ops = subcommand("ops", text, cases=operators.cases, baseline=1)
    add = ops.add_argument
    kinds = operators.OPERATORS
    add("--operator", nargs="+", choices=kinds, default=kinds, help="default: all")
    shapes = f"{SHAPE_HELP}; 800 1344 (deform: 512 672, post-processing: 800 1216) if left out"
    add("--shape", type=int, nargs="+", metavar=("H", "W"), help=shapes)
    strides = list(operators.RESNET50_CHANNELS)
    add("--stride", type=int, nargs="+", choices=strides, default=strides, help="default: all")
    masks = [20, 100, 1000]
    channels = "numbers of masks to decode (default: 20 100 1000)"
    add("--channels", type=number(int, 1), nargs="+", default=masks, metavar="Q", help=channels)
    queries = "queries in post-processing, all kept (default: 100)"
    add("--kept-queries", type=number(int, 1), default=100, metavar="N", help=queries)
    passes = operators.PASSES
    add("--pass", nargs="+", choices=passes, default=passes, dest="passes", help="default: both")
    add("--compile", action="store_true", help="add ours under torch.compile")
    add_common_arguments(ops)

    model = subcommand("model", "time inference of any config's model", cases=models.inference)
    add_config_arguments(model)
    add_baseline_argument(model)
    add = model.add_argument
    modes = "predict adds pre- and post-processing to forward (default: forward predict)"
    add("--mode", nargs="+", choices=models.MODES, default=["forward", "predict"], help=modes)
    dtypes = ["float32", "bfloat16", "float16"]
    lower = "lower ones by autocast (default: float32)"
    add("--dtype", nargs="+", choices=dtypes, default=dtypes[:1], help=lower)
    add_kept_queries(model)
    add_common_arguments(model)

    text = "time models end to end, from bytes to results, in PyTorch and as exported files"
    deployed = subcommand("deployment", text, cases=runtimes.cases)
    add_config_arguments(deployed)
    add_baseline_argument(deployed)
    kinds = runtimes.RUNTIMES
    text = "of models that can be exported (default: all but openvino, which is to be installed)"
    deployed.add_argument("--runtimes", nargs="+", choices=kinds, default=kinds[:-1], help=text)
    native = "export ONNX's DeformConv, which openvino lacks"
    deployed.add_argument("--deform-conv", action="store_true", help=native)
    add_kept_queries(deployed)
    add_common_arguments(deployed)

    train = subcommand("train", "time training of any config's model", cases=models.training)
    add_config_arguments(train)
    add_baseline_argument(train)
    add = train.add_argument
    phases = "whole step, or head alone (default: step)"
    add("--phase", nargs="+", choices=models.PHASES, default=["step"], help=phases)
    add_batch_arguments(train, images=2)
    add_common_arguments(train)

    text = "count what a GPU would do for any config's model, on a machine without one"
    costs = subcommand("costs", text, run=count, device="cpu", baseline=1)
    add_config_arguments(costs)
    add = costs.add_argument
    phases = "network, all up to results, fusion head, losses, or step (default: network)"
    add("--phase", nargs="+", choices=models.COUNTED, default=["network"], help=phases)
    add_kept_queries(costs)
    add_batch_arguments(costs, images=1)
    add("--card", default="A100 80GB SXM", help="card to estimate (default: A100 80GB SXM)")
    rate = number(float, 1)
    add("--bandwidth", type=rate, default=2039, help="its memory's GB/s (default: 2039)")
    add("--peak", type=rate, default=156, help="its TFLOP/s (default: 156, of TF32)")
    launch = "microseconds of a launch (default: 5)"
    add("--launch-us", type=number(float, 0), default=5, help=launch)
    tables = "also list costs by operator and by line of code"
    add("--profile", action="store_true", help=tables)
    add_report_arguments(costs)

    args = parser.parse_args()
    sides = args.shape or []
    # Models pad other sizes differently: ratios would compare different images.
    if len(sides) % 2 or any(side < 32 or side % 32 for side in sides):
        parser.error(f"expected --shape of pairs H W, multiples of 32, got {sides}")
    args.shape = list(zip(sides[::2], sides[1::2], strict=True))
    configs = getattr(args, "configs", [""])
    if args.baseline > len(configs):
        parser.error(f"expected --baseline of 1 to {len(configs)}, got {args.baseline}")
    return args


def run(args: argparse.Namespace) -> list[measure.Row]:
    """Measure every case at every number of threads.

    Operators and training also get peak extra memory; a whole training step is repeated in a fresh
    process for its whole peak: resident memory, or what is allocated on a GPU.
    """
    results: list[measure.Row] = []
    for setting, calls in args.cases(args):
        height, width = map(int, setting["shape"].split("x"))
        for threads in args.threads:
            torch.set_num_threads(threads)
            rows = measure.measure(
                calls,
                {**setting, "threads": threads},
                repeats=args.repeats,
                warmup=args.warmup,
                baseline=args.baseline - 1,
                memory=args.cases in (operators.cases, models.training),
                profile_rows=args.profile,
                device=args.device,
            )
            if args.cases is operators.cases:
                for row in rows:
                    row["ns/pixel"] = 1e6 * row["median (ms)"] / (height * width)
            if setting.get("phase") == "step":
                peaks = []
                for index in range(len(calls)):
                    with ProcessPoolExecutor(1, get_context("spawn")) as process:
                        work = models.peak_of_training, args, index, (height, width), threads
                        peaks.append(process.submit(*work).result())
                kind = "resident" if args.device == "cpu" else "allocated"
                measure.add_peaks(rows, kind, peaks, args.baseline - 1)
            results += rows
        del calls  # before the maps of the next case are made
    return results


def count(args: argparse.Namespace) -> list[measure.Row]:
    """Count the costs of every model on a GPU, and estimate its time on a card."""
    rows: list[measure.Row] = []
    for setting, name, costs in models.costs(args):
        estimate = costs.milliseconds(args.bandwidth, args.peak, args.launch_us)
        rows.append({"name": name, **setting, **costs.row(), "estimated (ms)": estimate})
        if args.profile:
            tables = costs.table(), costs.table("place")
            rows[-1]["profile"] = "\n\n".join([f"{name}, {setting['phase']}:", *tables])
    return rows


def main() -> None:
    args = parse_args()
    try:
        check_device(args.device)
        if args.device != "cpu":
            torch.cuda.set_device(args.device)  # for which the clock waits
        results = args.run(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"benchmark: {error}")
    measured = args.run is run
    conditions: dict[str, Any] = {}
    if measured:
        conditions = {"rounds": args.repeats, "warm-up": args.warmup}
    for name in ("seed", "checkpoints", "kept_queries", "objects", *CARD):
        if getattr(args, name, None) is not None:
            conditions[name.replace("_", " ")] = getattr(args, name)
    report = dict(
        command=shlex.join(["python", *sys.argv]),
        conditions=conditions | measure.environment(args.device),
        results=results,
    )
    if measured:
        first = results[args.baseline - 1]["name"]
        report["baseline"] = first if "configs" in args else "the first row"
    print(measure.as_markdown(report))
    try:
        for file in args.out:
            measure.write_report(file, report)
    except OSError as error:
        sys.exit(f"benchmark: {error}")


if __name__ == "__main__":
    main()
