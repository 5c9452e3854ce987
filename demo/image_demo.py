"""Segment images and draw the segments, colored and named."""

import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction
from torchvision.datasets.folder import IMG_EXTENSIONS

from hcformer_mm.acceleration.inference import DTYPES
from hcformer_mm.apis import HCFormerInferencer
from hcformer_mm.apis.inference import ResultOptions
from hcformer_mm.apis.inputs import open_images
from hcformer_mm.apis.result_writer import check_writable, write_image
from hcformer_mm.apis.tiling import TILE_OVERLAP, Tiling
from hcformer_mm.structures.data_samples import SCORE_THR
from hcformer_mm.utils.arguments import number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", help="image, folder of images, or video")
    parser.add_argument("config", help="config file, or name of a config of this package")
    parser.add_argument("checkpoint", type=Path, help="checkpoint file")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/image_demo"),
        help="folder (default: %(default)s) for drawings, COCO panoptic and instance results and "
        "label maps, whichever the model predicts; or a file, such as out.png, for the drawing of "
        "one image",
    )
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:<index>; by default the GPU if there is one"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="precision (default: %(default)s)"
    )
    parser.add_argument(
        "--fast",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fuse BatchNorm into convolutions and use channels-last memory, which changes results "
        "by rounding",
    )
    parser.add_argument(
        "--batch-size",
        type=number(int, 1),
        default=1,
        help="images, or tiles of an image, per forward pass (default: %(default)s)",
    )
    parser.add_argument(
        "--tile",
        type=number(int, 2),
        metavar="PIXELS",
        help="side of the square tiles into which larger images are cut; by default none is cut",
    )
    parser.add_argument(
        "--tile-overlap",
        type=number(int, 1),
        default=TILE_OVERLAP,
        metavar="PIXELS",
        help="what neighboring tiles share, at least (default: %(default)s)",
    )
    parser.add_argument(
        "--score-thr",
        type=number(float, 0, 1),
        default=SCORE_THR,
        help="minimum score of drawn instances, for models that predict only instances "
        "(default: %(default)s)",
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
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="override settings of the config, as key=value",
    )
    parser.add_argument(
        "--font",
        help="font file of the class names; by default DejaVu Sans, or a font of the system for "
        "characters that it lacks",
    )
    parser.add_argument(
        "--ann-file",
        type=Path,
        help="COCO annotations whose image and category ids the results use, so that both can be "
        "compared",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first image that cannot be read, instead of leaving it out",
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    images = open_images(args.image)  # fails on a mistyped name before the model is built
    if args.tile is not None:
        Tiling(args.tile, args.tile_overlap)  # refuses wrong sizes, too
    to_file = args.out.suffix.lower() in IMG_EXTENSIONS
    if to_file and not (isinstance(images, list) and len(images) == 1):
        raise ValueError(f"expected a folder for several images, got --out {args.out}")
    if to_file and args.out.resolve() == Path(args.image).resolve():
        raise ValueError(f"expected another file than the image itself, got --out {args.out}")
    for name, given in (("ann-file", args.ann_file), ("confidence", args.confidence)):
        if to_file and given:
            raise ValueError(f"expected a folder for results with --{name}, got --out {args.out}")
    inferencer = HCFormerInferencer(
        args.config,
        args.checkpoint,
        device=args.device,
        dtype=args.dtype,
        fast=args.fast,
        cfg_options=args.cfg_options,
        font=args.font,
    )
    options = dict(
        batch_size=args.batch_size,
        progress=True,
        tile_size=args.tile,
        tile_overlap=args.tile_overlap,
        **{name: getattr(args, name) for name in ResultOptions.__annotations__},
    )
    if to_file:
        check_writable(args.out.parent)
        (sample,) = inferencer(args.image, **options)
        image = images[0].read_rgb()
        write_image(args.out, inferencer.draw(image, sample, score_thr=args.score_thr))
        print(args.out)
        return
    results = inferencer.iterate(
        args.image,
        out_dir=args.out,
        ann_file=args.ann_file,
        score_thr=args.score_thr,
        strict=args.strict,
        **options,
    )
    number = sum(1 for _ in results)
    print(f"{number} images in {args.out / 'vis'}, results in {args.out}")
    if isinstance(images, list) and number < len(images):
        raise ValueError(
            f"{len(images) - number} of {len(images)} images could not be read: see 'failed' in "
            f"{args.out / 'images.json'}"
        )


def main() -> None:
    try:
        run(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"image_demo: {error}")


if __name__ == "__main__":
    main()
