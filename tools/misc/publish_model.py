"""Publish a checkpoint: keep the weights and their metadata, and put a hash in the name."""

import argparse
import sys
from pathlib import Path

from hcformer_mm.checkpoints.publish import publish


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("in_file", type=Path, help="checkpoint of a training run")
    parser.add_argument(
        "out_file", type=Path, help="NAME.pth, which becomes NAME-<8 digits of its SHA-256>.pth"
    )
    parser.add_argument(
        "--half", action="store_true", help="round the weights to float16, in half the bytes"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    try:
        path, left_out, averaged = publish(args.in_file, args.out_file, half=args.half)
    except (ValueError, OSError) as error:
        sys.exit(f"publish_model: {error}")
    kind = "the moving average of the weights" if averaged else "the weights"
    sizes = [f"{file.stat().st_size / 2**20:.1f} MiB" for file in (args.in_file, path)]
    print(f"left out   {', '.join(left_out) or 'nothing'}")
    print(f"published  {path}: {kind}, {sizes[1]} of {sizes[0]}")


if __name__ == "__main__":
    main()
