"""Small files of ground truth, in the three forms that ``--gt`` reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from hcformer_mm.structures.panoptic import Classes

CLASSES = Classes(["sand", "box", "disc"])

IMAGES = [{"id": 3, "file_name": "some/folder/a.jpg", "height": 4, "width": 6}]

CATEGORIES = [{"id": 71, "name": "disc", "isthing": 1}, {"id": 4, "name": "sand"}]


def write_json(folder: Path, **content: Any) -> Path:
    path = folder / "truth.json"
    path.write_text(json.dumps(dict(images=IMAGES, categories=CATEGORIES) | content))
    return path


def write_panoptic(folder: Path) -> Path:
    """An image whose left half is a disc and whose right half is sand, but for a void column."""
    segments = np.zeros((4, 6, 3), np.uint8)
    segments[:, :3] = (5, 1, 0)  # id 5 + 256
    segments[:, 3:5] = (9, 0, 0)
    (folder / "truth").mkdir()
    Image.fromarray(segments).save(folder / "truth" / "a.png")
    infos = [{"id": 261, "category_id": 71}, {"id": 9, "category_id": 4}]
    annotation = {"image_id": 3, "file_name": "a.png", "segments_info": infos}
    return write_json(folder, annotations=[annotation])


def rle(*columns: int) -> dict[str, Any]:
    """Whole columns of the image, run-length encoded."""
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[:, list(columns)] = 1
    return dict(size=[4, 6], counts=coco_mask.encode(mask)["counts"].decode())


def write_instances(folder: Path) -> Path:
    """A large disc under a small polygonal one, and a crowd."""
    annotations = [
        # Rows 1 and 2 of column 1.
        dict(id=1, category_id=71, segmentation=[[1, 1, 2, 1, 2, 3, 1, 3]], iscrowd=0),
        dict(id=2, category_id=71, segmentation=rle(0, 1, 2), iscrowd=0),
        dict(id=3, category_id=4, segmentation=rle(2, 3, 4), iscrowd=1),
    ]
    return write_json(folder, annotations=[dict(one, image_id=3) for one in annotations])


def write_map(path: Path, values: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)).save(path)
