from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode

from hcformer_mm.ops import neighborhood_products as products
from hcformer_mm.ops.neighborhood import pad_border
from tests.helpers import reference

NAMES = ("neighborhood_av", "neighborhood_av_transpose", "neighborhood_qk")
SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (4, 6), (5, 7), (6, 5), (13, 2), (33, 33), (84, 19)]


def operands(size, batch=2, channels=3, dtype=torch.float64):
    """Pixels, cells with a zero border, and weights, which are not zero out of bounds."""
    torch.manual_seed(sum(size))
    rows, cols = ((side + 1) // 2 for side in size)
    pixels = torch.randn(batch, *size, channels, dtype=dtype)
    cells = pad_border(torch.randn(batch, rows, cols, channels, dtype=dtype))
    return pixels, cells, torch.randn(batch, *size, 9, dtype=dtype)


def inputs_of(pixels, cells, weights):
    """The operands of each product, in the order of NAMES."""
    return (cells, weights), (pixels, weights), (pixels, cells)


def apply(*operands):
    """All three products."""
    pairs = zip(NAMES, inputs_of(*operands), strict=True)
    return [getattr(products, name)(*inputs) for name, inputs in pairs]


@pytest.mark.parametrize("size", SIZES)
def test_equal_products_with_the_dense_matrix(size, form, bands):
    pixels, cells, weights = operands(size)
    av, av_transpose, qk = apply(pixels, cells, weights)
    # (B, N, N_d); candidates out of bounds have no entry.
    matrix = reference.to_matrix(weights.permute(0, 3, 1, 2))
    inside = cells[:, 1:-1, 1:-1].flatten(1, 2)
    torch.testing.assert_close(av, (matrix @ inside).unflatten(1, size))

    assert av_transpose.shape == cells.shape
    expected = matrix.transpose(1, 2) @ pixels.flatten(1, 2)
    torch.testing.assert_close(av_transpose[:, 1:-1, 1:-1].flatten(1, 2), expected)
    # The border holds the rest: no pixel is lost.
    total = torch.einsum("bhwc,bhwk->bc", pixels, weights)
    torch.testing.assert_close(av_transpose.sum((1, 2)), total)

    similarity = pixels.flatten(1, 2) @ inside.transpose(1, 2)
    expected = reference.to_candidates(similarity, *size).permute(0, 2, 3, 1)
    torch.testing.assert_close(qk, expected)


@pytest.mark.parametrize(("batch", "size"), [(2, (1, 1)), (1, (3, 4)), (2, (2, 3))])
@pytest.mark.parametrize("index", range(3), ids=NAMES)
def test_gradients_to_second_order(index, batch, size, form, bands):
    inputs = inputs_of(*operands(size, batch, channels=2))[index]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(getattr(products, NAMES[index]), inputs)
    assert torch.autograd.gradgradcheck(getattr(products, NAMES[index]), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype, form):
    rounded = [x.to(dtype) for x in operands((9, 14), channels=40)]
    exact = apply(*(x.double() for x in rounded))
    for result, expected in zip(apply(*rounded), exact, strict=True):
        assert result.dtype == dtype
        atol = 16 * torch.finfo(dtype).eps * 40**0.5
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=atol)


def test_any_memory_layout(form):
    """Slices, transposed maps, and expanded gradients."""
    pixels, cells, weights = operands((6, 8))
    wide = torch.cat([pixels, weights, pixels], dim=-1)
    transposed = cells.transpose(1, 2).contiguous().transpose(1, 2)
    found = apply(wide[..., :3], transposed, wide[..., 3:12])
    torch.testing.assert_close(found, apply(pixels, cells, weights))
    one = pixels[:, :1, :1].expand_as(pixels)
    found = apply(one, cells, weights)
    torch.testing.assert_close(found, apply(one.contiguous(), cells, weights))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_images_and_no_channels(shape, form):
    batch, channels = shape
    tensors = [x.requires_grad_() for x in operands((5, 7), batch=batch, channels=channels)]
    results = apply(*tensors)
    assert [tuple(x.shape) for x in results] == [
        (batch, 5, 7, channels),
        (batch, 5, 6, channels),
        (batch, 5, 7, 9),
    ]
    assert not results[2].any()
    gradients = torch.autograd.grad(sum(x.sum() for x in results), tensors)
    assert [x.shape for x in gradients] == [x.shape for x in tensors]


