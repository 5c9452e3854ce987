"""Convert a checkpoint of mmdet, mmseg or torchvision to one that an HCFormer can start from."""

import argparse
import shlex
import sys
from pathlib import Path

from hcformer_mm.checkpoints.warm_start import warm_start_file
from hcformer_mm.utils.arguments import add_cfg_options
from hcformer_mm.utils.config import find_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Reads backbones of mmdet, mmseg, mmpretrain, torchvision, timm and Swin's authors, "
        "and heads of mmdet's Mask2Former and MaskFormer. Prints a table of what was loaded.",
    )
    parser.add_argument("src", type=Path, help="checkpoint to start from")
    parser.add_argument("dst", type=Path, help=".pth file to write, for load_from")
    parser.add_argument(
        "--config", required=True, help="config of the model: a file or a name in configs/hcformer"
    )
    add_cfg_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        result = warm_start_file(args.src, args.dst, args.config, args.cfg_options)
    except (ValueError, OSError) as error:
        sys.exit(f"warm_start: {error}")
    print(result.table())
    print(f"wrote {args.dst}; train with")
    options = {
        **(args.cfg_options or {}),
        "load_from": args.dst,
        "model.backbone.backbone.init_cfg": None,
    }
    overrides = [f"{key}={value}" for key, value in options.items()]
    command = ["tools/train.py", str(find_config(args.config)), "--cfg-options", *overrides]
    print(f"  python {shlex.join(command)}")


if __name__ == "__main__":
    main()
