import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from hcformer_mm.apis.complexity import count_multiply_adds, count_parameters
from hcformer_mm.ops import decode
from tests.models import COCO_CONFIG, SHAPES_CONFIG, detector

ROOT = Path(__file__).parents[2]


class Toy(BaseModel):
    """A 1x1 convolution, and a decoding step of its output."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 9, 1, bias=False)

    def forward(self, image, data_samples=None, mode="tensor"):
        assignment = self.conv(image)
        return decode(image.new_ones(1, 5, 4, 4), assignment)


def test_decoding_counts():
    counts = count_multiply_adds(Toy(), 8, 8)
    assert counts["conv"] == 8 * 8 * 3 * 9
    # Nine candidates times five masks at every pixel; the first of the nine is no addition.
    assert counts["addcmul_"] == 8 * 8 * 8 * 5
    assert count_parameters(Toy()) == 27


@pytest.mark.parametrize(
    ("level", "reference"), [(0, 74.46e9), (1, 75.16e9), (2, 76.58e9), (3, 79.47e9)]
)
def test_multiply_adds_of_the_paper(level, reference):
    """R50 at 800x1088, within 2 % of the figures of the released model."""
    model = detector(COCO_CONFIG, **{"backbone.hierarchical_level": level})
    with torch.no_grad():
        counts = count_multiply_adds(model, 800, 1088)
    assert counts.total() == pytest.approx(reference, rel=0.02)


def get_flops(config, height, width):
    command = ["tools/analysis_tools/get_flops.py", config, "--shape", str(height), str(width)]
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)


def test_tool_prints_both():
    result = get_flops(SHAPES_CONFIG, 192, 256)
    assert result.returncode == 0, result.stderr
    assert "parameters" in result.stdout
    assert "mult-adds" in result.stdout
    assert "count as the plain convolutions that they replace" in result.stdout


def test_shape_must_fit_the_strides():
    result = get_flops(COCO_CONFIG, 100, 96)
    assert result.returncode == 2
    assert "expected --shape of multiples of 32, got 100 96" in result.stderr
