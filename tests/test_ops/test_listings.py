"""The package computes what the listings of the paper do, away from the border."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from hcformer_mm.models.layers.clustering import ClusteringModule
from hcformer_mm.ops import decode, soft_assign
from hcformer_mm.ops.assignment import SCALE_EPS
from tests.helpers import reference

SIZES = [(8, 8), (10, 14), (16, 6)]
# Listing 1 gives candidates out of bounds similarity 0: pixels with a parent at the border differ.
INSIDE = (..., slice(2, -2), slice(2, -2))


def gradients(output, inputs):
    torch.manual_seed(0)
    weight = torch.randn(output.shape, dtype=output.dtype)
    return torch.autograd.grad((output * weight)[INSIDE].sum(), inputs)


@pytest.mark.parametrize("size", SIZES)
def test_clustering_inside(size):
    torch.manual_seed(0)
    half = [side // 2 for side in size]
    fine = F.normalize(torch.randn(2, 5, *size, dtype=torch.float64), dim=1).requires_grad_()
    coarse = F.normalize(torch.randn(2, 5, *half, dtype=torch.float64), dim=1).requires_grad_()
    scale = torch.tensor([-0.2], dtype=torch.float64, requires_grad=True)
    ours = soft_assign(fine, coarse, scale)
    listing = reference.listing_clustering(fine, coarse, scale.abs() + SCALE_EPS)
    assert listing.shape == (2, 9, *size)
    torch.testing.assert_close(listing[INSIDE], ours[INSIDE], rtol=1e-12, atol=1e-12)
    # At the border the listing gives weight to candidates out of bounds.
    assert (listing[:, 0, 0] > 0).all() and (ours[:, 0, 0] == 0).all()
    inputs = fine, coarse, scale
    torch.testing.assert_close(
        gradients(listing, inputs), gradients(ours, inputs), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("size", SIZES)
def test_decoding(size):
    torch.manual_seed(0)
    half = [side // 2 for side in size]
    fine, coarse = (torch.randn(2, 4, *s, dtype=torch.float64) for s in (size, half))
    assignment = soft_assign(fine, coarse, 1.0).requires_grad_()
    masks = torch.randn(2, 3, *half, dtype=torch.float64, requires_grad=True)
    ours, listing = decode(masks, assignment), reference.listing_decode(masks, assignment)
    torch.testing.assert_close(listing, ours, rtol=1e-12, atol=1e-12)
    inputs = masks, assignment
    torch.testing.assert_close(
        gradients(listing, inputs), gradients(ours, inputs), rtol=1e-10, atol=1e-12
    )


def test_module_inside():
    torch.manual_seed(0)
    module = ClusteringModule(6, 10, embed_channels=8).double()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.rand_like(parameter)
    fine = torch.randn(2, 6, 8, 12, dtype=torch.float64, requires_grad=True)
    coarse = torch.randn(2, 10, 4, 6, dtype=torch.float64, requires_grad=True)
    twin = deepcopy(module)
    twin.scale.data += SCALE_EPS
    ours, listing = module(fine, coarse), reference.listing_module(twin, fine, coarse)
    torch.testing.assert_close(listing[INSIDE], ours[INSIDE], rtol=1e-10, atol=1e-12)
    found = gradients(listing, (fine, coarse, *twin.parameters()))
    expected = gradients(ours, (fine, coarse, *module.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
