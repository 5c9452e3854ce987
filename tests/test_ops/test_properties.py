"""What holds for every size, memory layout and value, against slow references."""

import numpy as np
import pytest
import skimage.measure
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from hcformer_mm.ops import (
    FeatureProjection,
    decode,
    decode_hierarchy,
    decode_points,
    hard_assignment,
    hierarchical_clusters,
    soft_assign,
    soft_assign_maps,
)
from hcformer_mm.ops import neighborhood_products as products
from hcformer_mm.ops.deform_conv import modulated_deform_conv2d
from hcformer_mm.ops.neighborhood import pad_border
from tests.helpers import reference
from tests.helpers.strategies import SCALES, SIZES, half, maps

BATCHES = CHANNELS = st.integers(0, 2)
HALF_PRECISION = [torch.bfloat16, torch.float16]


def outside(size):
    """Candidates that do not exist, bool (9, H, W)."""
    return reference.to_candidates(reference.neighbors(*size)[None], *size)[0] == 0


@given(st.data(), SIZES, BATCHES, st.integers(1, 5), SCALES)
def test_assignment_equals_the_dense_oracle(data, size, batch, channels, scale):
    fine = F.normalize(data.draw(maps((batch, channels, *size))), dim=1)
    coarse = F.normalize(data.draw(maps((batch, channels, *half(size)))), dim=1)
    expected = reference.to_candidates(reference.assignment_matrix(fine, coarse, scale), *size)
    # A scale of 0 amplifies the last bits of equal similarities.
    tolerance = 1e-12 / max(abs(scale), 1e-8)
    torch.testing.assert_close(
        soft_assign(fine, coarse, scale), expected, rtol=0, atol=min(max(tolerance, 1e-12), 1)
    )


@given(st.data(), SIZES, SCALES, st.sampled_from([torch.float32, torch.float64, *HALF_PRECISION]))
def test_assignments_sum_to_one_and_are_zero_outside(data, size, scale, dtype):
    """Whatever the features are: zero, equal, denormal, of length 1e4, or a single channel."""
    channels = data.draw(st.integers(1, 5))
    kinds = ("normal", "zero", "equal", "denormal", "large")
    fine = data.draw(maps((2, channels, *size), dtype, kinds))
    coarse = data.draw(maps((2, channels, *half(size)), dtype, kinds))
    fine.requires_grad_()
    factor = torch.tensor([scale], dtype=torch.float64, requires_grad=True)
    assignment = soft_assign(fine, coarse, factor)
    assert assignment.dtype == dtype
    assert (assignment >= 0).all()
    assert not assignment[:, outside(size)].any()
    # Each of nine weights is rounded.
    tolerance = max(1e-6, 9 * torch.finfo(dtype).eps / 2)
    assert (assignment.double().sum(1) - 1).abs().max() <= tolerance
    if dtype not in HALF_PRECISION:
        for gradient in torch.autograd.grad(assignment[:, 4].sum(), (fine, factor)):
            assert gradient.isfinite().all()


@given(st.data(), SIZES, SCALES, st.sampled_from(HALF_PRECISION))
def test_projected_maps_under_autocast(data, size, scale, dtype):
    """Features up to 1e4 in half precision; assignment and gradients of weights are float32."""
    kinds = ("normal", "zero", "equal", "denormal", "large")
    fine = data.draw(maps((1, 4, *size), dtype, kinds))
    coarse = data.draw(maps((1, 6, *half(size)), dtype, kinds))
    random = torch.Generator().manual_seed(0)
    weights = [
        FeatureProjection(
            *(torch.randn(n, generator=random) for n in (channels, channels, (5, channels))), 1e-5
        )
        for channels in (4, 6)
    ]
    factor = torch.tensor([scale])
    inputs = [factor, *weights[0][:3], *weights[1][:3]]
    for x in inputs:
        x.requires_grad_()
    with torch.autocast("cpu", dtype):
        assignment = soft_assign_maps(fine, coarse, factor, *weights)
    assert assignment.dtype == torch.float32
    assert (assignment.sum(1) - 1).abs().max() <= 1e-6
    assert not assignment[:, outside(size)].any()
    for gradient in torch.autograd.grad(assignment[:, 4].sum(), inputs):
        assert gradient.isfinite().all()


@given(st.data(), SIZES, BATCHES, st.integers(0, 4))
def test_decoding_equals_the_dense_oracle(data, size, batch, queries):
    masks = data.draw(maps((batch, queries, *half(size))))
    assignment = data.draw(maps((batch, 9, *size)))
    expected = reference.decode(masks, reference.to_matrix(assignment), *size)
    torch.testing.assert_close(decode(masks, assignment), expected, rtol=1e-12, atol=1e-12)


