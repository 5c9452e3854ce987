"""Segment an image with an exported model: onnx_demo.py MODEL.onnx IMAGE RESULTS.npz"""

import json
import sys

import numpy as np
import onnxruntime


def read_image(path):
    """RGB bytes (H, W, 3) of a file *.npy, or by Pillow of any other image."""
    if path.endswith(".npy"):
        return np.load(path)
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    # Of 16 bits and more, Pillow would make white.
    return np.asarray(image if image.mode[0] in "IF" else image.convert("RGB"))


def input_size(height, width, resize):
    """Height and width at which the model sees an image, by the file's metadata."""
    if resize is None or not resize["keep_ratio"]:
        return tuple(resize["scale"][::-1]) if resize else (height, width)
    factor = min(f(resize["scale"]) / f(height, width) for f in (min, max))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize_image(image, size):
    """Resize bytes (H, W, 3) bilinearly, with OpenCV's weights of 11 bits and its rounding."""
    products = image.astype(int)
    for axis, old, new in ((1, image.shape[1], size[1]), (0, image.shape[0], size[0])):
        position = ((np.arange(new) + 0.5) * old / new - 0.5).astype(np.float32).clip(0, old - 1)
        low = position.astype(int)
        weight = np.rint((position - low) * 2048).astype(int).reshape(-1, *[1] * (2 - axis))
        high = products.take(np.minimum(low + 1, old - 1), axis) * weight
        low = products.take(low, axis) * (2048 - weight)
        products = (low + high) >> 4 if axis else ((low >> 16) + (high >> 16) + 2) >> 2
    return products.astype(np.uint8)


def predict(session, image):
    """Results of one image by name; every instance comes with its mask."""
    if image.dtype != np.uint8 or image.shape[2:] != (3,):
        sys.exit(f"onnx_demo: expected RGB bytes (H, W, 3), got {image.dtype} {image.shape}")
    takes = [f"{x.name} {x.type}" for x in session.get_inputs()]
    if takes != ["image tensor(uint8)", "size tensor(int64)"]:
        sys.exit(f"onnx_demo: expected an export with --with-postprocess --uint8, got {takes}")
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
    model, image, out = sys.argv[1:] if len(sys.argv) == 4 else sys.exit(__doc__)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    results = predict(session, read_image(image))
    np.savez_compressed(out, **results)
    print(f"wrote {out}:", {name: x.shape for name, x in results.items()})
