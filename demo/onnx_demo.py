"""Segment an image with an exported model, by numpy and onnxruntime alone.

python tools/deployment/export.py CONFIG CHECKPOINT --format onnx --shape 512 672 --dynamic \
    --with-postprocess --uint8 --out model.onnx
python demo/onnx_demo.py model.onnx image.npy results.npz

The image is an array of RGB bytes (H, W, 3); other files than *.npy are read by Pillow.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime


def read_image(path):
    if path.suffix == ".npy":
        return np.load(path)
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def input_size(height, width, resize):
    """Height and width at which the model sees an image, by the resize in the file's metadata."""
    if resize is None:
        return height, width
    if not resize["keep_ratio"]:
        return resize["scale"][1], resize["scale"][0]
    bounds, sides = sorted(resize["scale"]), sorted((height, width))
    factor = min(bound / side for bound, side in zip(bounds, sides, strict=True))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize_image(image, size):
    """Resize bytes (H, W, 3) bilinearly without antialiasing, as OpenCV does."""
    for axis, (old, new) in enumerate(zip(image.shape[:2], size, strict=True)):
        position = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        low = position.astype(int)
        high = np.minimum(low + 1, old - 1)
        weight = (position - low).reshape(-1, *[1] * (2 - axis))
        image = image.take(low, axis) * (1 - weight) + image.take(high, axis) * weight
    return np.rint(image).astype(np.uint8)


def predict(session, image):
    """Results of one image by name; see docs/deployment.md. Instances come with their own masks."""
    about = session.get_modelmeta().custom_metadata_map
    size = input_size(*image.shape[:2], json.loads(about["resize"]))
    inputs = {"image": resize_image(image, size)[None], "size": np.array(image.shape[:2])}
    names = [output.name for output in session.get_outputs()]
    results = {name: x[0] for name, x in zip(names, session.run(names, inputs), strict=True)}
    if "masks" in results:
        there = results["labels"] >= 0  # the rest are pairs of a query and a class of stuff
        results["masks"] = results["masks"][results.pop("mask_index")[there]]
        results |= {name: results[name][there] for name in ("boxes", "scores", "labels")}
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="ONNX file exported with --with-postprocess --uint8")
    parser.add_argument("image", type=Path, help="image file, or *.npy")
    parser.add_argument("out", type=Path, help="file *.npz to write the results to")
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    results = predict(session, read_image(args.image))
    np.savez_compressed(args.out, **results)
    print(f"wrote {args.out}:", {name: x.shape for name, x in results.items()})
