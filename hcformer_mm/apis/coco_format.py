"""Results in the formats of COCO and of label maps."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import BaseDataElement, InstanceData
from numpy.typing import NDArray
from skimage.measure import regionprops

from ..datasets.panoptic_check import VOID
from ..structures.panoptic import Classes, Panoptic


def read_coco_ids(path: str | Path, classes: Classes) -> tuple[dict[str, int], list[int]]:
    """Ids of the images and categories of an annotation file in COCO's format.

    Args:
        path: A JSON file, of instances or panoptic.
        classes: Classes of the model.

    Returns:
        The id of each image by the name of its file, and the category of each class.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no file of COCO's, or lacks a class of the model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such annotations: {path}")
    try:
        content = json.loads(Path(path).read_text())
        images = _by_name(
            (Path(image["file_name"]).name, image["id"]) for image in content["images"]
        )
        categories = _by_name((entry["name"], entry["id"]) for entry in content["categories"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected {path} to be a JSON file of COCO's with images and categories: "
            f"{type(error).__name__} {error}"
        ) from None
    missing = [name for name in classes.names if name not in categories]
    if missing:
        raise ValueError(
            f"expected a category in {path} for every class of the model, got none for "
            f"{', '.join(missing[:4])}{f' and {len(missing) - 4} more' * (len(missing) > 4)}"
        )
    return images, [categories[name] for name in classes.names]


def _by_name(ids: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in ids:
        if found.setdefault(name, number) != number:
            raise ValueError(f"{name} is the name of both {found[name]} and {number}")
    return found


def encode_panoptic(
    panoptic: Panoptic, category_ids: Sequence[int]
) -> tuple[NDArray[np.int32], list[dict[str, Any]]]:
    """Segments as COCO's panoptic format has them.

    mmdet's ``CocoPanopticMetric`` writes such files too, but only for images with ground truth,
    and takes the stuff of class 0, whose segment has the id 0 there, for void.

    Args:
        panoptic: Segments.
        category_ids: Category of each class.

    Returns:
        ``(H, W)``, segments numbered from 1 in the order of their ids, 0 where there is none; and
        ``segments_info``: id, category, area, ``bbox`` (left, top, width, height) of each.
    """
    values, positions = np.unique(panoptic.segments, return_inverse=True)
    kept = [value for value in values.tolist() if value in panoptic.categories]
    numbers = {value: number for number, value in enumerate(kept, VOID + 1)}
    table = np.array([numbers.get(value, VOID) for value in values.tolist()], np.int32)
    ids = table[positions].reshape(panoptic.segments.shape)
    info: list[dict[str, Any]] = []
    for region in regionprops(ids):  # ordered by number, as the segments that are kept
        top, left, bottom, right = region.bbox
        info.append(
            dict(
                id=int(region.label),
                category_id=category_ids[panoptic.categories[kept[len(info)]]],
                iscrowd=0,
                area=int(region.area),
                bbox=[left, top, right - left, bottom - top],
            )
        )
    return ids, info


def encode_instances(
    instances: InstanceData, image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Instances as COCO's results have them, all of them, whatever their score.

    There is no ``bbox`` beside the mask: pycocotools would take its area for the mask's.

    Args:
        instances: ``masks`` ``(N, H, W)``, ``labels`` and ``scores``.
        image_id: Id of the image.
        category_ids: Category of each class.

    Returns:
        Id of the image, category, score, and mask as RLE, of each instance.
    """
    found = instances.numpy()
    return [
        dict(
            image_id=image_id,
            category_id=category_ids[label],
            score=float(score),
            segmentation=dict(size=rle["size"], counts=rle["counts"].decode()),
        )
        for label, score, rle in zip(
            found.labels.tolist(), found.scores, encode_mask_results(found.masks), strict=True
        )
    ]


def label_map(sample: BaseDataElement, num_classes: int) -> NDArray[np.unsignedinteger[Any]]:
    """The class of every pixel, as label maps of both hosts have it.

    Args:
        sample: A data sample with ``pred_sem_seg``.
        num_classes: Number of classes of the model.

    Returns:
        ``(H, W)`` uint8, 255 where there is no class; of 256 classes or more, uint16 and 65535.
    """
    data = sample.pred_sem_seg
    labels = data.get("sem_seg", data.get("data"))[0].cpu().numpy()
    kind = np.uint8 if num_classes <= np.iinfo(np.uint8).max else np.uint16
    known = (labels >= 0) & (labels < num_classes)
    return np.where(known, labels, np.iinfo(kind).max).astype(kind)
