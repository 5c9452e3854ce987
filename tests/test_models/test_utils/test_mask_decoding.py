import pytest
import torch

from hcformer_mm.models.utils.mask_decoding import check_mask_space, decode_mask_logits
from hcformer_mm.ops import decode_hierarchy
from tests.helpers import reference
from tests.test_ops.test_decoding import coarse_maps, random_assignment

ASSIGNMENTS = [random_assignment(7, 10), random_assignment(4, 5)]


def test_logit_space_decodes_logits():
    logits = coarse_maps(4, 5)
    decoded = decode_mask_logits(logits, ASSIGNMENTS, "logit")
    assert torch.equal(decoded, decode_hierarchy(logits, ASSIGNMENTS))


def test_probability_space_is_the_equation_to_the_letter():
    logits = coarse_maps(4, 5).requires_grad_()
    decoded = decode_mask_logits(logits, ASSIGNMENTS, "probability")
    expected = reference.probability_logits(logits, ASSIGNMENTS)
    reference.assert_same_with_gradients(decoded, expected, [logits], *3 * [1e-9])


def test_probability_space_is_exact_where_masks_are_certain():
    """In float32 the probability of a logit of 30 is 1; its log-odds still come out as 30."""
    assignments = [a.float() for a in ASSIGNMENTS]
    for logit in (30.0, -30.0):
        logits = torch.full((2, 3, 2, 3), logit)
        decoded = decode_mask_logits(logits, assignments, "probability")
        torch.testing.assert_close(decoded, torch.full_like(decoded, logit))


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
