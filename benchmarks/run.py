"""Time operators and models side by side on one machine: medians, spread, ratios, memory."""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

from benchmarks.model_specs import parse_variants
from benchmarks.models import DTYPES
from benchmarks.operators import OPERATORS, PASSES, RESNET50_CHANNELS, load_listings
from benchmarks.runs import Rounds, compare_models, compare_operators, compare_training
from benchmarks.timing import as_markdown, environment, write_report
from benchmarks.training import PHASES
from hcformer_mm.utils.random_inputs import MODES

REFERENCE = Path(__file__).resolve().parents[1] / "tests/helpers/reference.py"
# The sizes at which each operator is looked at unless others are asked for.
SHAPES = {"deform": [512, 672], "post-processing": [800, 1216]}
SHAPE = [800, 1344]


def at_least(minimum: int):
    """Type of an argument: an integer that is not below ``minimum``."""

    def parse(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < minimum:
            raise argparse.ArgumentTypeError(f"expected an integer >= {minimum}, got {text!r}")
        return int(text)

    return parse


def report_file(text: str) -> Path:
    if not text.endswith((".json", ".md")):
        raise argparse.ArgumentTypeError(f"expected a file *.json or *.md, got {text!r}")
    return Path(text)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every subcommand asks for."""
    add = parser.add_argument
    add("--repeats", type=at_least(1), default=7, help="rounds that count (default: 7)")
    add("--warmup", type=at_least(0), default=1, help="rounds before those (default: 1)")
    threads = "threads of PyTorch, one number or several (default: its own choice)"
    add("--threads", type=at_least(1), nargs="+", metavar="N", help=threads)
    add("--seed", type=int, default=0, help="seed of images and weights (default: 0)")
    operators = "show the N operators (default: 12) that take longest, too"
    add("--profile", type=at_least(1), nargs="?", const=12, metavar="N", help=operators)
    files = "write the results to these files, *.json or *.md"
    add("--out", type=report_file, nargs="+", default=[], metavar="FILE", help=files)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """What the subcommands ask for that compare configs."""
    add = parser.add_argument
    configs = (
        "config file, name of the zoo, or package::path of one that comes with mmdet or mmseg; "
        "settings of this one alone follow as @key=value"
    )
    add("configs", nargs="+", metavar="CONFIG[@SETTING]...", help=configs)
    shapes = "image sizes, pairs of multiples of 32"
    add("--shape", type=at_least(1), nargs="+", required=True, metavar=("H", "W"), help=shapes)
    baseline = "ratios are to the I-th config, counted from 1 (default: 1)"
    add("--baseline", type=at_least(1), default=1, metavar="I", help=baseline)
    fuse = "fuse BatchNorm into convolutions, in all models; in one by CONFIG@fuse-conv-bn"
    add("--fuse-conv-bn", action="store_true", help=fuse)
    memory = "channels-last memory, in all models; in one by CONFIG@channels-last"
    add("--channels-last", action="store_true", help=memory)
    overrides = "override settings of all configs, as key=value"
    add("--cfg-options", nargs="+", action=DictAction, default={}, help=overrides)


def add_ops_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_ops)
    add = parser.add_argument
    add("--operator", nargs="+", choices=OPERATORS, default=OPERATORS, help="default: all")
    shapes = (
        "image sizes, pairs of multiples of 32 (default: 800 1344; deform: 512 672; "
        "post-processing: 800 1216)"
    )
    add("--shape", type=at_least(1), nargs="+", metavar=("H", "W"), help=shapes)
    strides = "maps of these strides are clustered and decoded to (default: 4 8 16)"
    all_strides = list(RESNET50_CHANNELS)
    add("--stride", type=int, nargs="+", choices=all_strides, default=all_strides, help=strides)
    channels = "numbers of masks to decode (default: 20 100 1000)"
    numbers = [20, 100, 1000]
    add("--channels", type=at_least(1), nargs="+", default=numbers, metavar="Q", help=channels)
    queries = "queries that are kept in post-processing (default: 100)"
    add("--kept-queries", type=at_least(1), default=100, metavar="N", help=queries)
    add("--pass", nargs="+", choices=PASSES, default=PASSES, dest="passes", help="default: both")
    add("--compile", action="store_true", help="ours under torch.compile, too")
    add_common_arguments(parser)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_model)
    add_config_arguments(parser)
    add = parser.add_argument
    modes = (
        "backbone: that alone; forward: the network; predict: normalization, padding, network and "
        "post-processing (default: forward predict)"
    )
    add("--mode", nargs="+", choices=MODES, default=["forward", "predict"], help=modes)
    dtypes = "bfloat16 is autocast (default: float32)"
    add("--dtype", nargs="+", choices=list(DTYPES), default=["float32"], help=dtypes)
    weights = "weights of each config, a file or 'random' (default: all random)"
    add("--checkpoints", nargs="+", metavar="FILE", help=weights)
    kept = "let N queries of mask transformers pass as objects (default: as the weights say)"
    add("--kept-queries", type=at_least(0), metavar="N", help=kept)
    add_common_arguments(parser)


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=run_train)
    add_config_arguments(parser)
    add = parser.add_argument
    phases = "step: all of a training step; head: forward, losses and backward of the head alone"
    add("--phase", nargs="+", choices=PHASES, default=["step"], help=f"{phases} (default: step)")
    add("--batch", type=at_least(1), default=2, help="images of a step (default: 2)")
    add("--objects", type=at_least(1), default=10, help="objects on an image (default: 10)")
    add_common_arguments(parser)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    subcommands = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    add_ops_arguments(subcommands.add_parser("ops", help="operators beside plain versions of them"))
    add_model_arguments(subcommands.add_parser("model", help="inference of models of any config"))
    add_train_arguments(subcommands.add_parser("train", help="training of models of any config"))
    args = parser.parse_args()
    args.threads = args.threads or [torch.get_num_threads()]
    return args


def pairs(sides: list[int]) -> list[tuple[int, int]]:
    """The sizes of ``--shape``."""
    # Hosts differ in how they pad other sizes: ratios would compare different images.
    if len(sides) % 2 or any(side % 32 for side in sides):
        raise ValueError(f"expected --shape of pairs H W, multiples of 32, got {sides}")
    return list(zip(sides[::2], sides[1::2], strict=True))


def rounds_of(args: argparse.Namespace) -> Rounds:
    return Rounds(
        repeats=args.repeats,
        warmup=args.warmup,
        threads=args.threads,
        profile=args.profile,
        seed=args.seed,
        show=partial(print, flush=True),
    )


def run_ops(args: argparse.Namespace) -> dict[str, Any]:
    return compare_operators(
        rounds_of(args),
        {name: pairs(args.shape or SHAPES.get(name, SHAPE)) for name in args.operator},
        load_listings(REFERENCE),
        passes=args.passes,
        strides=args.stride,
        channels=args.channels,
        queries=args.kept_queries,
        compiled=args.compile,
    )


def run_model(args: argparse.Namespace) -> dict[str, Any]:
    shapes = pairs(args.shape)
    check_baseline(args)
    variants = parse_variants(
        args.configs,
        options=args.cfg_options,
        weights=args.checkpoints,
        fuse_bn=args.fuse_bn,
        channels_last=args.channels_last,
    )
    return compare_models(
        rounds_of(args),
        variants,
        shapes,
        modes=args.mode,
        dtypes=args.dtype,
        kept_queries=args.kept_queries,
        baseline=args.baseline - 1,
    )


def run_train(args: argparse.Namespace) -> dict[str, Any]:
    shapes = pairs(args.shape)
    check_baseline(args)
    return compare_training(
        rounds_of(args),
        parse_variants(
            args.configs,
            options=args.cfg_options,
            fuse_bn=args.fuse_bn,
            channels_last=args.channels_last,
        ),
        shapes,
        phases=args.phase,
        batch=args.batch,
        objects=args.objects,
        baseline=args.baseline - 1,
    )


def check_baseline(args: argparse.Namespace) -> None:
    if args.baseline > len(args.configs):
        raise ValueError(f"expected --baseline of 1 to {len(args.configs)}, got {args.baseline}")


def main() -> None:
    args = parse_args()
    try:
        report = args.run(args)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"benchmark: {error}")
    report["command"] = shlex.join(["python", *sys.argv])
    rounds = {"rounds": args.repeats, "warm-up": args.warmup, "seed": args.seed}
    report["conditions"] |= rounds | environment()
    print(as_markdown(report))
    for file in args.out:
        write_report(file, report)


if __name__ == "__main__":
    main()