@pytest.mark.parametrize("index", range(3), ids=NAMES)
@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_operands_cost_nothing(index, frozen, monkeypatch):
    """Their gradient is not computed, and what it alone needs is not saved."""
    inputs = inputs_of(*operands((6, 4)))[index]
    inputs[1 - frozen].requires_grad_()
    saved, calls = [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        result = getattr(products, NAMES[index])(*inputs)
    assert [x.data_ptr() for x in saved] == [inputs[frozen].data_ptr()]
    for name in NAMES:
        product = getattr(products, name)
        monkeypatch.setattr(
            products, name, lambda *args, one=product: calls.append(one) or one(*args)
        )
    result.sum().backward()
    assert len(calls) == 1
    assert inputs[frozen].grad is None and inputs[1 - frozen].grad is not None


def test_autocast_is_left(form):
    """Even if a backward pass runs inside of it."""
    tensors = [x.float().requires_grad_() for x in operands((6, 5))]
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = apply(*tensors)
            assert all(x.dtype == torch.float32 for x in outputs)
            total = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in outputs)
            gradients.append(torch.autograd.grad(total, tensors))
    for x, y in zip(*gradients, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("index", range(3), ids=NAMES)
def test_transforms_of_functions(index, form, bands):
    """Gradients of first and second order by torch.func, and those of every example."""
    product = getattr(products, NAMES[index])
    first, second = inputs_of(*operands((5, 6)))[index]

    def total(first, second):
        result = product(first, second)
        return (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum()

    def roughness(first, second):
        return sum((g**2).sum() for g in torch.func.grad(total, (0, 1))(first, second))

    leaves = [x.clone().requires_grad_() for x in (first, second)]
    gradients = torch.autograd.grad(total(*leaves), leaves, create_graph=True)
    torch.testing.assert_close(torch.func.grad(total, (0, 1))(first, second), gradients)
    second_order = torch.autograd.grad(sum((g**2).sum() for g in gradients), leaves)
    torch.testing.assert_close(torch.func.grad(roughness, (0, 1))(first, second), second_order)

    examples = torch.stack((first, -2 * first, first + 1), dim=1)
    torch.testing.assert_close(
        torch.vmap(product, in_dims=(1, None))(examples, second),
        torch.stack([product(x, second) for x in examples.unbind(1)]),
    )
    torch.testing.assert_close(
        torch.vmap(torch.func.grad(total, 1), in_dims=(1, None))(examples, second),
        torch.stack([torch.func.grad(total, 1)(x, second) for x in examples.unbind(1)]),
    )


@pytest.mark.parametrize("index", range(3), ids=NAMES)
@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_on_devices_without_numbers(index, device, dtype, bands):
    """On meta tensors with gradients, and on fake tensors of a GPU, without one."""
    inputs = inputs_of(*operands((5, 6), dtype=dtype))[index]
    expected = getattr(products, NAMES[index])(*inputs)
    mode = FakeTensorMode() if device == "cuda" else nullcontext()
    with mode:
        inputs = [torch.empty(x.shape, dtype=dtype, device=device) for x in inputs]
        inputs = [x.requires_grad_(device == "meta") for x in inputs]
        result = getattr(products, NAMES[index])(*inputs)
        assert (result.shape, result.dtype) == (expected.shape, dtype)
        assert result.device.type == device
        if device == "meta":
            gradients = torch.autograd.grad(result.sum(), inputs)
            assert [g.shape for g in gradients] == [x.shape for x in inputs]
