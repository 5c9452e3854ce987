"""Check COCO panoptic annotations for faults that raise no error in training but make PQ zero."""

import argparse

from hcformer_mm.datasets.checks import check_panoptic
from hcformer_mm.datasets.checks.report import file, folder, run_check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ann_json", type=file, help="JSON file of panoptic annotations")
    parser.add_argument("seg_dir", type=folder, help="folder of PNG files with segment ids")
    parser.add_argument("--img-dir", type=folder, help="folder of images, to check them too")
    run_check(parser, check)


def check(args):
    return check_panoptic(args.ann_json, args.seg_dir, args.img_dir, num_workers=args.num_workers)


if __name__ == "__main__":
    main()
