"""Train the model of a config of this project, mmdet or mmseg."""

import argparse
import sys
from pathlib import Path

import hcformer_mm.utils.threads  # noqa: F401

from mmengine.config import Config

from hcformer_mm.engine.runner import add_common_arguments, build_runner, load_config
from hcformer_mm.utils.arguments import number
from hcformer_mm.utils.errors import InputError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="resume from this checkpoint; without a value, from the newest in the work directory, "
        "or begin if there is none",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="fuse frozen BatchNorm and use channels-last memory; losses change by rounding",
    )
    parser.add_argument(
        "--amp",
        action="store_true",
        help="train in mixed precision: on a GPU in float16, or the dtype of optim_wrapper; on a "
        "CPU in bfloat16",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by the batch size over auto_scale_lr.base_batch_size",
    )
    parser.add_argument(
        "--draw",
        type=number(int, 1),
        nargs="+",
        default=[],
        metavar="ITERATION",
        help="draw clusters and segments of the first validation image after these iterations, and "
        "at every validation, into <work-dir>/<timestamp>/vis_data/vis_image",
    )
    return parser.parse_args()


def resume(config: Config, checkpoint: str) -> None:
    """Resume from a checkpoint, or from the newest of the work directory if it is ``'auto'``."""
    if checkpoint != "auto":
        config.resume, config.load_from = True, checkpoint
        return
    saved = (Path(config.work_dir).glob(name) for name in ("last_checkpoint", "*.pth"))
    # A training that has saved nothing yet begins from load_from, if there is one.
    config.resume = any(map(any, saved)) or not config.get("load_from")
    if config.resume:
        config.load_from = None


def train(args: argparse.Namespace) -> None:
    config = load_config(args)
    if args.amp:
        config.optim_wrapper.type = "AmpOptimWrapper"
        config.optim_wrapper.loss_scale = "dynamic"
    hooks = [dict(type="hcformer_mm.FastTrainingHook")] if args.fast else []
    if args.draw:
        drawing = dict(max_images=1, train_iters=args.draw)
        hooks.append(dict(type="hcformer_mm.ClusterVisualizationHook", **drawing))
    if hooks:
        config.custom_hooks = [*(config.get("custom_hooks") or []), *hooks]
    if args.auto_scale_lr:
        if "base_batch_size" not in (config.get("auto_scale_lr") or {}):
            raise InputError(
                f"expected auto_scale_lr.base_batch_size in {args.config} for --auto-scale-lr, got "
                "none; add auto_scale_lr = dict(base_batch_size=...) to the config"
            )
        config.auto_scale_lr.enable = True
    if args.resume is not None:
        resume(config, args.resume)
    build_runner(config).train()


def main() -> None:
    try:
        train(parse_args())
    except (InputError, OSError) as error:
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    main()
