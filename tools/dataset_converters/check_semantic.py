"""Check the label maps of semantic segmentation for faults that raise no error in training."""

import argparse

from hcformer_mm.datasets.checks import check_semantic
from hcformer_mm.datasets.checks.report import file, folder, run_check
from hcformer_mm.utils.arguments import number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("img_dir", type=folder, help="folder of images")
    parser.add_argument("map_dir", type=folder, help="folder of label maps")
    parser.add_argument(
        "--num-classes",
        type=number(int, 1),
        required=True,
        help="number of classes, without void",
    )
    parser.add_argument("--img-suffix", default=".jpg", help="what names of images end in")
    parser.add_argument("--seg-map-suffix", default=".png", help="what names of maps end in")
    parser.add_argument(
        "--ann-file", type=file, help="names of the images to check, without suffix, one a line"
    )
    parser.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="classes count from 1, and 0 is void, as in ADE20K",
    )
    run_check(parser, check)


def check(args):
    return check_semantic(
        args.img_dir,
        args.map_dir,
        args.num_classes,
        img_suffix=args.img_suffix,
        seg_map_suffix=args.seg_map_suffix,
        ann_file=args.ann_file,
        reduce_zero_label=args.reduce_zero_label,
        num_workers=args.num_workers,
    )


if __name__ == "__main__":
    main()
