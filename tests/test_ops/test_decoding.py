import pytest
import torch

from hcformer_mm.ops import decode, decode_hierarchy
from tests.helpers import reference

pytestmark = pytest.mark.usefixtures("device")

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (4, 6), (5, 7), (6, 5), (3, 16), (13, 2)]


def random_assignment(height, width, batch=2, dtype=torch.float64):
    torch.manual_seed(height * 17 + width)
    allowed = reference.neighbors(height, width)
    logits = torch.randn(batch, *allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)
    return reference.to_candidates(logits.softmax(-1), height, width)


def coarse_maps(height, width, batch=2, channels=3, dtype=torch.float64):
    torch.manual_seed(height + width)
    return torch.randn(batch, channels, (height + 1) // 2, (width + 1) // 2, dtype=dtype)


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_dense_oracle_with_gradients(size, bands):
    masks = coarse_maps(*size).requires_grad_()
    assignment = random_assignment(*size).requires_grad_()
    fine = decode(masks, assignment)
    expected = reference.decode(masks, reference.to_matrix(assignment), *size)
    # Candidates out of bounds, which the oracle does not read, have zero gradient.
    inputs = (masks, assignment)
    reference.assert_same_with_gradients(fine, expected, inputs, 1e-12, 1e-10, 1e-10)


def test_gradcheck_to_second_order(bands):
    inputs = coarse_maps(3, 4, batch=1), random_assignment(3, 4, batch=1)
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(decode, inputs)
    assert torch.autograd.gradgradcheck(decode, inputs)


def test_hierarchy_is_the_product_of_matrices():
    sizes = [(11, 14), (6, 7), (3, 4)]
    assignments = [random_assignment(*size) for size in sizes]
    masks = coarse_maps(*sizes[-1])
    product = torch.eye(11 * 14, dtype=torch.float64).expand(2, -1, -1)
    for assignment in assignments:
        product = product @ reference.to_matrix(assignment)
    expected = reference.decode(masks, product, 11, 14)
    torch.testing.assert_close(decode_hierarchy(masks, assignments), expected)
    assert decode_hierarchy(masks, []) is masks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    masks, assignment = coarse_maps(8, 10).to(dtype), random_assignment(8, 10).to(dtype)
    half = decode(masks, assignment)
    assert half.dtype == dtype
    assert half.isfinite().all()
    exact = decode(masks.double(), assignment.double())
    torch.testing.assert_close(half.double(), exact, rtol=2e-2, atol=2e-2)


def test_memory_formats_agree_and_result_is_channels_last():
    masks, assignment = coarse_maps(6, 8), random_assignment(6, 8)
    expected = decode(masks, assignment)
    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in (masks, assignment)]
    torch.testing.assert_close(decode(*channels_last), expected)
    assert expected.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("masks", "assignment", "message"),
    [
        ((1, 2, 3, 3), (1, 9, 8, 8), r"\(4, 4\) for an assignment of \(8, 8\), got \(3, 3\)"),
        ((1, 2, 4, 4), (2, 9, 8, 8), "one batch size and device, got 1 on cpu and 2 on cpu"),
        ((1, 2, 4, 4), (1, 4, 8, 8), r"assignment of \(B, 9, H, W\) .* got \(1, 4, 8, 8\)"),
        ((2, 4, 4), (1, 9, 8, 8), r"masks \(B, Q, h, w\), got \(2, 4, 4\)"),
    ],
)
def test_shapes_that_do_not_fit(masks, assignment, message):
    with pytest.raises(ValueError, match=message):
        decode(torch.zeros(masks), torch.zeros(assignment))


def test_order_of_levels_is_named():
    assignments = [random_assignment(4, 4), random_assignment(8, 8)]
    with pytest.raises(ValueError, match="finest first"):
        decode_hierarchy(coarse_maps(4, 4), assignments)


def test_no_masks_have_gradients_too(bands):
    """For a batch without objects, every parameter must still be in the graph."""
    masks = coarse_maps(5, 7)[:, :0].requires_grad_()
    assignment = random_assignment(5, 7).requires_grad_()
    decode(masks, assignment).sum().backward()
    assert masks.grad.shape == masks.shape
    assert not assignment.grad.any()
