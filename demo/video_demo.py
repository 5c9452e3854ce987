"""Segment a video and follow its objects: drawn, and as MOTS or YouTube-VIS files."""

import argparse
import sys
from pathlib import Path

from hcformer_mm.apis import VideoInferencer
from hcformer_mm.apis.arguments import add_model_arguments, model_options
from hcformer_mm.apis.inputs import open_images
from hcformer_mm.apis.track_writer import FORMATS
from hcformer_mm.utils.arguments import number


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", help="video, or folder of its frames, sorted by name")
    add_model_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/video_demo"),
        help="folder (default: %(default)s) for the drawn video and the tracks",
    )
    parser.add_argument(
        "--fps",
        type=number(float, 0.001),
        help="frames per second that are processed of a video, and shown in the drawn one; by "
        "default all are",
    )
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        default="coco-vid",
        help="format of the tracks (default: %(default)s): a text file of MOTS, or a JSON file of "
        "YouTube-VIS",
    )
    parser.add_argument(
        "--draw",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the drawn video",
    )
    parser.add_argument(
        "--object-mask-thr",
        type=number(float, 0, 1),
        help="minimum class probability of segments; by default the config's",
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    open_images(args.video)  # fails on a mistyped name before the model is built
    inferencer = VideoInferencer(**model_options(args))
    results = inferencer.track(
        args.video,
        fps=args.fps,
        batch_size=args.batch_size,
        out_dir=args.out,
        format=args.format,
        draw=args.draw,
        progress=True,
        object_mask_thr=args.object_mask_thr,
    )
    frames, objects = 0, set[int]()
    for sample in results:
        frames += 1
        objects.update(sample.pred_track_instances.instances_id.tolist())
    print(f"{len(objects)} objects in {frames} frames, in {args.out}")


def main() -> None:
    try:
        run(parse_args())
    except (ValueError, OSError) as error:
        sys.exit(f"video_demo: {error}")


if __name__ == "__main__":
    main()