@given(st.data(), SIZES, st.sampled_from([torch.float32, *HALF_PRECISION]))
def test_decoded_values_lie_between_those_of_the_cells(data, size, dtype):
    """Logits of 1e4 too, through three levels; the decoded complement is the complement."""
    assignments = []
    for _ in range(3):
        fine, coarse = (data.draw(maps((1, 3, *side), dtype)) for side in (size, half(size)))
        assignments.append(soft_assign(fine, coarse, data.draw(SCALES)))
        size = half(size)
    masks = data.draw(maps((1, 2, *size), dtype, ("normal", "zero", "equal", "large")))
    decoded = decode_hierarchy(masks, assignments)
    assert decoded.dtype == dtype
    slack = 32 * torch.finfo(dtype).eps * masks.abs().max()
    assert (decoded >= masks.amin((2, 3), keepdim=True) - slack).all()
    assert (decoded <= masks.amax((2, 3), keepdim=True) + slack).all()


@given(st.data(), SIZES, BATCHES, st.integers(0, 3), st.integers(1, 3))
def test_points_equal_the_sampled_map(data, size, batch, queries, levels):
    assignments, side = [], size
    for _ in range(levels):
        assignments.append(data.draw(maps((batch, 9, *side))))
        side = half(side)
    masks = data.draw(maps((batch, queries, *side)))
    points = 1.4 * torch.rand(batch, 5, 2, dtype=torch.float64) - 0.2
    whole = decode_hierarchy(masks, assignments)
    expected = F.grid_sample(whole, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]
    found = decode_points(masks, assignments, points)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(st.data(), SIZES, BATCHES, CHANNELS, st.booleans())
def test_products_are_adjoint(data, size, batch, channels, by_rows):
    """⟨AV, P⟩ = ⟨V, AᵀP⟩ = ⟨A, PVᵀ⟩, in both forms."""
    rows, cols = half(size)
    pixels = data.draw(maps((batch, channels, *size))).permute(0, 2, 3, 1)
    cells = pad_border(data.draw(maps((batch, channels, rows, cols))).permute(0, 2, 3, 1))
    weights = data.draw(maps((batch, 9, *size))).permute(0, 2, 3, 1)
    with pytest.MonkeyPatch.context() as patch:
        if not by_rows:
            patch.setattr(products, "_by_rows", lambda _: False)
        expected = (products.neighborhood_av(cells, weights) * pixels).sum()
        for result in (
            (products.neighborhood_av_transpose(pixels, weights) * cells).sum(),
            (products.neighborhood_qk(pixels, cells) * weights).sum(),
        ):
            torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


@given(st.data(), SIZES)
def test_hard_assignment_is_the_best_candidate(data, size):
    """Ties, as with zero features, go to the first candidate inside the map."""
    assignment = data.draw(maps((2, 9, *size)))
    matrix = reference.to_matrix(assignment.double())
    allowed = reference.neighbors(*size)
    expected = matrix.masked_fill(~allowed, -torch.inf).argmax(-1).view(2, *size)
    assert torch.equal(hard_assignment(assignment), expected)


@given(st.data(), SIZES, st.integers(1, 4), st.booleans())
def test_clusters_are_nested_dense_and_connected(data, size, levels, connected):
    assignments, side = [], size
    for _ in range(levels):
        assignments.append(data.draw(maps((1, 9, *side))))
        side = half(side)
    labels = hierarchical_clusters(assignments, connected=connected)
    for level, finer in zip(labels[1:], labels, strict=False):
        pairs = torch.stack((finer.flatten(), level.flatten())).unique(dim=1)
        assert len(pairs[0].unique()) == pairs.shape[1]
    for level in labels:
        assert level.shape == (1, *size)
        assert level.unique().tolist() == list(range(int(level.max()) + 1))
        parts = skimage.measure.label(level[0].numpy(), connectivity=1, background=-1)
        if connected:  # numbered in the order of their first pixels
            assert np.array_equal(parts - 1, level[0].numpy())


@given(st.data(), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2))
def test_deformable_convolution_equals_the_oracle(data, kernel, stride, padding):
    size = data.draw(
        st.tuples(*[st.integers(kernel, 6)] * 2), label="at least as large as the kernel"
    )
    rows, cols = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    x = data.draw(maps((1, 2, *size)))
    # Whole numbers, where the weights have kinks, and far outside the map.
    spread = data.draw(st.sampled_from([0.0, 0.7, 1e4]))
    offset = spread * data.draw(maps((1, 2 * kernel**2, rows, cols)))
    mask, weight = data.draw(maps((1, kernel**2, rows, cols))), torch.ones(3, 2, kernel, kernel)
    weight = weight.double() * torch.arange(3).view(3, 1, 1, 1)
    options = dict(stride=stride, padding=padding)
    found = modulated_deform_conv2d(x, offset, mask, weight, **options)
    expected = reference.deform_conv(
        x, offset, mask, weight, torch.zeros(3, dtype=torch.float64), **options
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
