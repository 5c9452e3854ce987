"""Evaluate a checkpoint by the metrics of its config."""

import argparse

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults

from hcformer_mm.apis.command_line import add_common_arguments, build_runner, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", help="dump predictions to this .pkl file")
    parser.add_argument(
        "--show-dir", help="paint predictions into <work-dir>/<timestamp>/<show-dir>"
    )
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith((".pkl", ".pickle")):
        parser.error(f"expected --out to end in .pkl or .pickle, got {args.out}")
    return args


def main() -> None:
    args = parse_args()
    config = load_config(args)
    config.load_from = args.checkpoint
    if args.show_dir:
        # The host's helper reads these two of its own arguments as well.
        args.show, args.wait_time = False, 0
        config = trigger_visualization_hook(config, args)
    runner = build_runner(config)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == "__main__":
    main()
