from functools import partial

import mmcv.ops
import pytest
import torch

from hcformer_mm.ops.deform_conv import modulated_deform_conv2d
from tests.helpers import reference

CASES = [
    # kernel, stride, padding, (H, W), batch
    (3, 2, 1, (7, 8), 2),
    (1, 2, 0, (6, 5), 2),
    (3, 1, 1, (4, 4), 1),
    (3, 2, 1, (1, 1), 1),
    (3, 2, 1, (1, 9), 2),
]


def inputs(kernel, stride, padding, size, batch, dtype=torch.float64, spread=2.0):
    torch.manual_seed(kernel + 10 * stride)
    rows, cols = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    tensors = (
        torch.randn(batch, 4, *size, dtype=dtype),
        spread * torch.randn(batch, 2 * kernel**2, rows, cols, dtype=dtype),
        torch.rand(batch, kernel**2, rows, cols, dtype=dtype),
        torch.randn(6, 4, kernel, kernel, dtype=dtype),
        torch.randn(6, dtype=dtype),
    )
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle_with_gradients(case):
    tensors = inputs(*case)
    stride, padding = case[1:3]
    output = modulated_deform_conv2d(*tensors, stride=stride, padding=padding)
    expected = reference.deform_conv(*tensors, stride, padding)
    reference.assert_same_with_gradients(output, expected, tensors, *3 * [1e-10])


def test_gradcheck():
    """Positions are not whole, where the interpolation has kinks."""
    x, offset, mask, weight, bias = (tensor.detach() for tensor in inputs(3, 2, 1, (2, 3), 1))
    tensors = x[:, :2], offset.round() + 0.3, mask, weight[:2, :2], bias[:2]
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    convolve = partial(modulated_deform_conv2d, stride=2, padding=1)
    assert torch.autograd.gradcheck(convolve, tensors)


@pytest.mark.parametrize("spread", [0.0, 0.5, 20.0])
def test_equals_mmcv_with_gradients(spread):
    tensors = inputs(3, 2, 1, (19, 33), 2, dtype=torch.float32, spread=spread)
    output = modulated_deform_conv2d(*tensors, stride=2, padding=1)
    expected = mmcv.ops.modulated_deform_conv2d(*tensors, 2, 1)
    reference.assert_same_with_gradients(output, expected, tensors, *3 * [1e-4])


class Convolution(torch.nn.Module):
    """The convolution as a module without parameters: all tensors are inputs."""

    def __init__(self, stride, padding):
        super().__init__()
        self.options = dict(stride=stride, padding=padding)

    def forward(self, x, offset, mask, weight, bias):
        return modulated_deform_conv2d(x, offset, mask, weight, bias, **self.options)


@pytest.mark.parametrize("case", CASES)
def test_exported_form_equals_the_oracle(case):
    tensors = [tensor.detach() for tensor in inputs(*case)]
    stride, padding = case[1:3]
    program = torch.export.export(Convolution(stride, padding), tuple(tensors), strict=False)
    operators = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in operators if "embedding_bag" in name]
    expected = reference.deform_conv(*tensors, stride, padding)
    torch.testing.assert_close(program.module()(*tensors), expected, rtol=1e-10, atol=1e-10)


def test_onnx_equals_the_oracle():
    """In float32, on the operators of onnxruntime's CPU provider."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    tensors = [t.detach() for t in inputs(3, 2, 1, (7, 8), 2, dtype=torch.float32)]
    program = torch.onnx.export(Convolution(2, 1).eval(), tuple(tensors), verbose=False)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
    output = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(output, reference.deform_conv(*tensors, 2, 1), rtol=1e-5, atol=1e-5)


def test_channels_last_and_without_bias():
    x, offset, mask, weight, bias = inputs(3, 2, 1, (6, 6), 1)
    with_bias = modulated_deform_conv2d(x, offset, mask, weight, bias, stride=2, padding=1)
    without = modulated_deform_conv2d(
        x.contiguous(memory_format=torch.channels_last), offset, mask, weight, stride=2, padding=1
    )
    torch.testing.assert_close(without + bias.view(1, -1, 1, 1), with_bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_positions(dtype):
    """On a map wider than the dtype can count; values and offsets are exact in it."""
    x = (torch.arange(3001) % 64).to(dtype).expand(1, 1, 1, -1)
    offset = torch.zeros(1, 2, 1, 3001, dtype=dtype)
    offset[:, 1] = 0.25
    ones = torch.ones(1, 1, 1, 1, dtype=dtype)
    found = modulated_deform_conv2d(x, offset, ones.expand(1, 1, 1, 3001), ones)
    expected = modulated_deform_conv2d(
        x.double(), offset.double(), ones.double().expand(1, 1, 1, 3001), ones.double()
    )
    torch.testing.assert_close(found, expected.to(dtype), rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -1e30])
def test_offsets_beyond_reason_spoil_their_position_alone(value):
    """As in training that diverges: the loss is NaN, but no index leaves the map."""
    tensors = inputs(3, 2, 1, (7, 8), 2)
    expected = modulated_deform_conv2d(*tensors, stride=2, padding=1)
    with torch.no_grad():
        tensors[1][1, 3, 2, 1] = value
    output = modulated_deform_conv2d(*tensors, stride=2, padding=1)
    output.sum().backward()
    others = torch.ones_like(output, dtype=torch.bool)
    others[1, :, 2, 1] = False
    torch.testing.assert_close(output[others], expected[others])
    assert output[1, :, 2, 1].isfinite().all() == (value == -1e30)


def test_shapes_that_do_not_fit():
    x, _, mask, weight, bias = inputs(3, 2, 1, (6, 6), 1)
    with pytest.raises(ValueError, match=r"offset of \(1, 18, 3, 3\), got \(1, 9, 3, 3\)"):
        modulated_deform_conv2d(x, mask, mask, weight, bias, stride=2, padding=1)
    with pytest.raises(ValueError, match=r"mask of \(1, 9, 6, 6\)"):
        modulated_deform_conv2d(
            x, torch.zeros(1, 18, 6, 6), mask, weight, bias, stride=1, padding=1
        )
