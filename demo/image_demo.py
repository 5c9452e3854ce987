"""Segment images and draw the segments, colored and named."""

import argparse
import sys
from pathlib import Path

import hcformer_mm.utils.threads  # noqa: F401

from torchvision.datasets.folder import IMG_EXTENSIONS

from hcformer_mm.apis import HCFormerInferencer
from hcformer_mm.apis.arguments import (
    add_inference_arguments,
    model_options,
    style_of,
    tiling_of,
)
from hcformer_mm.apis.inference import ResultOptions
from hcformer_mm.apis.inputs import open_images
from hcformer_mm.apis.result_writer import check_writable, write_image


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", help="image, folder of images, or video")
    add_inference_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/image_demo"),
        help="folder (default: %(default)s) for drawings, tables, COCO panoptic and instance "
        "results and label maps, whichever the model predicts; or a file, such as out.png, for the "
        "drawing of one image",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first image that cannot be read, instead of leaving it out",
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    images = open_images(args.image)  # fails on a mistyped name before the model is built
    tiling, style = tiling_of(args), style_of(args)
    to_file = args.out.suffix.lower() in IMG_EXTENSIONS
    if to_file and not (isinstance(images, list) and len(images) == 1):
        raise ValueError(f"expected a folder for several images, got --out {args.out}")
    if to_file and args.out.resolve() == images[0].path.resolve():
        raise ValueError(f"expected another file than the image itself, got --out {args.out}")
    for name in ("ann_file", "confidence", "tables"):
        if to_file and getattr(args, name):
            raise ValueError(
                f"expected a folder for results with --{name.replace('_', '-')}, got --out "
                f"{args.out}"
            )
    inferencer = HCFormerInferencer(**model_options(args))
    options = dict(
        batch_size=args.batch_size,
        progress=True,
        **({} if tiling is None else dict(tile_size=tiling.size, tile_overlap=tiling.overlap)),
        **{name: getattr(args, name) for name in ResultOptions.__annotations__},
    )
    if to_file:
        check_writable(args.out.parent)
        (sample,) = inferencer(args.image, **options)
        image = inferencer.bound(images[0]).read_rgb()
        shown = dict(scores=args.draw_scores, style=style, score_thr=args.score_thr)
        write_image(args.out, inferencer.draw(image, sample, **shown))
        print(args.out)
        return
    results = inferencer.iterate(
        args.image,
        out_dir=args.out,
        ann_file=args.ann_file,
        draw_scores=args.draw_scores,
        style=style,
        tables=args.tables,
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
