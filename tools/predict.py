"""Segment any number of images in one process or several, and go on where an earlier run stopped.

Exit code: 0 if all images have results, 3 if some could not be read, 1 after an error, and 2 if the
command line is wrong.
"""

import argparse
import hashlib
import os
import sys
from pathlib import Path

import hcformer_mm.utils.threads  # noqa: F401

import torch
from mmengine.config import Config
from mmengine.dist import barrier

from hcformer_mm.apis.arguments import add_inference_arguments, style_of, tiling_of
from hcformer_mm.apis.bulk_inferencer import BulkInferencer, Share
from hcformer_mm.apis.inference import ResultOptions, result_config
from hcformer_mm.apis.result_writer import ResultWriter, check_writable
from hcformer_mm.apis.run_folder import RunFolder
from hcformer_mm.apis.sources import Sources, open_sources
from hcformer_mm.checkpoints.io import sha256
from hcformer_mm.engine.dist import join_processes
from hcformer_mm.utils.arguments import number
from hcformer_mm.utils.config import read_config
from hcformer_mm.utils.errors import InputError
from hcformer_mm.utils.progress import progress
from hcformer_mm.utils.strict_json import dumps
from hcformer_mm.version import __version__

SOME_FAILED = 3

RESULT_OPTIONS = tuple(ResultOptions.__annotations__)
SETTINGS = (
    *("draw", "draw_scores", "font", "draw_mode", "palette", "enlarge", "no_names", "legend"),
    *("scale_bar", "tables", "score_thr", "batch_size", "dtype", "fast", "tile", "tile_overlap"),
    *RESULT_OPTIONS,
)
"""Arguments that results depend on, besides the files that they name."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="input",
        help="image, video, .tar shard of WebDataset, folder of these at any depth, .txt file with "
        "an input on each line, or quoted pattern such as 'shards/{000..010}.tar' or "
        "'data/**/*.jpg'; inputs come before config and checkpoint, as in demo/image_demo.py",
    )
    add_inference_arguments(parser, default_weights=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew in a folder of another run; by default the same command does what is left",
    )
    parser.add_argument(
        "--draw", action="store_true", help="also draw the segments over the images, into vis/"
    )
    parser.add_argument(
        "--workers",
        type=number(int, 0),
        help="threads of each process that read images and write results; 0 does it in turn with "
        "the network (default: 0 on a CPU, else 2)",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm"],
        default="none",
        help="job launcher; processes share the images, and their files are those of one process",
    )
    return parser.parse_args()


def settings_of(args: argparse.Namespace, config: Config, sources: Sources) -> dict[str, object]:
    """What the results depend on, by name."""
    effective = dumps(config.to_dict(), default=str, sort_keys=True)
    return {
        "version": __version__,
        "config": f"{args.config} {hashlib.sha256(effective.encode()).hexdigest()[:12]}",
        "checkpoint": f"{args.checkpoint} {sha256(args.checkpoint)[:12]}",
        "inputs": f"{sources.total} images {sources.digest[:12]}",
        "--ann-file": args.ann_file and f"{args.ann_file} {sha256(args.ann_file)[:12]}",
        **{f"--{name.replace('_', '-')}": getattr(args, name) for name in SETTINGS},
    }


def predict(args: argparse.Namespace) -> int:
    rank, world_size = join_processes(args.launcher)
    out = args.out.resolve()
    if around := [one for one in args.inputs if out.is_relative_to(Path(one).resolve())]:
        raise InputError(
            f"expected --out outside of the inputs, since its files would become inputs, got "
            f"{args.out} in {around[0]}"
        )
    tiling, style = tiling_of(args), style_of(args)
    sources = open_sources(args.inputs)
    config = read_config(args.config, args.cfg_options)
    check_writable(args.out)
    inferencer = BulkInferencer(
        config, args.checkpoint, device_of(args), dtype=args.dtype, fast=args.fast, font=args.font
    )
    writer = ResultWriter(
        args.out,
        inferencer.classes,
        ann_file=args.ann_file,
        draw=args.draw,
        draw_scores=args.draw_scores,
        style=style,
        tables=args.tables,
        score_thr=args.score_thr,
    )
    options = {name: getattr(args, name) for name in RESULT_OPTIONS}
    result_config(inferencer.model, **options)
    images = writer.accept(sources.images)
    with RunFolder(args.out, rank) as folder:
        # Only now, when nothing can be refused any more: --overwrite removes results.
        if rank == 0:
            folder.claim(settings_of(args, config, sources), overwrite=args.overwrite)
        barrier()
        share = Share(args.batch_size, rank, world_size, folder.done())
        records = inferencer.records(
            images, writer, share, workers=args.workers, tiling=tiling, **options
        )
        shown = (
            progress(records, share.left(sources.total), unit=" images") if rank == 0 else records
        )
        for image, record in shown:
            folder.append(image, record)
        barrier()
        if rank != 0:
            return 0
        written, failed = folder.merge(writer)
        print(f"results of {written} images in {args.out}")
        if not failed:
            return 0
        print(
            f"predict: {failed} images could not be read: see 'failed' in "
            f"{args.out / 'images.json'}; replace them, and the same command does them alone",
            file=sys.stderr,
        )
        return SOME_FAILED


def device_of(args: argparse.Namespace) -> str | None:
    """The device of this process."""
    count = torch.cuda.device_count()
    if args.device is None and count:
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % count}"
    return args.device


def main() -> None:
    try:
        sys.exit(predict(parse_args()))
    except (ValueError, OSError) as error:
        sys.exit(f"predict: {error}")
    except KeyboardInterrupt:
        sys.exit("predict: stopped; the same command does what is left")


if __name__ == "__main__":
    main()
