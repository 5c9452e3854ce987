"""Export a model to ONNX or torch.export, and check the file against the model."""

import argparse
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hcformer_mm.utils.threads  # noqa: F401

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger

from hcformer_mm.apis.inference import build_model, inference_pipeline
from hcformer_mm.apis.inputs import open_images
from hcformer_mm.deployment.export import (
    IMAGE,
    SUFFIXES,
    ExportableModel,
    describe,
    export_model,
    load_exported,
    pipeline_divisor,
    pipeline_resize,
)
from hcformer_mm.deployment.post_processing import resize
from hcformer_mm.deployment.verify import TOLERANCE, agrees, as_text, compare, time_both
from hcformer_mm.utils.arguments import add_cfg_options, number
from hcformer_mm.utils.config import read_config, tested_dataset

RANDOM = "random"
STRIDE = 32
IMAGE_SIZES = ((481, 643), (359, 241))
"""Heights and widths of images on which metadata and test pipeline are compared."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("config", help="config file, name of a config of this package, or package::path")
    add("checkpoint", help=f"checkpoint file, or '{RANDOM}' for randomly initialized weights")
    add("--format", choices=list(SUFFIXES), required=True, help="format of the file")
    add("--shape", type=int, nargs=2, required=True, metavar=("H", "W"), help="size of the images")
    add("--dynamic", action="store_true", help="accept any number of images of any size")
    add(
        "--batch-size",
        type=number(int, 1),
        default=1,
        help="number of images in a batch (default: 1)",
    )
    add("--assignments", action="store_true", help="also return the assignments of every level")
    results = "return panoptic, instance and semantic results in place of logits"
    add("--with-postprocess", action="store_true", help=results)
    add("--uint8", action="store_true", help="take RGB bytes (B, H, W, 3) and normalize them")
    deform = "use ONNX's DeformConv, which is faster but missing in older and other runtimes"
    add("--deform-conv", action="store_true", help=deform)
    half = "compute the backbone in float16"
    add("--fp16", action="store_true", help=half)
    folder = "quantize the backbone's convolutions to 8 bits, with the images of this folder"
    add("--int8", type=Path, metavar="FOLDER", help=folder)
    add("--out", type=Path, help="file to write (default: named after the config and the format)")
    check = f"compare outputs and time of file and model; fail if they differ by {TOLERANCE:g}"
    add("--check", action="store_true", help=check)
    add("--repeats", type=number(int, 1), default=5, help="timed rounds of --check (default: 5)")
    add_cfg_options(parser)
    args = parser.parse_args()
    if (args.fp16 or args.int8) and (args.format != "onnx" or (args.fp16 and args.int8)):
        parser.error("expected --format onnx and one of --fp16 and --int8")
    if (args.fp16 or args.int8) and args.check:
        parser.error(
            "expected --check without --fp16 and --int8, which change outputs by more than it "
            "allows; evaluate the file by tools/deployment/test.py"
        )
    return args


def load(args: argparse.Namespace) -> tuple[ExportableModel, dict[str, Any]]:
    """Build the model of the command line, and return it with its metadata."""
    config = read_config(args.config, args.cfg_options)
    checkpoint = None if args.checkpoint == RANDOM else args.checkpoint
    if checkpoint is None:
        print("the weights are random", file=sys.stderr)
    model = build_model(config, checkpoint)
    divisor = pipeline_divisor(model)
    # A dynamic model must pad to whole cells even where the pipeline does not pad.
    if args.dynamic and divisor == 1:
        divisor = STRIDE
    exportable = ExportableModel(
        model,
        with_assignments=args.assignments,
        with_postprocess=args.with_postprocess,
        uint8=args.uint8,
        deform_conv=args.deform_conv,
        size_divisor=divisor,
    )
    about = describe(exportable, Path(config.filename).stem) | dict(resize=pipeline_resize(config))
    if tested_dataset(config):
        check_resize(config, about["resize"])
    return exportable.eval(), about


def check_resize(config: Config, resize: dict[str, Any] | None) -> None:
    """Raise a ValueError unless the test pipeline resizes images as the metadata say."""
    pipeline = inference_pipeline(config)
    for height, width in IMAGE_SIZES:
        size = width, height
        if resize:
            scale = tuple(resize["scale"])
            size = mmcv.rescale_size(size, scale) if resize["keep_ratio"] else scale
        image = np.zeros((height, width, 3), np.uint8)
        found = tuple(pipeline(dict(img=image, img_path="", img_id=0))["inputs"].shape[1:])
        if found != size[::-1]:
            raise ValueError(
                f"expected a test pipeline in {config.filename} that resizes images by Resize with "
                f"scale alone, which the metadata of the file tell its users, got {found} of an "
                f"image of {(height, width)} in place of {size[::-1]}; replace the other steps of "
                "test_dataloader.dataset.pipeline that change the size"
            )


def compress(args: argparse.Namespace, model: ExportableModel, source: Path, path: Path) -> None:
    """Write a file in half precision or 8 bits, as the command line asks."""
    from hcformer_mm.deployment import compression  # onnx is optional

    if args.fp16:
        compression.to_float16(source, path)
        return
    compression.to_int8(source, path, calibration(args, model))


def calibration(args: argparse.Namespace, model: ExportableModel) -> Iterator[dict[str, Any]]:
    """Yield inputs of the exported model, each of one image of the folder of the command line."""
    pipeline = inference_pipeline(read_config(args.config, args.cfg_options))
    for image in open_images(args.int8):
        pixels = pipeline(dict(img_path=str(image.path)))["inputs"]
        if not args.dynamic:  # the file takes no other size or number of images
            pixels = resize(pixels[None].float(), tuple(args.shape))[0].round().byte()
        inputs = model.inputs_of(pixels)
        yield inputs | {IMAGE: inputs[IMAGE].repeat(args.batch_size, axis=0)}


def check(args: argparse.Namespace, model: ExportableModel, path: Path) -> bool:
    """Print how file and model compare, and return whether all outputs agree."""
    exported = load_exported(path)
    height, width = args.shape
    shapes = [(height, width)]
    if args.dynamic:
        # More cells, and not a whole number of them.
        shapes.append((height + 2 * STRIDE - 5, width + 4 * STRIDE - 11))
    equal = True
    for shape in shapes:
        comparisons = compare(exported, model, shape, batch_size=args.batch_size)
        times = time_both(exported, model, shape, batch_size=args.batch_size, repeats=args.repeats)
        print(as_text(comparisons, times), end="\n\n")
        equal = equal and agrees(comparisons)
    return equal


def main() -> None:
    args = parse_args()
    # MMEngine logs how every parameter is initialized; exporters warn about their internals.
    MMLogger.get_instance("export", log_level="WARNING")
    for library in ("torch.onnx", "onnxscript"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning)
    try:
        if args.int8:
            open_images(args.int8)  # fails on a mistyped name before the export
        model, about = load(args)
        path = args.out or Path(about["name"] + SUFFIXES[args.format])
        with TemporaryDirectory() as folder:
            compressed = args.fp16 or args.int8
            whole = Path(folder, path.name) if compressed else path
            export_model(
                model,
                whole,
                format=args.format,
                shape=tuple(args.shape),
                batch_size=args.batch_size,
                dynamic=args.dynamic,
                metadata=about,
            )
            if compressed:
                compress(args, model, whole, path)
        print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
        equal = not args.check or check(args, model, path)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"export: {error}")
    if not equal:
        sys.exit(f"export: {path} differs from the model by more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
