"""Draw the clusters of every level, the predicted segments, and the errors of both."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from hcformer_mm.apis.arguments import add_model_arguments, add_score_thr, model_options
from hcformer_mm.apis.cluster_inferencer import ClusterInferencer
from hcformer_mm.apis.inputs import InputImage, open_images, with_unique_names
from hcformer_mm.apis.result_writer import write_image
from hcformer_mm.datasets.ground_truth import GroundTruth, open_ground_truth
from hcformer_mm.structures.data_samples import predicted_segments
from hcformer_mm.utils.arguments import number
from hcformer_mm.visualization import LAYOUTS, cluster_sheet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--img",
        nargs="+",
        required=True,
        help="images, folders of images, or videos, drawn frame by frame",
    )
    parser.add_argument(
        "--gt",
        type=Path,
        help="ground truth: a COCO panoptic JSON, with its PNG files in the folder of the same "
        "name beside it; a COCO instance JSON; or a folder of label maps, gray PNG files named "
        "like the images",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the sheets, <image>.png")
    parser.add_argument(
        "--layout",
        choices=list(LAYOUTS),
        default="full",
        help="panels of a sheet: all (full, default), or those of a figure of the paper",
    )
    parser.add_argument(
        "--connected",
        action="store_true",
        help="treat the connected parts of a cluster as separate clusters",
    )
    parser.add_argument(
        "--side",
        type=number(int, 1),
        default=1280,
        help="approximate longer side of a panel in pixels (default: %(default)s); images are "
        "enlarged or reduced by an integer factor",
    )
    add_score_thr(parser)
    parser.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="label maps of --gt count classes from 1 and use 0 for void, as in ADE20K",
    )
    return parser.parse_args()


def read_ground_truth(
    args: argparse.Namespace,
    inferencer: ClusterInferencer,
    images: list[InputImage] | Iterator[InputImage],
) -> GroundTruth | None:
    if args.gt is None:
        return None
    if not isinstance(images, list):
        raise ValueError("frames of a video have no ground truth; omit --gt")
    truth = open_ground_truth(
        args.gt,
        inferencer.classes,
        reduce_zero_label=args.reduce_zero_label
        or bool(inferencer.model.dataset_meta.get("reduce_zero_label")),
    )
    truth.check(image.path or image.name for image in images)
    return truth


def draw(args: argparse.Namespace) -> None:
    images = with_unique_names(open_images(args.img))
    if isinstance(images, list):
        files = {image.path.resolve() for image in images if image.path}
        sheets = {(args.out / f"{image.name}.png").resolve() for image in images}
        if over := sorted(files & sheets):
            raise ValueError(
                f"expected --out where no sheet would replace an image, got {args.out}, which has "
                f"{over[0]}; name another folder"
            )
    inferencer = ClusterInferencer(**model_options(args))
    truth = read_ground_truth(args, inferencer, images)
    drawn = set[str]()
    for result in inferencer.iterate(args.img, batch_size=args.batch_size, progress=True):
        if result.name in drawn:
            raise ValueError(
                f"expected frames of different names, got two called {result.name}; draw the "
                "videos separately, into different folders"
            )
        sheet = cluster_sheet(
            result.image,
            result.labels(connected=args.connected),
            classes=inferencer.classes,
            prediction=predicted_segments(
                result.prediction, inferencer.classes, score_thr=args.score_thr
            ),
            ground_truth=truth and truth.read(result.path or result.name, result.image.shape[:2]),
            layout=args.layout,
            side=args.side,
        )
        write_image(args.out / f"{result.name}.png", sheet)
        drawn.add(result.name)
    print(f"{len(drawn)} images in {args.out}")
    if isinstance(images, list) and len(drawn) < len(images):
        raise ValueError(f"{len(images) - len(drawn)} of {len(images)} images could not be read")


def main() -> None:
    try:
        draw(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"visualize_clusters: {error}")


if __name__ == "__main__":
    main()
