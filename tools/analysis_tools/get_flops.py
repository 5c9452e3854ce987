"""Print the parameters and multiply-adds of a config's model."""

import argparse
import math
import sys
from collections import Counter
from typing import Any

import hcformer_mm.utils.threads  # noqa: F401

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.model import BaseModel
from torch import Tensor, nn

from hcformer_mm.utils.arguments import add_cfg_options
from hcformer_mm.utils.config import build_without_weights, read_config
from hcformer_mm.utils.random_inputs import image_bands, random_image


class _TensorForward(nn.Module):
    """A model's plain forward pass as a function of one image, which can be traced."""

    def __init__(self, model: BaseModel, samples: list[Any]) -> None:
        super().__init__()
        self.model = model
        self.samples = samples

    def forward(self, image: Tensor) -> Any:
        with torch.no_grad():
            return self.model(image, self.samples, mode="tensor")


def _one_per_element(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(outputs[0].type().sizes())


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, including frozen ones."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: BaseModel, height: int, width: int) -> Counter[str]:
    """Count the multiply-adds of backbone, neck, head and decoding for one image.

    MMEngine counts a multiply-add as one operation. Convolutions, matrix products and
    normalizations count; elementwise operations do not, except the eight accumulated products of
    the nine in the decoding, eq. (5). Deformable convolutions count as the plain convolutions that
    they replace, and the convolutions that predict their offsets count as well. Resizing the masks
    to the image does not count.

    Args:
        model: A detector or segmentor; it is put into evaluation mode.
        height: Height of the input in pixels.
        width: Width of the input in pixels.

    Returns:
        Counts by kind of operator; ``total()`` adds them up.
    """
    model.eval()
    samples = random_image(model, (height, width))["data_samples"]
    samples[0].set_metainfo(dict(batch_input_shape=(height, width)))  # mmdet's MaskFormer reads it
    image = torch.zeros(1, image_bands(model), height, width)
    analyzer = FlopAnalyzer(_TensorForward(model, samples), image)
    analyzer.set_op_handle(**{"aten::addcmul_": _one_per_element})
    analyzer.unsupported_ops_warnings(False)
    analyzer.uncalled_modules_warnings(False)
    analyzer.tracer_warnings("none")
    return analyzer.by_operator()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or name of a config of this package")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        default=(800, 1088),
        metavar=("H", "W"),
        help="input size in pixels, multiples of 32 (default: 800 1088)",
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if any(side < 1 or side % 32 for side in args.shape):
        parser.error(f"expected --shape of multiples of 32, got {args.shape[0]} {args.shape[1]}")
    return args


def main() -> None:
    args = parse_args()
    height, width = args.shape
    try:
        model = build_without_weights(read_config(args.config, args.cfg_options))
        counts = count_multiply_adds(model, height, width)
    except ValueError as error:
        sys.exit(f"get_flops: {error}")

    print(f"config      {args.config}")
    print(f"input       1 x {image_bands(model)} x {height} x {width}")
    print(f"parameters  {count_parameters(model) / 1e6:.2f} M")
    print(f"mult-adds   {counts.total() / 1e9:.2f} G: backbone, neck, head and decoding, of which")
    longest = max(map(len, counts))
    for kind, count in counts.most_common():
        print(f"  {kind:<{longest}} {count / 1e9:8.2f} G")
    print(
        "Counted by MMEngine's FlopAnalyzer. Deformable convolutions count as the plain "
        "convolutions they replace; the convolutions that predict their offsets count as well. "
        "Resizing the masks to the image is left out."
    )


if __name__ == "__main__":
    main()
