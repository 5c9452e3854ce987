"""Decoding at points equals sampling the decoded masks."""

import pytest
import torch

from hcformer_mm.ops import decode_points
from tests.helpers import reference
from tests.test_ops.test_decoding import random_assignment

pytestmark = pytest.mark.usefixtures("device")

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (4, 6), (5, 7), (6, 5), (3, 16), (13, 2)]


def hierarchy(height, width, levels, batch=2):
    """Assignments, finest first, masks of the coarsest cells, and points in and around the map."""
    assignments = []
    for _ in range(levels):
        assignments.append(random_assignment(height, width, batch).requires_grad_())
        height, width = (height + 1) // 2, (width + 1) // 2
    masks = torch.randn(batch, 3, height, width, dtype=torch.float64).requires_grad_()
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    anywhere = torch.rand(batch, 40, 2, dtype=torch.float64) * 1.4 - 0.2
    return masks, assignments, torch.cat((corners.expand(batch, -1, -1), anywhere), dim=1)


def sample(maps, points):
    """Bilinear sampling as a sum over all pixels; zero outside."""
    x_share, y_share = (
        (1 - (points[..., axis, None] * side - 0.5 - torch.arange(side)).abs()).clamp_min(0)
        for axis, side in ((0, maps.shape[3]), (1, maps.shape[2]))
    )
    return torch.einsum("bpy,bpx,bcyx->bcp", y_share, x_share, maps)


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_equals_sampling_the_decoded_masks_with_gradients(size, levels):
    masks, assignments, points = hierarchy(*size, levels)
    values = decode_points(masks, assignments, points)
    expected = sample(reference.decode_hierarchy(masks, assignments), points)
    inputs = (masks, *assignments)
    reference.assert_same_with_gradients(values, expected, inputs, 1e-10, 1e-9, 1e-9)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_gradcheck(levels):
    masks, assignments, points = hierarchy(3, 4, levels, batch=1)
    points = points[:, ::8]

    def at_points(masks, *assignments):
        return decode_points(masks, assignments, points)

    assert torch.autograd.gradcheck(at_points, (masks, *assignments))


def test_candidates_out_of_bounds_do_not_count():
    masks, assignments, points = hierarchy(5, 7, 1)
    full = torch.ones_like(assignments[0])
    allowed = reference.to_candidates(reference.neighbors(5, 7).double().expand(2, -1, -1), 5, 7)
    values = decode_points(masks, [full], points)
    torch.testing.assert_close(values, decode_points(masks, [full * allowed], points))
    assert not torch.equal(full, full * allowed)


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize(
    ("dtype", "other", "of_points"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.float64),
    ],
)
def test_result_has_the_wider_dtype(levels, dtype, other, of_points):
    masks, assignments, points = hierarchy(6, 8, levels)
    values = decode_points(
        masks.detach().to(dtype), [a.detach().to(other) for a in assignments], points.to(of_points)
    )
    assert values.dtype == (torch.float32 if levels else dtype)
    exact = decode_points(masks, assignments, points)
    torch.testing.assert_close(values.double(), exact, rtol=0, atol=2e-2)


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_move_points(levels, dtype):
    """On a map of 256 pixels, bfloat16 places a point to one pixel only."""
    torch.manual_seed(0)
    sides = [256 >> level for level in range(levels + 1)]
    assignments = [torch.randn(1, 9, s, s).softmax(dim=1).to(dtype) for s in sides[:-1]]
    masks = torch.randn(1, 3, sides[-1], sides[-1]).to(dtype)
    points = torch.rand(1, 500, 2)
    values = decode_points(masks, assignments, points)
    assert values.dtype == dtype
    exact = decode_points(masks.double(), [a.double() for a in assignments], points.double())
    # Every level rounds its values, and the last one its weights as well.
    atol = (levels + 1) * torch.finfo(dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(values.double(), exact, rtol=0, atol=atol)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_points_beyond_reason_spoil_themselves_alone(value):
    masks, assignments, points = hierarchy(5, 7, 1)
    expected = decode_points(masks, assignments, points)
    points[1, 9, 0] = value
    values = decode_points(masks, assignments, points)
    others = torch.arange(points.shape[1]) != 9
    torch.testing.assert_close(values[..., others], expected[..., others])
    torch.testing.assert_close(values[0], expected[0])
    wanted = torch.full((3,), 0.0 if value == 1e30 else torch.nan, dtype=torch.float64)
    torch.testing.assert_close(values[1, :, 9], wanted, equal_nan=True)


def test_no_masks_and_no_points():
    masks, assignments, points = hierarchy(6, 8, 2)
    assert decode_points(masks[:, :0], assignments, points).shape == (2, 0, 44)
    assert decode_points(masks, assignments, points[:, :0]).shape == (2, 3, 0)


@pytest.mark.parametrize("shape", [(2, 5), (1, 5, 2), (2, 5, 3)])
def test_refuses_points_of_another_shape(shape):
    masks, assignments, _ = hierarchy(6, 8, 1)
    with pytest.raises(ValueError, match=r"expected points \(B, P, 2\) of 2 images, got"):
        decode_points(masks, assignments, torch.rand(shape))


def test_refuses_levels_that_do_not_fit():
    masks, assignments, points = hierarchy(6, 8, 2)
    with pytest.raises(ValueError, match="finest first"):
        decode_points(masks, assignments[::-1], points)
    with pytest.raises(ValueError, match="expected masks of"):
        decode_points(masks[..., :1], assignments, points)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_device_without_numbers(levels):
    masks, assignments, points = hierarchy(6, 8, levels)
    inputs = [x.detach().to("meta").requires_grad_() for x in (masks, *assignments)]
    values = decode_points(inputs[0], inputs[1:], points.to("meta"))
    assert (values.shape, values.device.type) == ((2, 3, 44), "meta")
    gradients = torch.autograd.grad(values.sum(), inputs)
    assert [g.shape for g in gradients] == [x.shape for x in inputs]
