"""Convert masks, labelme, YOLO or COCO annotations to a COCO panoptic set with instances."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import yaml

from hcformer_mm.datasets.checks.report import file, folder
from hcformer_mm.datasets.panoptic_writer import coco_categories, write_panoptic_set
from hcformer_mm.datasets.sources.classes import ClassMap, read_classes
from hcformer_mm.datasets.sources.files import (
    divide,
    open_coco,
    open_labelme,
    open_masks,
    open_yolo,
)
from hcformer_mm.datasets.sources.segments import (
    infer_from_masks,
    infer_from_shapes,
    paint_masks,
    paint_shapes,
)
from hcformer_mm.utils.arguments import number
from hcformer_mm.utils.errors import InputError


def parse_args() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, help="folder to create")
    common.add_argument(
        "--classes",
        type=file,
        help="YAML or JSON file with the lists things, stuff and void; by default inferred",
    )
    common.add_argument(
        "--val-fraction",
        type=number(float, 0, 1),
        help="share of the images for validation if the source has no splits; by default 0.2",
    )
    common.add_argument("--seed", type=int, default=0, help="seed of the division")
    common.add_argument(
        "--num-workers", type=number(int, 1), default=2, help="processes that write"
    )
    common.add_argument(
        "--overwrite", action="store_true", help="replace the panoptic set in --out"
    )
    shapes = argparse.ArgumentParser(add_help=False)
    shapes.add_argument(
        "--background", help="class of stuff of pixels without annotation; by default they are void"
    )
    parser = argparse.ArgumentParser(description=__doc__)
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    masks = sources.add_parser("masks", parents=[common], help="label maps of objects and classes")
    masks.add_argument("images", type=folder, help="folder of images")
    masks.add_argument("objects", type=folder, help="PNG, TIFF, npy or npz files; 0 is no object")
    masks.add_argument("class_maps", type=folder, help="such files with the class of each pixel")
    labelme = sources.add_parser("labelme", parents=[common, shapes], help="labelme's JSON files")
    labelme.add_argument("folder", type=folder, help="folder of JSON files and images")
    yolo = sources.add_parser("yolo", parents=[common, shapes], help="a YOLO segmentation set")
    yolo.add_argument("data", type=file, help="data.yaml of the set")
    coco = sources.add_parser("coco", parents=[common, shapes], help="COCO instances, as of CVAT")
    coco.add_argument("folder", type=folder, help="folder with annotations/ and images/")
    coco.add_argument(
        "--ignore-crowds",
        action="store_true",
        help="take crowds for objects: CVAT marks all that is drawn with its brush as crowds",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        convert(args)
    except (OSError, ValueError) as error:
        sys.exit(f"to_panoptic: {error}")


def convert(args: argparse.Namespace) -> None:
    for name, path in vars(args).items():
        # What is replaced is deleted with all that is in it.
        inside = isinstance(path, Path) and path.resolve().is_relative_to(args.out.resolve())
        if inside and name != "out":
            raise InputError(
                f"expected --out without {path} in it, got {args.out}; choose another folder"
            )
    masks, kinds = args.source == "masks", {}
    if masks:
        splits = open_masks(args.images, args.objects, args.class_maps)
    elif args.source == "labelme":
        splits = open_labelme(args.folder)
    elif args.source == "yolo":
        splits, kinds = open_yolo(args.data)
    else:
        splits, kinds = open_coco(args.folder, ignore_crowds=args.ignore_crowds)
    splits = divide(splits, args.val_fraction, args.seed)
    images = [one for split in splits.values() for one in split]
    if not (masks or any(one.shapes for one in images)):
        raise InputError(
            f"expected annotations of some of the {len(images)} images, got none; correct the "
            "source (YOLO's folders labels/ lie beside images/)"
        )
    if args.classes:
        classes = read_classes(args.classes, by_value=masks)
    else:
        classes = infer_from_masks(images) if masks else infer_from_shapes(images, kinds)
    if masks:
        paint = partial(paint_masks, classes=classes)
    else:
        if args.background is not None:
            classes = classes.with_background(args.background)
        paint = partial(paint_shapes, classes=classes, background=args.background)
    contents = write_panoptic_set(
        args.out,
        splits,
        paint,
        coco_categories([*classes.things.values()], [*classes.stuff.values()]),
        workers=args.num_workers,
        overwrite=args.overwrite,
    )
    report(args, classes, images, contents)


def report(args: argparse.Namespace, classes: ClassMap, images: list, contents: Mapping) -> None:
    """Print what was written, what was left out, and which classes were inferred."""
    counts, crowds = Counter[int](), 0
    for split, content in contents.items():
        segments = [info for one in content["annotations"] for info in one["segments_info"]]
        counts.update(info["category_id"] for info in segments)
        crowds += sum(info["iscrowd"] for info in segments)
        print(f"{split}: {len(content['images'])} images, {len(segments)} segments")
    listed = [f"{name} ({counts[number]})" for number, name in enumerate(classes.names, start=1)]
    num_things = len(classes.things)
    print(f"things: {', '.join(listed[:num_things]) or 'none'}")
    print(f"stuff: {', '.join(listed[num_things:]) or 'none'}")
    if args.source != "masks":
        drawn = sum(one["label"] in classes.things for image in images for one in image.shapes)
        if hidden := drawn - sum(counts[number] for number in range(1, num_things + 1)):
            print(f"{hidden} objects have no pixel: smaller ones hide them, or they lie outside")
    if crowds:
        print(f"{crowds} crowds, which training leaves out; see --ignore-crowds")
    if not args.classes:
        values = {
            kind: {name: key for key, name in found.items()} if args.source == "masks" else [*found]
            for kind, found in (("things", classes.things), ("stuff", classes.stuff))
        }
        print("the classes were inferred; to change them, give a file like this as --classes:")
        text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True)
        print(text, end="")


if __name__ == "__main__":
    main()
