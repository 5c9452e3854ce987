"""Check COCO instance annotations for faults that stop training or make AP wrong."""

import argparse

from hcformer_mm.datasets.checks import check_instances
from hcformer_mm.datasets.checks.report import file, folder, run_check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ann_json", type=file, help="JSON file of instance annotations")
    parser.add_argument("--img-dir", type=folder, help="folder of images, to check them too")
    run_check(parser, check)


def check(args):
    return check_instances(args.ann_json, args.img_dir, num_workers=args.num_workers)


if __name__ == "__main__":
    main()
