"""Hand-drawn panoptic sets, and predictions for them as metrics receive them."""

import json

import numpy as np
import torch
from PIL import Image

THING, GROUND, SKY = 300, 7, 8
"""Ids of the segments of :func:`drawing`."""


def drawing(*segments, shift=0):
    """Ids ``(48, 64)``: a box on ground and sky; segments that are not named are void (0)."""
    ids = np.full((48, 64), GROUND)
    ids[:20] = SKY
    ids[12:36, 16 + shift : 40 + shift] = THING
    return np.where(np.isin(ids, segments), ids, 0)


CATEGORIES = {
    THING: dict(id=1, name="box", isthing=1),
    GROUND: dict(id=2, name="ground", isthing=0),
    SKY: dict(id=3, name="sky", isthing=0),
}

SETS = {
    # name: categories, segments and crowds of every image
    "things only": ((THING,), (THING,), ()),
    "stuff only": ((GROUND, SKY), (GROUND, SKY), ()),
    "one class": ((GROUND,), (GROUND,), ()),
    "no segments": ((THING, GROUND, SKY), (), ()),
    "crowds only": ((THING, GROUND, SKY), (THING,), (THING,)),
}


def write_panoptic_set(folder, split, images, categories=tuple(CATEGORIES), crowds=()):
    """Write images and their annotations, whose segments are those of :func:`drawing`.

    Args:
        folder: Root of the set, with ``<split>/`` and ``annotations/panoptic_<split>.json``.
        split: Name of the split.
        images: Ids ``(H, W)`` by file name, which may have folders.
        categories: Segments whose categories the file lists.
        crowds: Segments that are crowds.

    Returns:
        Paths of the JSON file and of the folder of the PNG files.
    """
    annotations = folder / "annotations"
    pngs = annotations / f"panoptic_{split}"
    content = dict(images=[], annotations=[], categories=[CATEGORIES[one] for one in categories])
    for number, (name, ids) in enumerate(images.items(), start=1):
        height, width = ids.shape
        content["images"].append(dict(id=number, file_name=name, height=height, width=width))
        png = str(name).replace(".jpg", ".png")
        infos = []
        for segment in np.unique(ids[ids > 0]).tolist():
            y, x = np.nonzero(ids == segment)
            box = [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            infos.append(
                dict(
                    id=segment,
                    category_id=CATEGORIES[segment]["id"],
                    iscrowd=int(segment in crowds),
                    area=len(y),
                    bbox=[int(side) for side in box],
                )
            )
        content["annotations"].append(dict(image_id=number, file_name=png, segments_info=infos))
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        for path, pixels in ((pngs / png, colors), (folder / split / name, colors * 30)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    file = annotations / f"panoptic_{split}.json"
    file.write_text(json.dumps(content))
    return str(file), str(pngs)


def metainfo(categories=tuple(CATEGORIES)):
    """Metainfo of a set, things first."""
    named = [CATEGORIES[one] for one in categories]
    things, stuff = (
        tuple(one["name"] for one in named if one["isthing"] == kind) for kind in (1, 0)
    )
    return dict(classes=(*things, *stuff), thing_classes=things, stuff_classes=stuff)


def predicted(ids, number=1, name="1.jpg", categories=tuple(CATEGORIES)):
    """Sample whose prediction is ids as of :func:`drawing`; other ids are void."""
    labels = np.full(ids.shape, len(categories))
    for label, segment in enumerate(categories):
        labels[ids == segment] = label + 1000 * CATEGORIES[segment]["isthing"]
    return dict(
        img_id=number,
        img_path=f"/images/{name}",
        ori_shape=ids.shape,
        pred_panoptic_seg=dict(sem_seg=torch.from_numpy(labels)[None]),
    )
