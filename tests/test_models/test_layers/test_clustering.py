from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional as F

from hcformer_mm.models import ClusteringModule
from hcformer_mm.ops import decode, decode_points, hard_assignment
from tests.helpers import reference
from tests.helpers.devices import on_each_device

VECTORS = Path(__file__).parents[2] / "data" / "clustering_vectors.npz"


def module(dtype=torch.float32, fine=6, coarse=10, **options):
    torch.manual_seed(0)
    return ClusteringModule(fine, coarse, embed_channels=8, **options).to(dtype)


@on_each_device
def test_equals_the_released_vectors(device):
    """Weights, inputs and outputs of the released module, in float64."""
    vectors = {name: torch.from_numpy(array).to(device) for name, array in np.load(VECTORS).items()}
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


def plainly(clustering, fine, coarse):
    """The module, operation by operation."""

    def embed(x, norm, projection):
        mean = x.mean(dim=1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=1, keepdim=True)
        x = (x - mean) / (variance + norm.eps).sqrt()
        x = F.conv2d(x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1), projection.weight)
        return x / x.norm(dim=1, keepdim=True)

    matrix = reference.assignment_matrix(
        embed(fine, clustering.fine_norm, clustering.fine_proj),
        embed(coarse, clustering.coarse_norm, clustering.coarse_proj),
        clustering.scale,
    )
    return reference.to_candidates(matrix, *fine.shape[-2:])


