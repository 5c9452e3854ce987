"""Write the things of COCO panoptic annotations as COCO instance annotations."""

import argparse
import sys
from pathlib import Path

from hcformer_mm.datasets.checks.report import file, folder
from hcformer_mm.datasets.panoptic_writer import write_instances
from hcformer_mm.utils.arguments import number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ann_json", type=file, help="JSON file of panoptic annotations")
    parser.add_argument("seg_dir", type=folder, help="folder of PNG files with segment ids")
    parser.add_argument("out", type=Path, help="JSON file to write, instances_*.json by custom")
    parser.add_argument(
        "--num-workers", type=number(int, 1), default=2, help="processes that read and encode"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        count = write_instances(args.ann_json, args.seg_dir, args.out, workers=args.num_workers)
    except (OSError, ValueError) as error:
        sys.exit(f"panoptic_to_instances: {error}")
    print(f"{count} instances in {args.out}")


if __name__ == "__main__":
    main()
