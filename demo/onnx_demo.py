"""Segment an image with a file of `export.py --with-postprocess --uint8`: docs/deployment.md."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def read_image(path):
    """RGB bytes (H, W, 3) of a file *.npy, or by Pillow of any other image."""
    if path.suffix == ".npy":
        return np.load(path)
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def input_size(height, width, resize):
    """Height and width at which the model sees an image, by the file's metadata."""
    if resize is None or not resize["keep_ratio"]:
        return tuple(resize["scale"][::-1]) if resize else (height, width)
    bounds, sides = sorted(resize["scale"]), sorted((height, width))
    factor = min(bound / side for bound, side in zip(bounds, sides, strict=True))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize_image(image, size):
    """Resize bytes (H, W, 3) bilinearly without antialiasing, as OpenCV does."""
    for axis, (old, new) in enumerate(zip(image.shape[:2], size, strict=True)):
        position = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = position.astype(int)
        weight = (position - low).reshape(-1, *[1] * (2 - axis))
        high = image.take(np.minimum(low + 1, old - 1), axis)
        image = image.take(low, axis) * (1 - weight) + high * weight
    return np.rint(image).astype(np.uint8)


def predict(session, image):
    """Results of one image by name; every instance comes with its mask."""
    resize = json.loads(session.get_modelmeta().custom_metadata_map["resize"])
    resized = resize_image(image, input_size(*image.shape[:2], resize))
    inputs = {"image": resized[None], "size": np.array(image.shape[:2], dtype=np.int64)}
    names = [output.name for output in session.get_outputs()]
    results = {name: x[0] for name, x in zip(names, session.run(names, inputs), strict=True)}
    if "masks" in results:
        there = results["labels"] >= 0  # the others are stuff
        results["masks"] = results["masks"][results.pop("mask_index")[there]]
        results |= {name: results[name][there] for name in ("boxes", "scores", "labels")}
    return results


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: onnx_demo.py MODEL.onnx IMAGE RESULTS.npz")
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    results = predict(session, read_image(Path(sys.argv[2])))
    np.savez_compressed(sys.argv[3], **results)
    print(f"wrote {sys.argv[3]}:", {name: x.shape for name, x in results.items()})
