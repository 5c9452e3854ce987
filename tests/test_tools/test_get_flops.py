import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

from hcformer_mm.ops import decode
from tests.helpers.models import COCO_CONFIG, SHAPES_CONFIG
from tools.analysis_tools.get_flops import count_multiply_adds, count_parameters

TOOL = "analysis_tools/get_flops.py"


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
    # Nine candidates times five masks at every pixel; the first of the nine is not accumulated.
    assert counts["addcmul_"] == 8 * 8 * 8 * 5
    assert count_parameters(Toy()) == 27


def test_segmentors_count_as_detectors_do():
    """Clustered PSPNet at output stride 32: level 0 leaves out the decoding of eq. (5) alone."""
    counts = []
    for level in (0, 3):
        config = Config.fromfile("configs/shapes/hc-pspnet_r18_shapes-semantic.py")
        config.model.backbone.hierarchical_level = level
        counts.append(count_multiply_adds(MODELS.build(config.model), 64, 96))
    classes, cells = 10, 16 * 24 + 8 * 12 + 4 * 6
    assert counts[1]["addcmul_"] == 8 * classes * cells
    assert "addcmul_" not in counts[0]
    assert counts[0]["conv"] == counts[1]["conv"] > 0


def test_tool_prints_both(run_tool, capsys):
    run_tool(TOOL, SHAPES_CONFIG, "--shape", 192, 256)
    printed = capsys.readouterr().out
    assert "parameters" in printed and "mult-adds" in printed
    assert "count as the plain convolutions they replace" in printed


def test_shape_must_fit_the_strides(run_tool, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_tool(TOOL, COCO_CONFIG, "--shape", 100, 96)
    assert stopped.value.code == 2
    assert "expected --shape of multiples of 32, got 100 96" in capsys.readouterr().err
