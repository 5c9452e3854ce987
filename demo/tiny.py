"""The model that comes with the package, and images to try it on."""

from pathlib import Path

import numpy as np
from shapes import IMAGES, ROOT

from hcformer_mm.apis.result_writer import write_image
from hcformer_mm.datasets.shapes_generator import render_scene
from hcformer_mm.structures.panoptic import Panoptic

TINY = "hcformer_tiny_shapes"
FOLDER = ROOT / "work_dirs/quick"
# Seed and number of the validation split in the default Shapes set, on which no model is trained.
VALIDATION = (0, 1)


def render_images(folder: Path) -> dict[Path, Panoptic]:
    """Write the demo's images of the Shapes set to a folder; return their ground truth by file."""
    truth = {}
    for name in IMAGES:
        scene = render_scene((*VALIDATION, int(name.stem)))
        path = folder / f"{name.stem}.png"
        write_image(path, scene.image)
        ids = np.zeros(scene.image.shape[:2], np.int64)
        for number, segment in enumerate(scene.segments):
            ids[segment.mask] = number
        truth[path] = Panoptic(ids, {i: one.label for i, one in enumerate(scene.segments)})
    return truth
