from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hcformer_mm.models import ClusteringModule
from hcformer_mm.ops import decode, soft_assign

VECTORS = Path(__file__).parents[1] / "data" / "clustering_vectors.npz"


def module(dtype=torch.float32, fine=6, coarse=10, **options):
    torch.manual_seed(0)
    return ClusteringModule(fine, coarse, embed_channels=8, **options).to(dtype)


def test_equals_the_released_vectors():
    """Weights, inputs and outputs of the released module, in float64."""
    vectors = {name: torch.from_numpy(array) for name, array in np.load(VECTORS).items()}
    clustering = module(torch.float64)
    clustering.load_state_dict(
        {
            "fine_norm.weight": vectors["fine_norm.weight"],
            "fine_norm.bias": vectors["fine_norm.bias"],
            "coarse_norm.weight": vectors["coarse_norm.weight"],
            "coarse_norm.bias": vectors["coarse_norm.bias"],
            "fine_proj.weight": vectors["fine_emb.weight"],
            "coarse_proj.weight": vectors["coarse_emb.weight"],
            "scale": vectors["temp"],
        }
    )
    assignment = clustering(vectors["fine"], vectors["coarse"])
    torch.testing.assert_close(assignment, vectors["assignment"], rtol=0, atol=1e-10)
    masks = decode(vectors["coarse_masks"], vectors["assignment"])
    torch.testing.assert_close(masks, vectors["decoded_masks"], rtol=0, atol=1e-10)


def test_is_norm_projection_and_assignment():
    clustering = module(torch.float64)
    fine, coarse = torch.randn(2, 6, 5, 8).double(), torch.randn(2, 10, 3, 4).double()

    def embed(x, norm, projection):
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), x.shape[1:2], norm.weight, norm.bias, norm.eps
        ).permute(0, 3, 1, 2)
        x = F.conv2d(x, projection.weight)
        return x / x.norm(dim=1, keepdim=True)

    expected = soft_assign(
        embed(fine, clustering.fine_norm, clustering.fine_proj),
        embed(coarse, clustering.coarse_norm, clustering.coarse_proj),
        clustering.scale,
    )
    torch.testing.assert_close(clustering(fine, coarse), expected)


def test_parameters():
    clustering = ClusteringModule(64, 128, init_scale=0.3)
    assert {name: tuple(p.shape) for name, p in clustering.named_parameters()} == {
        "scale": (1,),
        "fine_norm.weight": (64,),
        "fine_norm.bias": (64,),
        "coarse_norm.weight": (128,),
        "coarse_norm.bias": (128,),
        "fine_proj.weight": (128, 64, 1, 1),
        "coarse_proj.weight": (128, 128, 1, 1),
    }
    assert clustering.scale.item() == pytest.approx(0.3)


def test_every_parameter_gets_a_gradient():
    clustering = module()
    (clustering(torch.randn(1, 6, 4, 4), torch.randn(1, 10, 2, 2)) ** 2).sum().backward()
    for name, parameter in clustering.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1e-1, 1e-3])
def test_autocast(dtype, scale):
    clustering = ClusteringModule(64, 96, init_scale=scale)
    fine, coarse = torch.randn(1, 64, 8, 8).to(dtype), torch.randn(1, 96, 4, 4).to(dtype)
    exact = clustering.double()(fine.double(), coarse.double())
    with torch.autocast("cpu", dtype=dtype):
        half = clustering.float()(fine, coarse)
    assert half.isfinite().all()
    torch.testing.assert_close(half.double(), exact, rtol=0, atol=2e-2)


def test_channels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(B, 10, H, W\), got \(1, 9, 2, 2\)"):
        module()(torch.randn(1, 6, 4, 4), torch.randn(1, 9, 2, 2))
