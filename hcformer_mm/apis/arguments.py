"""Command-line arguments of the tools that run a model on images and write results."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from pathlib import Path
from typing import Any

from ..acceleration.inference import DTYPES
from ..structures.data_samples import SCORE_THR
from ..utils.arguments import add_cfg_options, number
from ..utils.config import find_weights, read_config
from ..visualization import FigureStyle
from ..visualization.panoptic import MODES
from .result_writer import TABLES
from .tiles import TILE_OVERLAP, Tiling


def add_model_arguments(parser: ArgumentParser, *, default_weights: bool = True) -> None:
    """Add the arguments of a model and its precision; see :func:`model_options`.

    Args:
        parser: The parser.
        default_weights: Whether the checkpoint may be left out, for the weights that come with
            this package; not after other positional arguments of any number.
    """
    parser.add_argument("config", help="config file, or name of a config of this package")
    included = "; by default the weights that come with this package (hcformer_tiny_shapes)"
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?" if default_weights else None,
        help="checkpoint file" + included * default_weights,
    )
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
    """Return what :func:`add_model_arguments` says of an inferencer.

    Raises:
        ValueError: There is no such config, or no checkpoint for it.
    """
    names = ("device", "dtype", "fast", "font")
    config = read_config(args.config, args.cfg_options)
    weights = find_weights(config, args.checkpoint)
    return dict(model=config, weights=weights) | {name: getattr(args, name) for name in names}


def add_score_thr(parser: ArgumentParser) -> None:
    """Add the threshold of instances in drawings and tables."""
    parser.add_argument(
        "--score-thr",
        type=number(float, 0, 1),
        default=SCORE_THR,
        help="minimum score of instances in drawings and tables, for models that predict only "
        "instances (default: %(default)s)",
    )


def add_inference_arguments(parser: ArgumentParser, *, default_weights: bool = True) -> None:
    """Add the arguments of a model, as :func:`add_model_arguments`, its thresholds and results."""
    add_model_arguments(parser, default_weights=default_weights)
    parser.add_argument(
        "--tile",
        type=number(int, 2),
        metavar="PIXELS",
        help="side of the square tiles into which larger images are cut; by default none is cut. "
        "Objects on a seam stay cut unless both tiles see much the same of them",
    )
    parser.add_argument(
        "--tile-overlap",
        type=number(int, 1),
        metavar="PIXELS",
        help=f"what neighboring tiles share, at least (default: {TILE_OVERLAP})",
    )
    add_score_thr(parser)
    _add_style(parser)
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
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=TABLES,
        default=(),
        help="write tables of segments: objects.csv, or outlines as geojson/<name>.geojson",
    )


def _add_style(parser: ArgumentParser) -> None:
    """Add how segments are drawn; see :func:`style_of`."""
    parser.add_argument(
        "--draw-scores", action="store_true", help="write scores after the names in drawings"
    )
    parser.add_argument(
        "--draw-mode",
        choices=MODES,
        default="gray",
        help="draw colors over a gray image, fill over the image in color, or contours on it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--palette",
        metavar="NAME",
        help="color sequence of matplotlib for the classes; okabe_ito and petroff10 suit every "
        "color vision (default: the colors of the dataset)",
    )
    parser.add_argument(
        "--enlarge",
        type=number(int, 1),
        metavar="PIXELS",
        help="enlarge drawings of images whose longer side is shorter to about this, by an integer",
    )
    parser.add_argument(
        "--no-names", action="store_true", help="do not write class names on the segments"
    )
    parser.add_argument(
        "--legend", action="store_true", help="explain the colors of the classes below drawings"
    )
    parser.add_argument(
        "--scale-bar",
        nargs=2,
        metavar=("PIXELS", "UNIT"),
        help="pixels of the image per unit of length and the unit's name, such as 4 µm, for a "
        "scale bar below drawings",
    )


def style_of(args: Namespace) -> FigureStyle:
    """Return how :func:`add_inference_arguments` draws.

    Raises:
        ValueError: There is no such palette, or the scale is no positive number.
    """
    scale = None
    if args.scale_bar is not None:
        pixels, unit = args.scale_bar
        try:
            scale = (float(pixels), unit)
        except ValueError:
            raise ValueError(
                f"expected pixels and a unit for --scale-bar, such as 4 µm, got {pixels} {unit}"
            ) from None
    return FigureStyle(
        mode=args.draw_mode,
        palette=args.palette,
        side=args.enlarge,
        names=not args.no_names,
        legend=args.legend,
        scale_bar=scale,
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
