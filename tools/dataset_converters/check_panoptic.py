"""Check COCO panoptic annotations for faults that raise no error in training but make PQ zero."""

import argparse

from hcformer_mm.datasets.checks import check_panoptic, read_coco
from hcformer_mm.datasets.checks.report import file, folder, run_check
from hcformer_mm.datasets.figures import describe_set
from hcformer_mm.utils.arguments import number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ann_json", type=file, help="JSON file of panoptic annotations")
    parser.add_argument("seg_dir", type=folder, help="folder of PNG files with segment ids")
    parser.add_argument("--img-dir", type=folder, help="folder of images, to check them too")
    parser.add_argument(
        "--figures",
        type=number(int, 1),
        nargs="?",
        const=32,
        metavar="STRIDE",
        help="print sizes and numbers of the objects, and the image size and number of queries "
        "that suit them, for a coarsest map of this stride (default: %(const)s)",
    )
    run_check(parser, check)


def check(args):
    faults = check_panoptic(args.ann_json, args.seg_dir, args.img_dir, num_workers=args.num_workers)
    if args.figures and not any(fault.severity == "error" for fault in faults):
        print(*describe_set(read_coco(args.ann_json), args.figures), sep="\n")
    return faults


if __name__ == "__main__":
    main()
