"""Print the parameters and multiply-adds of a config's model."""

import argparse

from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

from complexity import count_multiply_adds, count_parameters


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file path")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        default=(800, 1088),
        metavar=("H", "W"),
        help="input size in pixels, multiples of 32 (default: 800 1088)",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=DictAction, help="override settings, as key=value"
    )
    args = parser.parse_args()
    if any(side < 1 or side % 32 for side in args.shape):
        parser.error(f"expected --shape of multiples of 32, got {args.shape[0]} {args.shape[1]}")
    return args


def main() -> None:
    args = parse_args()
    config = Config.fromfile(args.config)
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    init_default_scope(config.get("default_scope", "mmdet"))
    model = MODELS.build(config.model)
    height, width = args.shape
    counts = count_multiply_adds(model, height, width)

    print(f"config      {args.config}")
    print(f"input       1 x 3 x {height} x {width}")
    print(f"parameters  {count_parameters(model) / 1e6:.2f} M")
    print(f"mult-adds   {counts.total() / 1e9:.2f} G: backbone, neck, head and decoding, of which")
    for kind, count in counts.most_common():
        print(f"  {kind:<16} {count / 1e9:8.2f} G")
    print(
        "Counted by fvcore's conventions. Deformable convolutions count as the plain convolutions "
        "that they replace, and the convolutions that predict their offsets as themselves; "
        "resizing the masks to the image is left out."
    )


if __name__ == "__main__":
    main()
