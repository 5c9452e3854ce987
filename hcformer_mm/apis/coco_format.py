"""Conversion of results to COCO's formats and to label maps."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.structures import BaseDataElement, InstanceData
from numpy.typing import NDArray
from panopticapi.evaluation import VOID
from pycocotools import mask as coco_mask
from skimage.measure import regionprops
from skimage.util import map_array

from ..structures.panoptic import Classes, Panoptic
from ..utils.errors import some
from ..utils.path_index import PathIndex


def read_coco_ids(
    path: str | Path, classes: Classes
) -> tuple[PathIndex[int], list[int], dict[int, tuple[int, int]]]:
    """Read image ids by path, and the category id of each class, from COCO annotations.

    The height and width of each image by its id come third, in pixels, of those that have them.

    Args:
        path: Instance or panoptic JSON file.
        classes: Classes of the model.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not in COCO's format, a path or a category has two ids, or a class
            has no category.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such annotations: {path}")
    try:
        content = json.loads(Path(path).read_bytes())
        images = PathIndex(((one["file_name"], one["id"]) for one in content["images"]), path)
        sizes = {
            one["id"]: (one["height"], one["width"])
            for one in content["images"]
            if "height" in one and "width" in one
        }
        categories = _by_name((entry["name"], entry["id"]) for entry in content["categories"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected {path} to be a COCO JSON file with images and categories: "
            f"{type(error).__name__} {error}"
        ) from None
    missing = [name for name in classes.names if name not in categories]
    if missing:
        raise ValueError(
            f"expected a category in {path} for every class of the model, got none for "
            f"{some(missing)}"
        )
    return images, [categories[name] for name in classes.names], sizes


def _by_name(ids: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in ids:
        if found.setdefault(name, number) != number:
            raise ValueError(f"{name} is the name of both {found[name]} and {number}")
    return found


def encode_panoptic(
    panoptic: Panoptic, category_ids: Sequence[int]
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segment ids ``(H, W)`` and ``segments_info`` in COCO's panoptic format.

    mmdet's ``CocoPanopticMetric`` writes this format only for images with ground truth, and treats
    stuff of class 0 as void, because its segment id is 0.

    Args:
        panoptic: Segments of one image.
        category_ids: Category id of each class.

    Returns:
        Segment ids from 1 in the order of ``panoptic``'s ids, 0 for void; and per segment its id,
        category, area, ``bbox`` (left, top, width, height) in pixels and, if known, ``score``.
    """
    values = np.unique(panoptic.segments)
    kept = [value for value in values.tolist() if value in panoptic.categories]
    numbers = np.arange(VOID + 1, VOID + 1 + len(kept), dtype=np.int32)
    ids = map_array(panoptic.segments, np.array(kept, np.int64), numbers)  # others become 0: void
    info: list[dict[str, Any]] = []
    for value, region in zip(kept, regionprops(ids), strict=True):  # both ordered by id
        top, left, bottom, right = region.bbox
        info.append(
            dict(
                id=int(region.label),
                category_id=category_ids[panoptic.categories[value]],
                iscrowd=0,
                area=int(region.area),
                bbox=[left, top, right - left, bottom - top],
                **(dict(score=panoptic.scores[value]) if value in panoptic.scores else {}),
            )
        )
    return ids, info


def encode_instances(
    instances: InstanceData, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Instances in COCO's result format: image id, category id, score and RLE mask.

    Every instance is kept, whatever its score. ``bbox`` is omitted, because pycocotools would use
    the area of the box instead of the mask's.

    Args:
        instances: ``masks`` ``(N, H, W)`` or a list of COCO RLEs, ``labels`` and ``scores``.
        image_id: Id of the image.
        category_ids: Category id of each class.
    """
    found = instances.numpy()
    masks = found.masks if isinstance(found.masks, list) else _encode_masks(found.masks)
    return [
        dict(
            image_id=image_id,
            category_id=category_ids[label],
            score=float(score),
            segmentation=dict(size=rle["size"], counts=rle["counts"].decode()),
        )
        for label, score, rle in zip(found.labels.tolist(), found.scores, masks, strict=True)
    ]


def _encode_masks(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """COCO RLEs of masks ``(N, H, W)``, as mmdet's ``encode_mask_results`` returns them.

    Run lengths go down the columns, and OpenCV transposes faster than NumPy, which takes mmdet more
    time than the encoding.
    """
    columns = (cv2.transpose(np.asarray(mask, np.uint8)).T for mask in masks)
    return [coco_mask.encode(one) for one in columns]


def label_map(sample: BaseDataElement, num_classes: int) -> NDArray[np.unsignedinteger[Any]]:
    """Class of every pixel ``(H, W)``, as label maps of mmdet and mmseg store it.

    Args:
        sample: A data sample with ``pred_sem_seg``.
        num_classes: Number of classes of the model.

    Returns:
        uint8 with 255 for void; uint16 with 65535 for void from 256 classes on.
    """
    data = sample.pred_sem_seg
    labels = data.get("sem_seg", data.get("data"))[0].cpu().numpy()
    kind = np.uint8 if num_classes <= np.iinfo(np.uint8).max else np.uint16
    known = (labels >= 0) & (labels < num_classes)
    return np.where(known, labels, np.iinfo(kind).max).astype(kind)
