"""Draw the clusters of every level in images, and where they, and the segments, go wrong."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from hcformer_mm.apis.cluster_inferencer import ClusterInferencer
from hcformer_mm.apis.inputs import InputImage, open_images, with_unique_names
from hcformer_mm.apis.result_writer import write_image
from hcformer_mm.datasets.ground_truth import GroundTruth, open_ground_truth
from hcformer_mm.structures.data_samples import SCORE_THR, predicted_segments
from hcformer_mm.visualization import LAYOUTS, cluster_sheet


class UsageError(Exception):
    """What the one who typed the command can put right."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or the name of one of this package's")
    parser.add_argument("checkpoint", type=Path, help="checkpoint file")
    parser.add_argument(
        "--img",
        nargs="+",
        required=True,
        help="images to draw, folders of them, or videos whose frames are drawn",
    )
    parser.add_argument(
        "--gt",
        type=Path,
        help="ground truth of the images: a COCO panoptic JSON, its PNG files in the folder of "
        "the same name beside it; a COCO instance JSON; or a folder of gray PNG files with the "
        "classes, named like the images",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for <image>.png")
    parser.add_argument(
        "--layout",
        choices=list(LAYOUTS),
        default="full",
        help="full (default): everything; or as a figure of the paper",
    )
    parser.add_argument(
        "--connected",
        action="store_true",
        help="take the connected parts of a cluster for clusters of their own",
    )
    parser.add_argument(
        "--side",
        type=int,
        default=1280,
        help="longer side of a panel in pixels, about (default: %(default)s); small images are "
        "enlarged by an integer, large ones divided by one",
    )
    parser.add_argument(
        "--score-thr",
        type=float,
        default=SCORE_THR,
        help="least score of the instances that are drawn, of models that predict only these "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--reduce-zero-label",
        action="store_true",
        help="classes in the folder of --gt count from 1, and 0 is void, as in ADE20K",
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, help="images that go through the model together"
    )
    parser.add_argument(
        "--device", help="cpu, cuda or cuda:<index>; by default the GPU if there is one"
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
        raise UsageError("the frames of a video have no ground truth; leave --gt out")
    truth = open_ground_truth(
        args.gt,
        inferencer.classes,
        reduce_zero_label=args.reduce_zero_label
        or bool(inferencer.model.dataset_meta.get("reduce_zero_label")),
    )
    missing = [image.file_name for image in images if image.file_name not in truth]
    if missing:
        more = f" and {len(missing) - 3} more" * (len(missing) > 3)
        raise UsageError(f"{args.gt} has no ground truth of {', '.join(missing[:3])}{more}")
    return truth


def draw(args: argparse.Namespace) -> None:
    if args.batch_size < 1 or args.side < 1:
        raise UsageError(
            f"expected --batch-size and --side of 1 at least, got {args.batch_size} and {args.side}"
        )
    images = with_unique_names(open_images(args.img))
    inferencer = ClusterInferencer(args.config, args.checkpoint, device=args.device)
    truth = read_ground_truth(args, inferencer, images)
    drawn = 0
    for result in inferencer.iterate(args.img, batch_size=args.batch_size, progress=True):
        sheet = cluster_sheet(
            result.image,
            result.labels(connected=args.connected),
            classes=inferencer.classes,
            prediction=predicted_segments(
                result.prediction, inferencer.classes, score_thr=args.score_thr
            ),
            ground_truth=truth and truth.read(result.name, result.image.shape[:2]),
            layout=args.layout,
            side=args.side,
        )
        write_image(args.out / f"{result.name}.png", sheet)
        drawn += 1
    print(f"{drawn} images in {args.out}")


def main() -> None:
    try:
        draw(parse_args())
    except (UsageError, ValueError, FileNotFoundError) as error:
        sys.exit(f"visualize_clusters: {error}")


if __name__ == "__main__":
    main()
