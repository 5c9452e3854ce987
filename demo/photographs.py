"""Write two photographs, their segments, and a config that learns both by heart.

The photographs come with scikit-image: Greek coins (Brooklyn Museum, no known copyright
restrictions) and a cup of coffee (Rachel Michetti, CC0). What a model knows after this training are
these two images, which shows that it works on photographs, and nothing else.
"""

import argparse
from pathlib import Path

import hcformer_mm.utils.threads  # noqa: F401

import cv2
import numpy as np
from panopticapi.utils import id2rgb
from scipy.ndimage import binary_fill_holes
from skimage import data
from skimage.color import gray2rgb
from skimage.draw import polygon2mask
from skimage.filters import sobel
from skimage.measure import label
from skimage.segmentation import watershed

from hcformer_mm.apis.coco_format import encode_panoptic
from hcformer_mm.apis.result_writer import write_image
from hcformer_mm.structures.arrays import Labels, RGBImage
from hcformer_mm.structures.palette import distinct_colors
from hcformer_mm.structures.panoptic import Panoptic
from hcformer_mm.utils.atomic_write import replacing
from hcformer_mm.utils.config import read_config
from hcformer_mm.utils.strict_json import dumps

THINGS = ("coin", "cup", "saucer", "spoon")
STUFF = ("cloth", "table", "floor")
CLASSES = (*THINGS, *STUFF)

FLOOR = [(0, 0), (150, 0), (0, 107)]
BODY = [
    *[(173, 125), (180, 175), (200, 225), (232, 262), (262, 280), (300, 284), (335, 266)],
    *[(372, 222), (396, 172), (408, 120)],
]
CUP_HANDLE = [(222, 232), (205, 252), (196, 285), (208, 305), (230, 306), (252, 285), (262, 250)]
SPOON_HANDLE = [
    *[(370, 245), (388, 205), (404, 140), (408, 110), (397, 75), (405, 67), (420, 68)],
    *[(424, 78), (417, 112), (402, 170), (384, 242)],
]


def ellipse(center: tuple[int, int], axes: tuple[int, int], angle: int) -> list[tuple[int, int]]:
    """Corners (x, y) of a polygon around an ellipse."""
    return [(int(x), int(y)) for x, y in cv2.ellipse2Poly(center, axes, angle, 0, 360, 3)]


# Painted from back to front; corners (x, y).
COFFEE = (
    ("floor", [FLOOR]),
    ("saucer", [ellipse((278, 225), (202, 162), 5)]),
    ("cup", [ellipse((290, 113), (118, 95), 3), BODY, CUP_HANDLE]),
    ("spoon", [ellipse((366, 282), (40, 44), 0), SPOON_HANDLE]),
)


def coins() -> tuple[RGBImage, Panoptic]:
    """Coins on cloth: watersheds of the edges find them, as in scikit-image's tutorial."""
    gray = data.coins()
    markers = np.where(gray > 150, 2, np.where(gray < 30, 1, 0))
    found = binary_fill_holes(watershed(sobel(gray), markers) == 2)
    parts = label(found, connectivity=1)
    found &= np.bincount(parts.ravel())[parts] > 300
    segments = label(found).astype(np.int64)
    categories = {i: CLASSES.index("coin") for i in range(1, segments.max() + 1)}
    return gray2rgb(gray), Panoptic(segments, {0: CLASSES.index("cloth")} | categories)


def coffee() -> tuple[RGBImage, Panoptic]:
    """A cup with a spoon on a table: outlines drawn by hand."""
    image = data.coffee()
    segments: Labels = np.full(image.shape[:2], CLASSES.index("table"))
    for name, parts in COFFEE:
        for corners in parts:
            mask = polygon2mask(segments.shape, np.array(corners)[:, ::-1])
            segments[mask] = CLASSES.index(name)
    return image, Panoptic(segments, {i: i for i in np.unique(segments).tolist()})


def write(out: Path, iterations: int) -> Path:
    """Write images, COCO panoptic annotations and the config, whose path is returned."""
    images, annotations = [], []
    for number, (name, (image, panoptic)) in enumerate(
        (("coins", coins()), ("coffee", coffee())), start=1
    ):
        height, width = image.shape[:2]
        ids, info = encode_panoptic(panoptic, range(len(CLASSES)))
        write_image(out / f"images/{name}.png", image)
        write_image(out / f"panoptic/{name}.png", id2rgb(ids))
        file_name = f"{name}.png"
        images.append(dict(id=number, file_name=file_name, height=height, width=width))
        annotations.append(dict(image_id=number, file_name=file_name, segments_info=info))
    categories = [
        dict(id=i, name=name, isthing=int(name in THINGS)) for i, name in enumerate(CLASSES)
    ]
    with replacing(out / "panoptic.json") as file:
        file.write_text(dumps(dict(images=images, annotations=annotations, categories=categories)))
    path = out / "hcformer_r18_photographs-panoptic.py"
    config = read_config("hcformer_r18_shapes-panoptic", overrides(out, iterations))
    with replacing(path) as file:
        file.write_text(config.pretty_text)
    return path


def overrides(out: Path, iterations: int) -> dict[str, object]:
    """What differs from the config of the Shapes set."""
    classes = dict(num_things_classes=len(THINGS), num_stuff_classes=len(STUFF))
    dataset = dict(
        type="mmdet.CocoPanopticDataset",
        data_root=f"{out}/",
        ann_file="panoptic.json",
        data_prefix=dict(img="images/", seg="panoptic/"),
        metainfo=dict(
            classes=CLASSES,
            thing_classes=THINGS,
            stuff_classes=STUFF,
            palette=distinct_colors(len(CLASSES)).tolist(),
        ),
    )
    quality = dict(
        type="hcformer_mm.CocoPanopticMetric",
        ann_file=str(out / "panoptic.json"),
        seg_prefix=str(out / "panoptic"),
    )
    scale = (384, 303)  # the coins are not resized, and span a cell of stride 32 or two
    loaders = {
        f"{split}_dataloader": dict(
            batch_size=2 if split == "train" else 1,
            num_workers=0,
            persistent_workers=False,
            dataset=dict(dataset),
        )
        for split in ("train", "val", "test")
    }
    warmup = iterations // 10
    schedule = dict(max_iters=iterations, val_interval=iterations)
    return dict(
        loaders,
        **{f"{split}_evaluator": [quality] for split in ("val", "test")},
        **{
            f"{name}_dataloader.dataset.pipeline.{step}.scale": scale
            for name, step in (("train", 2), ("val", 1), ("test", 1))
        },
        **{
            "model.panoptic_head": classes | dict(num_queries=50),
            "model.panoptic_fusion_head": classes,
            "train_cfg": schedule,
            "default_hooks.checkpoint.interval": iterations,
            "default_hooks.logger.interval": 10,
            "param_scheduler.0.end": warmup,
            "param_scheduler.1.begin": warmup,
            "param_scheduler.1.end": iterations,
            "param_scheduler.1.T_max": iterations - warmup,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("data/photographs"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--iterations", type=int, default=300, help="length of the training (default: %(default)s)"
    )
    args = parser.parse_args()
    config = write(args.out, args.iterations)
    print(f"python tools/train.py {config}")


if __name__ == "__main__":
    main()
