"""A panoptic set in the formats of other tools: the way back of ``to_panoptic.py``."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import tifffile
import yaml
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as coco_mask


def read_split(root, split):
    """Image entry, ids ``(H, W)`` and ``segments_info`` by name of the image; and categories."""
    content = json.loads((root / f"annotations/panoptic_{split}.json").read_text())
    images = {one["id"]: one for one in content["images"]}
    read = []
    for one in content["annotations"]:
        with Image.open(root / f"annotations/panoptic_{split}" / one["file_name"]) as png:
            ids = rgb2id(np.asarray(png.convert("RGB")))
        read.append((images[one["image_id"]], ids, one["segments_info"]))
    read.sort(key=lambda each: each[0]["file_name"])
    return read, {one["id"]: one for one in content["categories"]}


def assert_same(first, second, split):
    """Segments, classes and crowds of two sets are the same at every pixel."""
    (one, categories), (two, others) = (
        read_split(first, split),
        read_split(second, split),
    )
    assert [image["file_name"] for image, *_ in one] == [image["file_name"] for image, *_ in two]
    for (_, ids, infos), (_, new, new_infos) in zip(one, two, strict=True):
        pairs = np.unique(np.stack([ids.ravel(), new.ravel()]), axis=1).T.tolist()
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        known, found = ({one["id"]: one for one in each} for each in (infos, new_infos))
        assert known.keys() == {a for a, _ in pairs if a}
        assert found.keys() == {b for _, b in pairs if b}
        for a, b in pairs:
            if a or b:
                kinds = categories[known[a]["category_id"]], others[found[b]["category_id"]]
                assert kinds[0]["name"] == kinds[1]["name"]
                assert known[a]["iscrowd"] == found[b]["iscrowd"]


def rectangles(mask):
    """Left, top, right and bottom of rectangles that make a mask: its runs in each row."""
    boxes = []
    for top, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.r_[0, row.astype(int), 0])).tolist()
        pairs = zip(edges[::2], edges[1::2], strict=True)
        boxes += [(left, top, right, top + 1) for left, right in pairs]
    return boxes


def corners(left, top, right, bottom):
    """Outline of a rectangle."""
    return [left, top, right, top, right, bottom, left, bottom]


def save_map(path, pixels):
    """Save whole numbers in the format of the suffix; ``.palette.png`` has a palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels.astype(float))
    elif path.suffix == ".npz":
        np.savez_compressed(path, pixels)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels.astype(np.int32))
    else:
        kind = np.uint8 if pixels.max() < 256 else np.uint16
        image = Image.fromarray(pixels.astype(kind))
        if kind == np.uint8:
            image = image.convert("P")
            image.putpalette(bytes(3 * [7] * 256))
            image.frombytes(pixels.astype(np.uint8).tobytes())
        image.save(path)


def write_masks(root, out, splits, suffixes, offset=0):
    """Maps of objects, whose numbers are above ``offset``, and of classes, by category id."""
    for split in splits:
        shutil.copytree(root / split, out / "images" / split)
        images, categories = read_split(root, split)
        for image, ids, infos in images:
            objects, classes = np.zeros_like(ids), np.zeros_like(ids)
            for number, info in enumerate(infos, start=1):
                classes[ids == info["id"]] = info["category_id"]
                if categories[info["category_id"]]["isthing"]:
                    objects[ids == info["id"]] = number + offset
            for kind, pixels, suffix in zip(
                ("objects", "classes"), (objects, classes), suffixes, strict=True
            ):
                save_map((out / kind / split / image["file_name"]).with_suffix(suffix), pixels)


def write_labelme(root, out, splits, kind):
    """JSON files beside images; each segment is a ``mask``, or each a ``rectangle`` of a group."""
    for split in splits:
        shutil.copytree(root / split, out / split)
        images, categories = read_split(root, split)
        for image, ids, infos in images:
            shapes = []
            for info in infos:
                mask, label = ids == info["id"], categories[info["category_id"]]["name"]
                boxes = rectangles(mask)
                common = dict(label=label, shape_type=kind, flags={}, group_id=None)
                if kind == "mask":
                    left, top = np.min(boxes, axis=0)[:2].tolist()
                    right, bottom = (np.max(boxes, axis=0)[2:] - 1).tolist()
                    png = io.BytesIO()
                    crop = mask[top : bottom + 1, left : right + 1].astype(np.uint8)
                    Image.fromarray(crop).save(png, "PNG")
                    text = base64.b64encode(png.getvalue()).decode()
                    points = [[left, top], [right, bottom]]
                    shapes.append(common | dict(points=points, mask=text))
                for box in boxes if kind == "rectangle" else ():
                    points = np.reshape(box, (2, 2)).tolist()
                    shapes.append(common | dict(points=points, group_id=info["id"]))
            name = image["file_name"]
            size = dict(imageHeight=image["height"], imageWidth=image["width"])
            content = dict(version="5.5.0", shapes=shapes, imagePath=name, imageData=None, **size)
            (out / split / name).with_suffix(".json").write_text(json.dumps(content))


def write_yolo(root, out, splits):
    """Each segment is a line, whose rectangles are joined by lines without area."""
    for split in splits:
        shutil.copytree(root / split, out / "images" / split)
        images, categories = read_split(root, split)
        names = [one["name"] for one in categories.values()]
        for image, ids, infos in images:
            lines = []
            for info in infos:
                boxes = [corners(*box) for box in rectangles(ids == info["id"])]
                there = [box + box[:2] for box in boxes]
                points = np.concatenate(there + [box[:2] for box in boxes[::-1]]).reshape(-1, 2)
                points = points / (image["width"], image["height"])
                label = names.index(categories[info["category_id"]]["name"])
                lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in points.ravel()))
            file = (out / "labels" / split / image["file_name"]).with_suffix(".txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines))
    folders = {split: f"images/{split}" for split in splits}
    (out / "data.yaml").write_text(yaml.safe_dump(dict(path=".", **folders, names=names)))


def write_coco(root, out, splits, kind):
    """CVAT's export: images in one folder; polygons, or run lengths as a list or text."""
    (out / "annotations").mkdir(parents=True)
    for split in splits:
        shutil.copytree(root / split, out / "images" / split)
        images, categories = read_split(root, split)
        names = [
            dict(id=10 * number, name=one["name"], supercategory="")
            for number, one in categories.items()
        ]
        annotations = []
        for image, ids, infos in images:
            for info in infos:
                mask = ids == info["id"]
                rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
                found = dict(size=[*mask.shape], counts=rle["counts"].decode())
                if kind == "list":
                    flat = mask.ravel(order="F").astype(int)
                    edges = np.flatnonzero(np.diff(np.r_[0, flat]))
                    found["counts"] = np.diff(np.r_[0, edges, flat.size]).tolist()
                elif kind == "polygons":
                    found = [corners(*box) for box in rectangles(mask)]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image["id"],
                        category_id=10 * info["category_id"],
                        segmentation=found,
                        iscrowd=info["iscrowd"],
                        attributes=dict(occluded=False),
                    )
                )
        content = dict(
            images=[one for one, *_ in images], annotations=annotations, categories=names
        )
        (out / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def write_classes(root, path):
    """The classes of a set as a file for ``--classes``; returns its path."""
    _, categories = read_split(root, "train")
    kinds = {"things": [], "stuff": []}
    for one in categories.values():
        kinds["things" if one["isthing"] else "stuff"].append(one["name"])
    Path(path).write_text(yaml.safe_dump(kinds) if path.suffix == ".yaml" else json.dumps(kinds))
    return path
