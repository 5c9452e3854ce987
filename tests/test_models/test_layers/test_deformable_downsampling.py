"""The kernels of deformable downsampling; tests of HCBackbone test the layers in their blocks."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hcformer_mm.models.layers import deformable_downsampling as module
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from tests.helpers import reference
from tests.helpers.devices import on_each_device

CALLS = {
    "mmcv": "mmcv_deform_conv2d",
    "torchvision": "deform_conv2d",
    "ours": "modulated_deform_conv2d",
}
CASES = [
    # kernel, stride, padding, (H, W), batch
    (3, 2, 1, (7, 9), 2),
    (3, 2, 1, (1, 1), 1),
    (3, 2, 1, (1, 8), 2),
    (3, 1, 1, (5, 4), 1),
    (2, 2, 0, (7, 8), 1),
    (2, 1, 0, (3, 5), 1),
    (1, 2, 0, (5, 6), 2),
    (1, 1, 0, (3, 3), 1),
]


def layer(kernel=3, stride=2, padding=1, dtype=torch.float64, spread=1.0):
    torch.manual_seed(kernel + 10 * stride)
    conv = nn.Conv2d(4, 6, kernel, stride=stride, padding=padding)
    deformable = DeformableDownsampling(conv)
    nn.init.normal_(deformable.conv_offset.weight, std=0.3 * spread)
    nn.init.normal_(deformable.conv_offset.bias, std=spread)
    return deformable.to(torch.get_default_device(), dtype)


def use(kernel, monkeypatch):
    """Let the device count as one with kernels of mmcv, torchvision or, for "ours", of none."""
    device = torch.get_default_device().type
    if kernel == "mmcv" and device != "cpu" and device not in module._MMCV_KERNELS:
        pytest.skip(f"mmcv was built without kernels for {device}")
    kernels = dict(mmcv="_MMCV_KERNELS", torchvision="_TORCHVISION_KERNELS")
    for name, devices in kernels.items():
        monkeypatch.setattr(module, devices, {device} if name == kernel else set())


@on_each_device
@pytest.mark.parametrize("kernel", CALLS)
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_oracle_with_gradients(kernel, case, monkeypatch):
    size, stride, padding, sides, batch = case
    deformable = layer(size, stride, padding)
    x = torch.randn(batch, 4, *sides, dtype=torch.float64, requires_grad=True)
    raw = deformable.conv_offset(x)
    rows, cols = ((side + 2 * padding - size) // stride + 1 for side in sides)
    offset, mask = raw[..., :rows, :cols].split([2 * size**2, size**2], dim=1)
    tensors = x, offset, mask.sigmoid(), deformable.weight, deformable.bias
    expected = reference.deform_conv(*tensors, stride, padding)

    use(kernel, monkeypatch)
    inputs = [x, *deformable.parameters()]
    reference.assert_same_with_gradients(deformable(x), expected, inputs, *3 * [1e-10])


@on_each_device
@pytest.mark.parametrize("kernel", CALLS)
def test_channels_last_maps(kernel, monkeypatch):
    use(kernel, monkeypatch)
    deformable, x = layer(), torch.randn(2, 4, 9, 6, dtype=torch.float64)
    expected = deformable(x)
    torch.testing.assert_close(
        deformable(x.contiguous(memory_format=torch.channels_last)), expected
    )


@pytest.mark.parametrize("kernel", CALLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_keeps_positions(kernel, dtype, autocast, monkeypatch):
    """On a map wider than half precision can count, which rises along its width."""
    use(kernel, monkeypatch)
    conv = nn.Conv2d(1, 1, 1, stride=2, bias=False)
    deformable = DeformableDownsampling(conv)
    nn.init.ones_(deformable.weight)
    nn.init.constant_(deformable.conv_offset.bias, 0.25)  # x lies a quarter of a pixel to the right
    ramp = torch.arange(3001.0) % 64
    x = ramp.expand(1, 1, 4, -1)
    expected = deformable(x)[..., :-1]
    if autocast:
        with torch.autocast("cpu", dtype):
            found = deformable(x)
    else:
        found = deformable.to(dtype)(x.to(dtype))
    torch.testing.assert_close(found[..., :-1].float(), expected, rtol=2**-6, atol=2**-6)


class Operators(TorchDispatchMode):
    """Record the operators that compute tensors, which views do not."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not function.is_view:
            self.names.append(function.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("has_mmcv_kernel", [False, True])
def test_three_operators_on_a_gpu(has_mmcv_kernel, monkeypatch):
    """Without a GPU: fake tensors, which no kernel of mmcv takes."""
    monkeypatch.setattr(module, "_MMCV_KERNELS", {"cuda"} if has_mmcv_kernel else set())
    deformable = layer(dtype=torch.float32)
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        weights = {name: torch.empty(p.shape) for name, p in deformable.named_parameters()}
        x = torch.empty(2, 4, 7, 9)
        with Operators() as operators:
            y = torch.func.functional_call(deformable, weights, x)
    assert (tuple(y.shape), y.device.type) == ((2, 6, 4, 5), "cuda")
    assert operators.names == ["convolution", "sigmoid", "deform_conv2d"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meta_tensors(dtype):
    deformable = layer(dtype=dtype).to("meta")
    x = torch.empty(2, 4, 7, 9, dtype=dtype, device="meta", requires_grad=True)
    y = deformable(x)
    assert (tuple(y.shape), y.dtype) == ((2, 6, 4, 5), dtype)
    y.sum().backward()
    assert all(tensor.grad is not None for tensor in (x, *deformable.parameters()))


def eager(deformable, x):
    return deformable(x)


def compiled(deformable, x):
    return torch.compile(deformable, backend="eager", fullgraph=True)(x)


def exported(deformable, x):
    return torch.export.export(deformable, (x,), strict=False).module()(x)


def exported_with_kernel(deformable, x):
    deformable.exports_kernel = True
    return exported(deformable, x)


@pytest.mark.parametrize(
    ("kernels", "run", "expected"),
    [
        ([], eager, "ours"),
        (["torchvision"], eager, "torchvision"),
        (["mmcv", "torchvision"], eager, "mmcv"),
        ([], compiled, "ours"),
        (["mmcv"], compiled, "ours"),
        (["mmcv", "torchvision"], compiled, "torchvision"),
        (["mmcv", "torchvision"], exported, "ours"),
        ([], exported_with_kernel, "torchvision"),
    ],
)
def test_choice_of_the_kernel(kernels, run, expected, monkeypatch):
    """mmcv's for real memory only; files for other runtimes need none."""
    called = set()

    def recorded(name, function):
        def call(*args, **kwargs):
            called.add(name)
            return function(*args, **kwargs)

        return call

    for name, function in CALLS.items():
        monkeypatch.setattr(module, function, recorded(name, getattr(module, function)))
    for name, devices in dict(mmcv="_MMCV_KERNELS", torchvision="_TORCHVISION_KERNELS").items():
        monkeypatch.setattr(module, devices, {"cpu"} if name in kernels else set())
    deformable, x = layer(dtype=torch.float32), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        run(deformable, x)
    assert called == {expected}
