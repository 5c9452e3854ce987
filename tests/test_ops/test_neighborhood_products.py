import pytest
import torch

from hcformer_mm.ops.neighborhood import pad_border
from hcformer_mm.ops.neighborhood_products import (
    neighborhood_av,
    neighborhood_av_transpose,
    neighborhood_qk,
)
from tests.helpers import reference

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (4, 6), (5, 7), (6, 5), (13, 2), (33, 33), (84, 19)]


def operands(size, batch=2, channels=3, dtype=torch.float64):
    """Pixels, cells with a border of zeros, and weights, which outside the map are not zero."""
    torch.manual_seed(sum(size))
    rows, cols = ((side + 1) // 2 for side in size)
    pixels = torch.randn(batch, *size, channels, dtype=dtype)
    cells = pad_border(torch.randn(batch, rows, cols, channels, dtype=dtype))
    return pixels, cells, torch.randn(batch, *size, 9, dtype=dtype)


def matrix(weights):
    """(B, N, N_d) of weights (B, H, W, 9); what lies outside the map has no place in it."""
    return reference.to_matrix(weights.permute(0, 3, 1, 2))


def inside(cells):
    return cells[:, 1:-1, 1:-1].flatten(1, 2)


@pytest.mark.parametrize("size", SIZES)
def test_mix_is_the_product_with_the_matrix(size, form, bands):
    _, cells, weights = operands(size)
    expected = (matrix(weights) @ inside(cells)).unflatten(1, size)
    torch.testing.assert_close(neighborhood_av(cells, weights), expected)


@pytest.mark.parametrize("size", SIZES)
def test_spread_is_the_product_with_its_transpose(size, form, bands):
    pixels, cells, weights = operands(size)
    result = neighborhood_av_transpose(pixels, weights)
    assert result.shape == cells.shape
    expected = matrix(weights).transpose(1, 2) @ pixels.flatten(1, 2)
    torch.testing.assert_close(inside(result), expected)
    # The border has what the inside has not: nothing of a pixel is lost.
    total = torch.einsum("bhwc,bhwk->bc", pixels, weights)
    torch.testing.assert_close(result.sum((1, 2)), total)


@pytest.mark.parametrize("size", SIZES)
def test_compare_is_the_product_of_pixels_and_cells(size, form, bands):
    pixels, cells, _ = operands(size)
    products = pixels.flatten(1, 2) @ inside(cells).transpose(1, 2)
    expected = reference.to_candidates(products, *size).permute(0, 2, 3, 1)
    torch.testing.assert_close(neighborhood_qk(pixels, cells), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (4, 2)])
def test_gradients_to_second_order(size, form, bands):
    pixels, cells, weights = (x.requires_grad_() for x in operands(size, channels=2))
    for function, inputs in (
        (neighborhood_av, (cells, weights)),
        (neighborhood_av_transpose, (pixels, weights)),
        (neighborhood_qk, (pixels, cells)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precisions(dtype, form):
    pixels, cells, weights = operands((9, 14), channels=40)
    tolerance = dict(rtol=0, atol=16 * torch.finfo(dtype).eps * 40**0.5)
    for function, inputs in (
        (neighborhood_av, (cells, weights)),
        (neighborhood_av_transpose, (pixels, weights)),
        (neighborhood_qk, (pixels, cells)),
    ):
        result = function(*(x.to(dtype) for x in inputs))
        assert result.dtype == dtype
        exact = function(*(x.to(dtype).double() for x in inputs))
        torch.testing.assert_close(result.double(), exact, **tolerance)


def test_any_memory(form):
    """Parts of maps, maps turned round, and gradients that stand for a whole map."""
    pixels, cells, weights = operands((6, 8))
    wide = torch.cat([pixels, weights, pixels], dim=-1)
    turned = cells.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(
        neighborhood_av(turned, wide[..., 3:12]), neighborhood_av(cells, weights)
    )
    torch.testing.assert_close(
        neighborhood_av_transpose(wide[..., :3], wide[..., 3:12]),
        neighborhood_av_transpose(pixels, weights),
    )
    torch.testing.assert_close(
        neighborhood_qk(wide[..., -3:], turned), neighborhood_qk(pixels, cells)
    )
    one = pixels[:, :1, :1].expand_as(pixels)
    torch.testing.assert_close(
        neighborhood_av_transpose(one, weights),
        neighborhood_av_transpose(one.contiguous(), weights),
    )


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_images_and_no_channels(shape, form):
    batch, channels = shape
    pixels, cells, weights = operands((5, 7), batch=batch, channels=channels)
    for x in (pixels, cells, weights):
        x.requires_grad_()
    results = [
        neighborhood_av(cells, weights),
        neighborhood_av_transpose(pixels, weights),
        neighborhood_qk(pixels, cells),
    ]
    assert [tuple(x.shape) for x in results] == [
        (batch, 5, 7, channels),
        (batch, 5, 6, channels),
        (batch, 5, 7, 9),
    ]
    assert not results[2].any()
    gradients = torch.autograd.grad(sum(x.sum() for x in results), (pixels, cells, weights))
    assert [x.shape for x in gradients] == [pixels.shape, cells.shape, weights.shape]


@pytest.mark.parametrize("function", [neighborhood_av, neighborhood_av_transpose, neighborhood_qk])
@pytest.mark.parametrize("frozen", [0, 1])
def test_what_is_frozen_is_not_computed(function, frozen, monkeypatch):
    """A gradient that nobody asks for costs nothing; nor is kept what it alone would need."""
    pixels, cells, weights = operands((6, 4))
    inputs = {
        neighborhood_av: [cells, weights],
        neighborhood_av_transpose: [pixels, weights],
        neighborhood_qk: [pixels, cells],
    }[function]
    inputs[1 - frozen].requires_grad_()
    kept, calls = [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        result = function(*inputs)
    assert [x.data_ptr() for x in kept] == [inputs[frozen].data_ptr()]
    for other in (neighborhood_av, neighborhood_av_transpose, neighborhood_qk):
        name = f"hcformer_mm.ops.neighborhood_products.{other.__name__}"
        monkeypatch.setattr(name, lambda *args, one=other: calls.append(one) or one(*args))
    result.sum().backward()
    assert len(calls) == 1
    assert inputs[frozen].grad is None and inputs[1 - frozen].grad is not None


def test_autocast_is_left(form):
    """Also where a backward pass runs inside of it."""
    operand = [x.float().requires_grad_() for x in operands((6, 5))]
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            pixels, cells, weights = operand
            outputs = (
                neighborhood_av(cells, weights),
                neighborhood_av_transpose(pixels, weights),
                neighborhood_qk(pixels, cells),
            )
            assert all(x.dtype == torch.float32 for x in outputs)
            total = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in outputs)
            gradients.append(torch.autograd.grad(total, operand))
    for x, y in zip(*gradients, strict=True):
        assert torch.equal(x, y)
