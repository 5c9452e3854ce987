"""Time models side by side on one machine: medians, spread and ratios."""

import argparse
import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction

from hcformer_mm.apis.benchmark import (
    as_markdown,
    environment,
    summarise,
    time_in_turn,
    top_operators,
    write_report,
)
from hcformer_mm.apis.benchmark_model import (
    DTYPES,
    MODES,
    model_call,
)
from hcformer_mm.apis.fast_inference import fold_batch_norm, to_channels_last
from hcformer_mm.apis.model_loading import build_model, find_config


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
    add("--seed", type=int, default=0, help="seed of pictures and weights (default: 0)")
    operators = "show the N operators (default: 12) that take longest, too"
    add("--profile", type=at_least(1), nargs="?", const=12, metavar="N", help=operators)
    files = "write the results to these files, *.json or *.md"
    add("--out", type=report_file, nargs="+", default=[], metavar="FILE", help=files)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=time_models)
    add = parser.add_argument
    configs = "config file, or package::path of one that comes with mmdet or mmseg"
    add("configs", nargs="+", metavar="CONFIG", help=configs)
    shapes = "picture sizes, pairs of multiples of 32"
    add("--shape", type=at_least(1), nargs="+", required=True, metavar=("H", "W"), help=shapes)
    modes = (
        "backbone: that alone; forward: the network; predict: normalisation, padding, network and "
        "post-processing (default: forward predict)"
    )
    add("--mode", nargs="+", choices=MODES, default=["forward", "predict"], help=modes)
    dtypes = "bfloat16 is autocast (default: float32)"
    add("--dtype", nargs="+", choices=list(DTYPES), default=["float32"], help=dtypes)
    baseline = "ratios are to the I-th config, counted from 1 (default: 1)"
    add("--baseline", type=at_least(1), default=1, metavar="I", help=baseline)
    weights = "weights of each config, a file or 'random' (default: all random)"
    add("--checkpoints", nargs="+", metavar="FILE", help=weights)
    add("--fold-bn", action="store_true", help="fold BatchNorm into convolutions, in all models")
    add("--channels-last", action="store_true", help="channels-last memory, in all models")
    overrides = "override settings of all configs, as key=value"
    add("--cfg-options", nargs="+", action=DictAction, default={}, help=overrides)
    add_common_arguments(parser)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    subcommands = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    add_model_arguments(subcommands.add_parser("model", help="inference of models of any config"))
    args = parser.parse_args()
    args.threads = args.threads or [torch.get_num_threads()]
    return args


def build_models(args: argparse.Namespace) -> dict[str, Any]:
    """The models of the command line by name, all treated alike."""
    number = len(args.configs)
    # Hosts differ in how they pad other sizes: ratios would compare different pictures.
    if len(args.shape) % 2 or any(side % 32 for side in args.shape):
        raise ValueError(f"expected --shape of pairs H W, multiples of 32, got {args.shape}")
    if args.baseline > number:
        raise ValueError(f"expected --baseline of 1 to {number}, got {args.baseline}")
    if args.checkpoints is None:
        args.checkpoints = ["random"] * number
    if len(args.checkpoints) != number:
        raise ValueError(f"expected {number} --checkpoints, one per config, got {args.checkpoints}")
    files = [find_config(name) for name in args.configs]
    models: dict[str, Any] = {}
    for file, checkpoint in zip(files, args.checkpoints, strict=True):
        config = Config.fromfile(file)
        config.merge_from_dict(args.cfg_options)
        weights = None if checkpoint == "random" else Path(checkpoint)
        model = build_model(config, weights, seed=args.seed)
        if args.fold_bn:
            model = fold_batch_norm(model)
        if args.channels_last:
            model = to_channels_last(model)
        # The same config may be given twice: the ratio then shows how far ratios can be trusted.
        repeated = sum(earlier.stem == file.stem for earlier in files[: len(models)])
        models[f"{file.stem} ({repeated + 1})" if repeated else file.stem] = model
    return models


def time_models(args: argparse.Namespace) -> dict[str, Any]:
    """Results and profiles of the subcommand ``model``, and their conditions."""
    models = build_models(args)
    shapes = list(zip(args.shape[::2], args.shape[1::2], strict=True))
    measurements, profiles = [], []
    for mode, shape, dtype, threads in product(args.mode, shapes, args.dtype, args.threads):
        setting = dict(mode=mode, shape=f"{shape[0]}x{shape[1]}", dtype=dtype, threads=threads)
        print("timing", *setting.values(), flush=True)
        torch.set_num_threads(threads)
        options = dict(dtype=DTYPES[dtype], channels_last=args.channels_last, seed=args.seed)
        calls = {
            name: model_call(model, shape, mode=mode, **options) for name, model in models.items()
        }
        measurements += time_in_turn(
            calls, repeats=args.repeats, warmup=args.warmup, setting=setting
        )
        if args.profile is not None:
            profiles += [
                dict(name=name, **setting, operators=top_operators(call, args.profile))
                for name, call in calls.items()
            ]
    baseline = list(models)[args.baseline - 1]
    return dict(
        conditions={
            "weights": ", ".join(args.checkpoints),
            "BatchNorm": "folded" if args.fold_bn else "as configured",
            "memory": "channels-last" if args.channels_last else "contiguous",
        },
        baseline=baseline,
        results=summarise(measurements, baseline),
        profiles=profiles,
    )


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
