"""Render the Shapes dataset in COCO panoptic, COCO instance and semantic-PNG form."""

import argparse
import sys
import time
from pathlib import Path

from hcformer_mm.datasets.shapes_writer import NUM_TRAIN, NUM_VAL, SEED, SIZE, write_shapes
from hcformer_mm.utils.arguments import number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/shapes"), help="folder to create")
    parser.add_argument(
        "--num-train", type=number(int, 1), default=NUM_TRAIN, help="training images"
    )
    parser.add_argument("--num-val", type=number(int, 1), default=NUM_VAL, help="validation images")
    parser.add_argument(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        default=SEED,
        help="another seed gives other images",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=SIZE,
        metavar=("H", "W"),
        help="mean height and width of the images, which vary by up to 8 %%",
    )
    parser.add_argument("--workers", type=number(int, 1), default=2, help="processes that render")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the Shapes dataset in --out"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start = time.monotonic()
    try:
        write_shapes(
            args.out,
            num_train=args.num_train,
            num_val=args.num_val,
            seed=args.seed,
            size=tuple(args.size),
            workers=args.workers,
            overwrite=args.overwrite,
        )
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"make_shapes: {error}")
    megabytes = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    print(
        f"{args.num_train} training and {args.num_val} validation images in {args.out}: "
        f"{megabytes:.0f} MB in {time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
