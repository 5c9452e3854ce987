"""Evaluate a checkpoint of a detector or segmentor with the metrics of its config."""

import argparse
import os
import sys
from pathlib import Path

import hcformer_mm.utils.threads  # noqa: F401

from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.fileio import dump
from mmengine.runner import Runner

from hcformer_mm.acceleration.inference import DTYPES
from hcformer_mm.engine.run_checks.lookup import is_named
from hcformer_mm.engine.runner import (
    add_checkpoint_arguments,
    add_common_arguments,
    build_runner,
    load_config,
)
from hcformer_mm.utils.atomic_write import replacing
from hcformer_mm.utils.errors import InputError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--out",
        help="write predictions as mmdet and mmseg do: a detector's results to this .pkl file, a "
        "segmentor's label maps to this folder",
    )
    parser.add_argument(
        "--show-dir", help="draw predictions into <work-dir>/<timestamp>/<show-dir>"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="use test-time augmentation: the config's tta_model and tta_pipeline",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="fuse BatchNorm and use channels-last memory; results change by rounding",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="precision of the network (default: %(default)s)",
    )
    return parser.parse_args()


def draw_predictions(config: Config, folder: str) -> None:
    """Enable the visualization hook of mmdet or mmseg."""
    hook = (config.get("default_hooks") or {}).get("visualization")
    if not hook or not config.get("visualizer"):
        raise InputError(
            f"expected default_hooks.visualization and visualizer in {config.filename} for "
            "--show-dir, got not both; take them from a runtime of configs/_base_"
        )
    hook.draw = True
    if is_named(hook, "SegVisualizationHook"):
        # OpenMMLab's own mmseg draws one batch in this many; the fork draws all in a test.
        hook.interval = 1
        # The hook draws with the visualizer, which writes to <timestamp>/vis_data.
        for backend in config.visualizer.vis_backends:
            if is_named(backend, "LocalVisBackend"):
                backend.img_save_dir = os.path.join(os.pardir, folder)
    else:
        hook.test_out_dir = folder
        if is_named(config.visualizer, "DetLocalVisualizer"):
            config.visualizer.type = "hcformer_mm.Visualizer"


def write_label_maps(config: Config, folder: str) -> None:
    """Let mmseg's IoUMetric write the label maps that it evaluates."""
    evaluators = config.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        if is_named(evaluator, "IoUMetric"):
            evaluator.output_dir = folder
            return
    raise InputError(
        "expected a mmseg.IoUMetric in test_evaluator, which writes label maps for --out, "
        f"got {evaluators}"
    )


def result_file(path: str) -> BaseMetric:
    """Metric of mmdet that dumps a detector's results; here the file is whole or not there."""
    from mmdet.evaluation import DumpDetResults

    class DumpWhole(DumpDetResults):
        def compute_metrics(self, results: list) -> dict:
            with replacing(Path(path)) as unfinished:
                dump(results, unfinished, file_format="pkl")
            return {}

    return DumpWhole(out_file_path=path)


def check_files(runner: Runner, option: str, folder: Path, part: str) -> None:
    """Raise an InputError if an option would write over an image, a label map or its own files.

    mmdet and mmseg name a file after its image, without folders: by its ``name`` or its ``stem``.
    """
    dataset = runner.test_loop.dataloader.dataset
    samples = [dataset.get_data_info(index) for index in range(len(dataset))]
    keys = ("img_path", "seg_map_path")
    sources = {Path(sample[key]).parent for sample in samples for key in keys if sample.get(key)}
    if folder.resolve() in {source.resolve() for source in sources}:
        raise InputError(
            f"expected another folder than that of images or label maps for {option}, got {folder}"
        )
    seen: dict[str, str] = {}
    for path in (sample["img_path"] for sample in samples if "img_path" in sample):
        if (other := seen.setdefault(getattr(Path(path), part), path)) != path:
            raise InputError(
                f"expected images of different names for {option}, which leaves out their folders, "
                f"got {other} and {path}; use tools/predict.py, which keeps folders"
            )


def augment(config: Config) -> None:
    """Wrap the model, and replace the pipeline, for test-time augmentation."""
    missing = [name for name in ("tta_model", "tta_pipeline") if name not in config]
    if missing:
        raise InputError(
            f"expected tta_model and tta_pipeline in {config.filename} for --tta, got no "
            f"{' and no '.join(missing)}; see the runtimes and datasets of configs/_base_"
        )
    config.test_dataloader.dataset.pipeline = config.tta_pipeline
    config.tta_model.module = config.model
    config.model = config.tta_model


def test(args: argparse.Namespace) -> None:
    config = load_config(args)
    segmentor = config.get("default_scope") == "mmseg"
    if args.show_dir:
        draw_predictions(config, args.show_dir)
    if args.out is not None and segmentor:
        write_label_maps(config, args.out)
    elif args.out is not None and not args.out.endswith((".pkl", ".pickle")):
        raise InputError(f"expected --out to end in .pkl or .pickle, got {args.out}")
    if args.tta:
        augment(config)
    if args.fast or args.dtype != "float32":
        hook = dict(type="hcformer_mm.FastInferenceHook", fast=args.fast, dtype=args.dtype)
        config.custom_hooks = [*(config.get("custom_hooks") or []), hook]
    runner = build_runner(config, ["test"], allow_partial=args.allow_partial)
    if args.show_dir and not segmentor:
        folder = Path(runner.work_dir, runner.timestamp, args.show_dir)
        check_files(runner, "--show-dir", folder, "name")
    if args.out is not None and segmentor:
        check_files(runner, "--out", Path(args.out), "stem")
    if args.out is not None and not segmentor:
        runner.test_evaluator.metrics.append(result_file(args.out))
    runner.test()


def main() -> None:
    try:
        test(parse_args())
    except (InputError, OSError) as error:
        sys.exit(f"test: {error}")


if __name__ == "__main__":
    main()