def random_module_and_maps(size, requires_grad=True):
    clustering = module(torch.float64)
    for norm, eps in ((clustering.fine_norm, 0.01), (clustering.coarse_norm, 0.03)):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        norm.eps = eps
    half = [(side + 1) // 2 for side in size]
    maps = torch.randn(2, 6, *size).double(), torch.randn(2, 10, *half).double()
    return clustering, *(x.requires_grad_(requires_grad) for x in maps)


def work_on(numbers, monkeypatch):
    """Set the number of elements per band."""
    for name in ("BAND_NUMEL", "BACKWARD_BAND_NUMEL"):
        monkeypatch.setattr(f"hcformer_mm.ops.bands.{name}", numbers)


@on_each_device
@pytest.mark.parametrize("cached", [1, 100, 2**18])
@pytest.mark.parametrize("size", [(1, 1), (5, 8), (8, 5), (7, 13)])
def test_is_norm_projection_and_assignment(size, cached, monkeypatch):
    """Whatever the number of bands; in training and without gradients."""
    work_on(cached, monkeypatch)
    clustering, fine, coarse = random_module_and_maps(size)
    assignment, expected = clustering(fine, coarse), plainly(clustering, fine, coarse)
    with torch.no_grad():
        torch.testing.assert_close(clustering(fine, coarse), expected, rtol=1e-9, atol=1e-9)
    inputs = [fine, coarse, *clustering.parameters()]
    reference.assert_same_with_gradients(assignment, expected, inputs, 1e-9, 1e-8, 1e-8)


@on_each_device
@pytest.mark.parametrize("cached", [1, 2**18])
def test_gradient_of_the_gradient(cached, monkeypatch):
    work_on(cached, monkeypatch)
    clustering, fine, coarse = random_module_and_maps((3, 4))
    assert torch.autograd.gradgradcheck(clustering, (fine, coarse))


@on_each_device
@pytest.mark.parametrize(
    "frozen", ["fine", "coarse", "scale", "norms", "projections", "all weights"]
)
def test_what_is_frozen_gets_no_gradient(frozen, monkeypatch):
    """A frozen stem or a frozen clustering module."""
    work_on(1, monkeypatch)
    clustering, fine, coarse = random_module_and_maps((5, 8))
    inputs = {"fine": fine, "coarse": coarse, **dict(clustering.named_parameters())}
    weight = torch.randn(2, 9, 5, 8).double()
    whole = torch.autograd.grad((clustering(fine, coarse) * weight).sum(), list(inputs.values()))
    parts = {"norms": "norm", "projections": "proj", "all weights": "."}
    for name, x in inputs.items():
        x.requires_grad_(not (name == frozen or parts.get(frozen, "nothing") in name))
    (clustering(fine, coarse) * weight).sum().backward()
    for (name, x), expected in zip(inputs.items(), whole, strict=True):
        if x.requires_grad:
            torch.testing.assert_close(x.grad, expected, msg=name)
        else:
            assert x.grad is None, name
    assert any(not x.requires_grad for x in inputs.values())


def test_training_keeps_little(monkeypatch):
    """The backward pass keeps features of cells and the assignment, but none of pixels."""
    work_on(2**12, monkeypatch)
    clustering = ClusteringModule(64, 128, embed_channels=16)
    fine = torch.randn(1, 64, 32, 32).requires_grad_()
    coarse = torch.randn(1, 128, 16, 16).requires_grad_()
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        clustering(fine, coarse)
    inputs = sum(x.untyped_storage().nbytes() for x in (fine, coarse, *clustering.parameters()))
    cells, lengths, assignment = 4 * 16 * 18 * 18, 4 * 16 * 16, 4 * 9 * 32 * 32
    assert sum(kept.values()) - inputs <= cells + lengths + assignment


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


@on_each_device
@pytest.mark.parametrize("cached", [1, 2**18])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_constant_maps_in_a_model_of_half_precision(dtype, cached, monkeypatch):
    """Their features are 0, and the least length must not be."""
    work_on(cached, monkeypatch)
    clustering = module(dtype)
    assignment = clustering(torch.ones(1, 6, 4, 4).to(dtype), torch.ones(1, 10, 2, 2).to(dtype))
    torch.testing.assert_close(assignment.sum(1), torch.ones(1, 4, 4).to(dtype))
    for gradient in torch.autograd.grad(assignment[:, 4].sum(), list(clustering.parameters())):
        assert gradient.isfinite().all()


def test_channels_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(B, 10, H, W\), got \(1, 9, 2, 2\)"):
        module()(torch.randn(1, 6, 4, 4), torch.randn(1, 9, 2, 2))


@pytest.mark.parametrize("cached", [1, 2**18])
def test_transforms_of_functions(cached, monkeypatch):
    """Gradients of parameters by torch.func, also of second order and for every image."""
    work_on(cached, monkeypatch)
    clustering, fine, coarse = random_module_and_maps((5, 6), requires_grad=False)
    parameters = dict(clustering.named_parameters())

    def loss(parameters, fine, coarse):
        return (functional_call(clustering, parameters, (fine, coarse)) ** 2).sum()

    def roughness(parameters):
        found = torch.func.grad(loss)(parameters, fine, coarse)
        return sum((gradient**2).sum() for gradient in found.values())

    leaves = list(parameters.values())
    gradients = torch.autograd.grad(loss(parameters, fine, coarse), leaves, create_graph=True)
    found = torch.func.grad(loss)(parameters, fine, coarse)
    torch.testing.assert_close(list(found.values()), list(gradients))
    second = torch.autograd.grad(sum((g**2).sum() for g in gradients), leaves)
    found = torch.func.grad(roughness)(parameters)
    torch.testing.assert_close(list(found.values()), list(second))

    images = fine[:, None], coarse[:, None]
    of_images = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, *images)
    for gradient, name in zip(gradients, parameters, strict=True):
        torch.testing.assert_close(of_images[name].sum(0), gradient)


@pytest.mark.parametrize("cached", [1, 2**18])
def test_device_without_numbers_or_autocast(cached, monkeypatch):
    work_on(cached, monkeypatch)
    clustering = module().to("meta")
    fine, coarse = (torch.empty(2, *x, device="meta") for x in ((6, 7, 8), (10, 4, 4)))
    assignment = clustering(fine.requires_grad_(), coarse.requires_grad_())
    assert assignment.shape == (2, 9, 7, 8)
    inputs = [fine, coarse, *clustering.parameters()]
    gradients = torch.autograd.grad(decode(coarse, assignment).sum(), inputs)
    assert [(g.shape, g.device.type) for g in gradients] == [(x.shape, "meta") for x in inputs]


def test_fake_tensors_of_a_gpu():
    """No tensor on the CPU meets them."""
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        clustering = ClusteringModule(6, 10)
        coarse = torch.randn(2, 10, 4, 4)
        assignment = clustering(torch.randn(2, 6, 7, 8), coarse)
        values = decode_points(coarse, [assignment], torch.rand(2, 30, 2))
        hard = hard_assignment(assignment)
    assert all(x.device.type == "cuda" for x in (assignment, values, hard))
    assert (values.shape, hard.shape) == ((2, 10, 30), (2, 7, 8))
