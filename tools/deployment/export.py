"""Export a model to ONNX or torch.export, and check the file against the model."""

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from mmengine.config import DictAction
from mmengine.logging import MMLogger

from hcformer_mm.apis.inference import build_model
from hcformer_mm.deployment.export import (
    SUFFIXES,
    ExportableModel,
    describe,
    export_model,
    load_exported,
    pipeline_divisor,
    pipeline_resize,
)
from hcformer_mm.deployment.verify import TOLERANCE, agrees, as_text, compare, time_both
from hcformer_mm.utils.arguments import number
from hcformer_mm.utils.config import read_config

RANDOM = "random"
STRIDE = 32


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
    add("--out", type=Path, help="file to write (default: named after the config and the format)")
    check = f"compare outputs and time of file and model; fail if they differ by {TOLERANCE:g}"
    add("--check", action="store_true", help=check)
    add("--repeats", type=number(int, 1), default=5, help="timed rounds of --check (default: 5)")
    overrides = "override settings of the config, as key=value"
    add("--cfg-options", nargs="+", action=DictAction, default={}, help=overrides)
    return parser.parse_args()


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
        size_divisor=divisor,
    )
    about = describe(exportable, Path(config.filename).stem) | dict(resize=pipeline_resize(config))
    return exportable.eval(), about


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
        model, about = load(args)
        path = args.out or Path(about["name"] + SUFFIXES[args.format])
        export_model(
            model,
            path,
            format=args.format,
            shape=tuple(args.shape),
            batch_size=args.batch_size,
            dynamic=args.dynamic,
            metadata=about,
        )
        print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")
        equal = not args.check or check(args, model, path)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"export: {error}")
    if not equal:
        sys.exit(f"export: {path} differs from the model by more than {TOLERANCE:g}")


if __name__ == "__main__":
    main()
