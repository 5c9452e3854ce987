import pytest
import torch
from mmcv.ops import point_sample

from hcformer_mm.models.utils.mask_decoding import (
    check_mask_space,
    decode_class_logits,
    decode_mask_logits,
    full_precision,
    mask_logits_at,
)
from hcformer_mm.ops import decode_hierarchy
from tests.helpers import reference
from tests.test_ops.test_decoding import coarse_maps, random_assignment

pytestmark = pytest.mark.usefixtures("device")


def assignments_of_two_levels():
    return [random_assignment(7, 10), random_assignment(4, 5)]


def test_logit_space_decodes_logits():
    assignments = assignments_of_two_levels()
    logits = coarse_maps(4, 5)
    decoded = decode_mask_logits(logits, assignments, "logit")
    assert torch.equal(decoded, decode_hierarchy(logits, assignments))


def test_probability_space_is_the_equation_to_the_letter():
    assignments = assignments_of_two_levels()
    logits = coarse_maps(4, 5).requires_grad_()
    decoded = decode_mask_logits(logits, assignments, "probability")
    expected = reference.probability_logits(logits, assignments)
    reference.assert_same_with_gradients(decoded, expected, [logits], *3 * [1e-9])


def test_probability_space_is_exact_where_masks_are_certain():
    """In float32 the probability of a logit of 30 is 1; its log-odds still come out as 30."""
    assignments = [a.float() for a in assignments_of_two_levels()]
    for logit in (30.0, -30.0):
        logits = torch.full((2, 3, 2, 3), logit)
        decoded = decode_mask_logits(logits, assignments, "probability")
        torch.testing.assert_close(decoded, torch.full_like(decoded, logit))
    logits = torch.full((2, 3, 2, 3), -500.0, dtype=torch.float64)
    decoded = decode_mask_logits(logits, assignments_of_two_levels(), "probability")
    torch.testing.assert_close(decoded, torch.full_like(decoded, -500.0))


def test_probability_space_without_levels_is_the_identity():
    logits = coarse_maps(4, 5)
    assert decode_mask_logits(logits, [], "probability") is logits


def test_half_precision_masks_are_finite():
    logits = torch.tensor([[[[60.0]], [[-60.0]]]], dtype=torch.float16)
    assignment = torch.zeros(1, 9, 2, 2, dtype=torch.float16)
    assignment[:, 4] = 1
    decoded = decode_mask_logits(logits, [assignment], "probability")
    torch.testing.assert_close(decoded[0, :, 0, 0], torch.tensor([60.0, -60.0]))


def test_unknown_space():
    with pytest.raises(ValueError, match=r"'logit', 'probability'.*got 'sigmoid'"):
        check_mask_space("sigmoid")


@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("space", ["logit", "probability"])
def test_masks_at_points_are_those_of_decoded_masks(space, levels):
    """Logits are interpolated in both spaces."""
    assignments = assignments_of_two_levels()[:levels]
    logits = 3 * coarse_maps(*[(14, 20), (7, 10), (4, 5)][levels])
    points = torch.rand(2, 31, 2, dtype=logits.dtype)
    found = mask_logits_at(logits, assignments, points, space)
    decoded = decode_mask_logits(logits, assignments, space)
    torch.testing.assert_close(found, point_sample(decoded, points))


def test_a_single_class_is_a_mask():
    """Its softmax would be 1 everywhere."""
    assignments = assignments_of_two_levels()
    logits = coarse_maps(4, 5)[:, :1]
    decoded = decode_class_logits(logits, assignments, "probability")
    assert torch.equal(decoded, decode_mask_logits(logits, assignments, "probability"))
    assert decoded.std() > 0.1


@pytest.mark.parametrize(
    ("dtype", "full"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_full_precision(dtype, full):
    assert full_precision(torch.ones(2, dtype=dtype)).dtype == full
