"""Evaluate a checkpoint by the metrics of its config, MMDetection's or MMSegmentation's."""

import argparse
import os

from mmdet.evaluation import DumpDetResults
from mmengine.config import Config

from hcformer_mm.acceleration.inference import DTYPES
from hcformer_mm.engine.runner import add_common_arguments, build_runner, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--out",
        help="write predictions, as the hosts do: into this .pkl file those of a detector, into "
        "this folder the label maps of a segmentor",
    )
    parser.add_argument(
        "--show-dir", help="paint predictions into <work-dir>/<timestamp>/<show-dir>"
    )
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation, by tta_model and tta_pipeline"
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="fuse BatchNorm and lay memory out channels-last, which changes results by rounding",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="precision of the network (default: %(default)s)",
    )
    return parser.parse_args()


def is_a(config: dict, name: str) -> bool:
    """Whether the type of a config, a name or a class, ends in ``name``."""
    kind = config["type"]
    return getattr(kind, "__name__", kind).endswith(name)


def paint_predictions(config: Config, folder: str) -> None:
    """Switch the host's visualization hook on."""
    hook = config.default_hooks.visualization
    hook.draw = True
    if is_a(hook, "SegVisualizationHook"):
        # This hook paints by the visualizer, whose files lie in <timestamp>/vis_data.
        for backend in config.visualizer.vis_backends:
            if is_a(backend, "LocalVisBackend"):
                backend.img_save_dir = os.path.join(os.pardir, folder)
    else:
        hook.test_out_dir = folder


def write_label_maps(config: Config, folder: str) -> None:
    """Make the host's metric of segmentors write what it evaluates."""
    evaluators = config.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if is_a(evaluator, "IoUMetric"):
            evaluator.output_dir = folder
            return
    raise SystemExit(
        "expected a mmseg.IoUMetric, which writes the label maps, in test_evaluator for --out, "
        f"got {evaluators}"
    )


def augment(config: Config) -> None:
    """Wrap model and pipeline for augmentation in the test."""
    missing = [name for name in ("tta_model", "tta_pipeline") if name not in config]
    if missing:
        raise SystemExit(
            f"expected tta_model and tta_pipeline in {config.filename} for --tta, got no "
            f"{' and no '.join(missing)}; the hosts have them for semantic segmentation and for "
            "boxes"
        )
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.tta_model.module = config.model
    config.model = config.tta_model


def main() -> None:
    args = parse_args()
    config = load_config(args)
    config.load_from = args.checkpoint
    segmentor = config.get("default_scope") == "mmseg"
    if args.show_dir:
        paint_predictions(config, args.show_dir)
    if args.out is not None and segmentor:
        write_label_maps(config, args.out)
    elif args.out is not None and not args.out.endswith((".pkl", ".pickle")):
        raise SystemExit(f"expected --out to end in .pkl or .pickle, got {args.out}")
    if args.tta:
        augment(config)
    if args.fast or args.dtype != "float32":
        hook = dict(type="hcformer_mm.FastInferenceHook", fast=args.fast, dtype=args.dtype)
        config.custom_hooks = [*config.get("custom_hooks", []), hook]
    runner = build_runner(config)
    if args.out is not None and not segmentor:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == "__main__":
    main()
