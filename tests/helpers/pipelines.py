"""What the datasets of mmdet and mmseg hand to a pipeline."""

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as coco_mask

SIZE = (6, 10)


def save(path, array):
    """Write an image, and return its path as text."""
    Image.fromarray(array).save(path)
    return str(path)


def sample(path, *, reduce_zero_label=False, label_map=None, size=SIZE):
    """What mmseg's datasets hand to a pipeline, after the image is loaded."""
    return dict(
        img_path="image.jpg",
        seg_map_path=path,
        ori_shape=size,
        label_map=label_map,
        reduce_zero_label=reduce_zero_label,
        seg_fields=[],
    )


# Things of one pixel, which vanish, and a large one, in an image of 1500x2000; the rest is stuff.
HEIGHT, WIDTH, TINY = 1500, 2000, 10


def write_tiny(root):
    """Write an image with tiny things; its entries in datasets of mmdet and mmseg."""
    ids = np.full((HEIGHT, WIDTH), 1000)
    ids[400:1100, 500:1500] = 500
    for index in range(TINY):
        ids[1 + 150 * index, 1 + 190 * index] = index + 1
    things = [500, *range(1, TINY + 1)]
    image = save(root / "image.jpg", np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    pixels = {thing: np.argwhere(ids == thing) for thing in things}
    detection = dict(
        img_path=image,
        img_id=1,
        height=HEIGHT,
        width=WIDTH,
        seg_map_path=save(root / "ids.png", id2rgb(ids)),
        segments_info=[
            dict(id=1000, category=7, is_thing=False),
            *(dict(id=thing, category=0, is_thing=True) for thing in things),
        ],
        instances=[
            dict(
                bbox=[*pixels[t].min(0)[::-1].tolist(), *(pixels[t].max(0)[::-1] + 1).tolist()],
                bbox_label=0,
                ignore_flag=0,
                mask=coco_mask.encode(np.asfortranarray(ids == t, np.uint8)),
            )
            for t in things
        ],
    )
    for instance in detection["instances"]:
        instance["mask"]["counts"] = instance["mask"]["counts"].decode()
    maps = save(root / "labels.png", np.where(ids == 1000, 1, 2).astype(np.uint8))
    return dict(mmdet=detection, mmseg=sample(maps, size=None) | dict(img_path=image))
