"""Command-line arguments of the tools that run a model on images and write results."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import Any

from ..acceleration.inference import DTYPES
from ..structures.data_samples import SCORE_THR
from ..utils.arguments import add_cfg_options, number
from .tiles import TILE_OVERLAP, Tiling


def add_model_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of a model and its precision; see :func:`model_options`."""
    parser.add_argument("config", help="config file, or name of a config of this package")
    parser.add_argument("checkpoint", type=Path, help="checkpoint file")
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:<index>; by default the GPU if there is one"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="precision (default: %(default)s)"
    )
    parser.add_argument(
        "--fast",
        action=BooleanOptionalAction,
        default=True,
        help="fuse BatchNorm into convolutions and use channels-last memory, which changes results "
        "by rounding",
    )
    parser.add_argument(
        "--batch-size",
        type=number(int, 1),
        default=1,
        help="images, frames or tiles of an image per forward pass (default: %(default)s)",
    )
    add_cfg_options(parser)
    parser.add_argument(
        "--font",
        help="font file of the class names; by default DejaVu Sans, or a font of the system for "
        "characters that it lacks",
    )


def model_options(args: Namespace) -> dict[str, Any]:
    """Return what :func:`add_model_arguments` says of an inferencer, besides its model."""
    names = ("device", "dtype", "fast", "cfg_options", "font")
    return {name: getattr(args, name) for name in names}


def add_score_thr(parser: ArgumentParser) -> None:
    """Add the threshold of drawn instances."""
    parser.add_argument(
        "--score-thr",
        type=number(float, 0, 1),
        default=SCORE_THR,
        help="minimum score of drawn instances, for models that predict only instances "
        "(default: %(default)s)",
    )


def add_inference_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of a model, its thresholds and its results."""
    add_model_arguments(parser)
    parser.add_argument(
        "--tile",
        type=number(int, 2),
        metavar="PIXELS",
        help="side of the square tiles into which larger images are cut; by default none is cut",
    )
    parser.add_argument(
        "--tile-overlap",
        type=number(int, 1),
        metavar="PIXELS",
        help=f"what neighboring tiles share, at least (default: {TILE_OVERLAP})",
    )
    add_score_thr(parser)
    parser.add_argument(
        "--draw-scores", action="store_true", help="write scores after the names in drawings"
    )
    shares = {
        "--object-mask-thr": "a query takes part in the panoptic result if its class probability "
        "is larger",
        "--iou-thr": "a panoptic segment stays if it keeps this share of its query's mask",
    }
    for name, meaning in shares.items():
        parser.add_argument(
            name, type=number(float, 0, 1), help=f"{meaning}, 0 to 1 (default: the config's)"
        )
    parser.add_argument(
        "--max-per-image",
        type=number(int, 1),
        help="number of the most probable pairs of a query and a class, of which instances are "
        "made (default: the config's)",
    )
    parser.add_argument(
        "--confidence",
        action="store_true",
        help="write the confidence of every pixel, as gray images from 0 to 255",
    )
    parser.add_argument(
        "--ann-file",
        type=Path,
        help="COCO annotations whose image and category ids the results use, so that both can be "
        "compared",
    )


def tiling_of(args: Namespace) -> Tiling | None:
    """Return how :func:`add_inference_arguments` cuts large images; None runs them whole.

    Raises:
        ValueError: The tiles are too small for what they share, or nothing is to be cut.
    """
    if args.tile is not None:
        return Tiling(args.tile, args.tile_overlap or TILE_OVERLAP)
    if args.tile_overlap is not None:
        raise ValueError(
            f"expected --tile with --tile-overlap, got --tile-overlap {args.tile_overlap} alone; "
            "give the side of the tiles"
        )
    return None
