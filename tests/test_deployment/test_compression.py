"""Compression: what of an ONNX file is not in half precision."""

import numpy as np
import pytest
import torch
from torch import nn

from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


class Detector(nn.Module):
    """A network in the place that it has in an exported model."""

    def __init__(self, network):
        super().__init__()
        self.model = nn.Module()
        self.model.backbone = nn.Sequential()
        self.model.backbone.add_module("backbone", network)

    def forward(self, x):
        y = self.model.backbone(x)
        return y, y.sum() * 1000


def test_the_rest_stays_in_float32(tmp_path):
    """From 1024 on, float16 has no positions between pixels; it ends at 65504."""
    from hcformer_mm.deployment.compression import to_float16

    layer = DeformableDownsampling(nn.Conv2d(1, 1, 1, stride=2, bias=False))
    nn.init.constant_(layer.conv_offset.bias[:2], 0.5)
    model = Detector(nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), layer)).eval()
    nn.init.ones_(layer.weight)
    nn.init.ones_(model.model.backbone.backbone[0].weight)
    x = torch.arange(2400.0).remainder(2).expand(1, 1, 4, 2400).contiguous()
    whole, half = (tmp_path / f"{name}.onnx" for name in ("whole", "half"))
    torch.onnx.export(model, (x,), whole, input_names=["x"], dynamo=True, external_data=False)
    to_float16(whole, half)
    with torch.no_grad():
        expected = model(x)
    assert expected[1].abs() > 65504
    for file, rtol in ((whole, 1e-5), (half, 1e-2)):
        found = onnxruntime.InferenceSession(file).run(None, {"x": x.numpy()})
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=rtol)
