"""Segment images with the tiny model that comes with the package, draw them, and open the explorer.

It needs neither data nor training nor network: the images are rendered. Without a browser it ends
once the drawings are written.
"""

import argparse
import os
import sys
import time
import webbrowser
from pathlib import Path

import hcformer_mm.utils.threads  # noqa: F401

import explorer
from page import write_page
from shapes import shown
from tiny import FOLDER, TINY, render_images

from hcformer_mm.apis.cluster_inferencer import ClusterInferencer
from hcformer_mm.apis.result_writer import write_image
from hcformer_mm.checkpoints.io import load_checkpoint
from hcformer_mm.structures.data_samples import predicted_segments
from hcformer_mm.utils.config import find_weights, read_config
from hcformer_mm.visualization import cluster_sheet

PROVENANCE = {
    "training iterations": "iter",
    "seed": "seed",
    "hcformer_mm of the training": "hcformer_mm_version",
}
"""Entries of the checkpoint that tell where the weights are from."""


def draw(folder: Path) -> dict[str, Path]:
    """Draw each image with its clusters, segments and ground truth; return the sheets by name."""
    inferencer = ClusterInferencer(TINY)
    sheets = {}
    for path, truth in render_images(folder / "images").items():
        (result,) = inferencer(path)
        sheet = cluster_sheet(
            result.image,
            result.labels(),
            classes=inferencer.classes,
            prediction=predicted_segments(result.prediction, inferencer.classes),
            ground_truth=truth,
            side=640,
        )
        sheets[path.stem] = folder / f"{path.stem}.png"
        write_image(sheets[path.stem], sheet)
    return sheets


def write(folder: Path) -> Path:
    """Draw the images, and write the page that shows them."""
    weights = find_weights(read_config(TINY))
    content = load_checkpoint(weights)
    numbers = sum(value.numel() for value in content["state_dict"].values())
    page = folder / "index.html"
    write_page(
        page,
        f"{TINY}: what it sees",
        intro="A sheet shows an image that the model has not been trained on, with its prediction, "
        "its ground truth and the clusters of each level of the hierarchy, the errors of the "
        "clusters in red.",
        tables={
            "The model": [
                ("", ""),
                ("weights", weights.name),
                ("parameters", f"{numbers / 1e6:.1f} M"),
                ("file", f"{weights.stat().st_size / 1e6:.1f} MB"),
                *((name, str(content["meta"].get(key))) for name, key in PROVENANCE.items()),
            ]
        },
        sections={"Images": draw(folder)},
        commands=[
            f"{os.path.relpath(sys.executable)} demo/explorer.py {TINY}",
            f"{os.path.relpath(sys.executable)} demo/image_demo.py my_image.jpg {TINY}",
            "make demo",
        ],
    )
    return page


def has_browser() -> bool:
    """Whether a page can be opened in a window of this machine."""
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}:
        return False  # a browser in the terminal would not show it
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=FOLDER, help="folder of the page (default: %(default)s)"
    )
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        default=has_browser(),
        help="serve the explorer and open it in a browser; by default if there is one",
    )
    return parser.parse_args()


def main() -> None:
    start = time.monotonic()
    args = parse_args()
    try:
        page = write(args.out.absolute())
        print(f"quick: drawn in {time.monotonic() - start:.0f} s: open {shown(page)} in a browser")
        if args.open:
            images = sorted(map(str, (args.out / "images").glob("*.png")))
            explorer.serve(explorer.parse_args([TINY, "--open", "--examples", *images]))
        else:
            command = f"{os.path.relpath(sys.executable)} demo/explorer.py {TINY}"
            print(f"quick: there is no browser here; this serves the explorer: {command}")
    except (ValueError, OSError) as error:
        sys.exit(f"quick: {error}")
    except KeyboardInterrupt:
        sys.exit("\nquick: stopped")


if __name__ == "__main__":
    main()
