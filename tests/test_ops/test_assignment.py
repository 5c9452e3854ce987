import pytest
import torch
from torch.nn import functional as F

from hcformer_mm.ops import soft_assign
from hcformer_mm.ops.assignment import soft_assign_maps
from hcformer_mm.ops.feature_projection import FeatureProjection
from tests.helpers import reference

pytestmark = pytest.mark.usefixtures("device")

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (4, 6), (5, 7), (6, 5), (3, 16), (13, 2)]


def features(height, width, batch=2, channels=5, dtype=torch.float64, requires_grad=False):
    """Unit-norm fine and coarse features."""
    torch.manual_seed(height * 31 + width)
    coarse_size = (height + 1) // 2, (width + 1) // 2
    fine = F.normalize(torch.randn(batch, channels, height, width, dtype=dtype), dim=1)
    coarse = F.normalize(torch.randn(batch, channels, *coarse_size, dtype=dtype), dim=1)
    return fine.requires_grad_(requires_grad), coarse.requires_grad_(requires_grad)


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_dense_oracle_with_gradients(size, bands):
    fine, coarse = features(*size, requires_grad=True)
    scale = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    assignment = soft_assign(fine, coarse, scale)
    expected = reference.to_candidates(reference.assignment_matrix(fine, coarse, scale), *size)
    assert assignment.shape == (2, 9, *size)
    inputs = (fine, coarse, scale)
    reference.assert_same_with_gradients(assignment, expected, inputs, 1e-12, 1e-9, 1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_sums_to_one_and_is_zero_outside(size):
    assignment = soft_assign(*features(*size), 0.3)
    torch.testing.assert_close(
        assignment.sum(1), torch.ones(2, *size, dtype=torch.float64), rtol=0, atol=1e-12
    )
    # In the top left corner the candidates above and to the left do not exist.
    assert (assignment[:, [0, 1, 2, 3, 6], 0, 0] == 0).all()
    # In the bottom right corner neither do those below and to the right.
    assert (assignment[:, [2, 5, 6, 7, 8], -1, -1] == 0).all()


def test_bounds_are_geometry_not_values():
    """Zero features, which equal the padding, still get equal weights."""
    fine, coarse = torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 3, 3)
    assignment = soft_assign(fine, coarse, 0.1)
    torch.testing.assert_close(assignment[0, :, 2, 2], torch.full((9,), 1 / 9))
    # A corner pixel has four candidates.
    assert assignment[0, :, 0, 0].tolist() == [0, 0, 0, 0, 0.25, 0.25, 0, 0.25, 0.25]


@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_scale_to_zero_is_the_hard_assignment(scale):
    fine, coarse = features(6, 8)
    hard = reference.to_candidates(reference.hard_assignment_matrix(fine, coarse), 6, 8)
    torch.testing.assert_close(soft_assign(fine, coarse, scale), hard, rtol=0, atol=1e-6)


def test_sign_of_the_scale_does_not_matter():
    fine, coarse = features(5, 4)
    torch.testing.assert_close(soft_assign(fine, coarse, -0.2), soft_assign(fine, coarse, 0.2))


def test_gradcheck_to_second_order(bands):
    fine, coarse = features(3, 4, batch=1, channels=2, requires_grad=True)
    scale = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_assign, (fine, coarse, scale))
    assert torch.autograd.gradgradcheck(soft_assign, (fine, coarse, scale))


def test_hard_assignments_have_finite_gradients(bands):
    fine, coarse = features(5, 6, requires_grad=True)
    for value in (0.0, 1e-30, 1e-4):
        scale = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        weighted = soft_assign(fine, coarse, scale) * torch.arange(9).view(9, 1, 1)
        for gradient in torch.autograd.grad(weighted.sum(), (fine, coarse, scale)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-1, 1e-2, 1e-3])
def test_half_precision(dtype, scale, bands):
    fine, coarse = (x.to(dtype) for x in features(8, 10, dtype=torch.float32, channels=128))
    half = soft_assign(fine, coarse, torch.tensor([scale], dtype=dtype))
    exact = soft_assign(fine.double(), coarse.double(), torch.tensor([scale], dtype=dtype).double())
    assert half.dtype == dtype
    assert half.isfinite().all()
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=2e-2)


def test_memory_formats_agree_and_result_is_channels_last(bands):
    fine, coarse = features(6, 8)
    expected = soft_assign(fine, coarse, 0.1)
    for convert in (
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        torch.testing.assert_close(soft_assign(convert(fine), convert(coarse), 0.1), expected)
    assert expected.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("fine", "coarse", "message"),
    [
        ((1, 4, 15, 21), (1, 4, 8, 10), r"\(8, 11\), got \(8, 10\)"),
        ((1, 4, 8, 8), (2, 4, 4, 4), "one batch size and device"),
        ((1, 4, 8, 8), (1, 5, 4, 4), "equal channels and dtype"),
        ((4, 8, 8), (1, 4, 4, 4), r"fine features \(B, C, H, W\)"),
        ((1, 4, 0, 8), (1, 4, 0, 4), "H, W >= 1"),
    ],
)
def test_shapes_that_do_not_fit(fine, coarse, message):
    with pytest.raises(ValueError, match=message):
        soft_assign(torch.zeros(fine), torch.zeros(coarse), 0.1)


def test_dtypes_and_scales_that_do_not_fit():
    fine, coarse = features(4, 4)
    with pytest.raises(ValueError, match="equal channels and dtype, got"):
        soft_assign(fine, coarse.float(), 0.1)
    with pytest.raises(ValueError, match=r"one scale, got a tensor of shape \(3,\)"):
        soft_assign(fine, coarse, torch.ones(3))


@pytest.mark.parametrize("scale", [0.1, torch.ones(1, device="meta")])
def test_device_without_numbers_or_autocast(scale):
    fine, coarse = (x.detach().to("meta").requires_grad_() for x in features(5, 6))
    assignment = soft_assign(fine, coarse, scale)
    assert (assignment.shape, assignment.device.type) == ((2, 9, 5, 6), "meta")
    gradients = torch.autograd.grad(assignment.sum(), (fine, coarse))
    assert [g.shape for g in gradients] == [fine.shape, coarse.shape]


class Blocked(torch.autograd.Function):
    """The identity, which returns no gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_no_gradient_where_the_loss_gives_none(bands):
    fine, coarse = features(5, 7, requires_grad=True)
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    projection = FeatureProjection(
        torch.ones(5).double(), torch.zeros(5).double(), torch.eye(5).double(), 1e-5
    )
    maps = soft_assign_maps(fine, coarse, scale, projection, projection)
    (Blocked.apply(maps).sum() + fine.sum()).backward()
    assert (fine.grad == 1).all()
    assert coarse.grad is None or not coarse.grad.any()
    assert scale.grad is None or not scale.grad.any()
