"""Check COCO panoptic annotations for faults that raise no error in training but make PQ zero."""

import argparse
import sys
from itertools import groupby
from pathlib import Path

from hcformer_mm.datasets.checks import check_panoptic


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ann_json", type=Path, help="JSON file of panoptic annotations")
    parser.add_argument("seg_dir", type=Path, help="folder of PNG files with segment ids")
    parser.add_argument("--img-dir", type=Path, help="folder of images, to check them too")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that read files")
    parser.add_argument(
        "--limit", type=int, default=10, help="findings to show per kind; 0 shows all"
    )
    args = parser.parse_args()
    if not args.ann_json.is_file():
        parser.error(f"expected a JSON file, got {args.ann_json}")
    for folder in (args.seg_dir, args.img_dir):
        if folder is not None and not folder.is_dir():
            parser.error(f"expected a folder, got {folder}")
    return args


def main() -> None:
    args = parse_args()
    try:
        faults = check_panoptic(
            args.ann_json, args.seg_dir, args.img_dir, num_workers=args.num_workers
        )
    except ValueError as error:
        sys.exit(f"check_panoptic: {error}")
    print()
    kinds = {kind: list(some) for kind, some in groupby(sorted(faults, key=by_kind), key=by_kind)}
    for some in kinds.values():
        shown = some[: args.limit or None]
        print(*shown, sep="\n")
        if len(shown) < len(some):
            print(f"... and {len(some) - len(shown)} more of this kind")
    for kind, some in kinds.items():
        print(f"{len(some):8d}  {kind}")
    if faults:
        sys.exit(f"check_panoptic: {len(faults)} findings in {args.ann_json}")
    print(f"{args.ann_json} and {args.seg_dir} are clean")


def by_kind(fault):
    return fault.kind


if __name__ == "__main__":
    main()
