"""Models prepared for training learn what they learned, and keep less for it."""

from copy import deepcopy

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from hcformer_mm.acceleration.training import prepare_for_training
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from tests.helpers.conv_bn import (
    Frozen,
    Net,
    Regions,
    assert_same_gradients,
    conv,
    gradients,
    maps,
    net,
    norms,
    overridden,
)
from tests.helpers.devices import assert_same, on_each_device
from tests.helpers.models import backbone, resnet


def frozen_backbone(**options):
    return Frozen(backbone(resnet(norm_cfg=dict(type="BN", requires_grad=False), **options)))


@on_each_device
@pytest.mark.parametrize("options", [{}, dict(depth=50), dict(deep_stem=True)])
def test_gradients_stay(options):
    model = frozen_backbone(**options)
    plain = deepcopy(model).double()
    names, parameters = list(model.state_dict()), list(model.parameters())
    prepare_for_training(model)
    deformable = {m for m in model.modules() if isinstance(m, DeformableDownsampling)}
    assert len(overridden(model)) == 2 * len(norms(model))
    assert deformable < set(overridden(model))
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.training and all(p.is_contiguous() for p in model.parameters())
    image = torch.randn(2, 3, 64, 96).double()
    assert_same_gradients(model.double(), gradients(plain, image), image)
    assert model(image)[0].is_contiguous(memory_format=torch.channels_last)
    outputs, expected = model.eval()(image), plain.eval()(image)
    for x, y in zip(maps(outputs), maps(expected), strict=True):
        torch.testing.assert_close(x, y)


@on_each_device
def test_weights_may_change():
    """Prepared models load checkpoints, exchange averages, and learn."""
    model = frozen_backbone()
    prepare_for_training(model)
    copy = deepcopy(model)  # as for an average of weights
    torch.manual_seed(1)
    for p in model.state_dict().values():
        if p.is_floating_point():
            p.copy_(p + 0.1 * torch.rand_like(p))
    plain = frozen_backbone()
    plain.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 64).double()
    assert_same_gradients(model.double(), gradients(plain.double(), image), image)
    assert_same_gradients(copy.double(), gradients(frozen_backbone().double(), image), image)


def test_less_is_kept():
    def kept(model):
        sizes = {}

        def pack(x):
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            outputs = model(torch.randn(1, 3, 256, 256))
        del outputs
        return sum(sizes.values())

    model = frozen_backbone(depth=50)
    before = kept(model)
    prepare_for_training(model)
    assert kept(model) < 0.8 * before


@on_each_device
def test_undo():
    model = frozen_backbone()
    image = torch.randn(1, 3, 64, 64)
    expected = gradients(model, image)
    undo = prepare_for_training(model)
    assert overridden(model)
    undo()
    assert not overridden(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    for x, y in zip(gradients(model, image), expected, strict=True):
        assert_same(x, y)


@pytest.mark.parametrize("only", ["fuse_bn", "channels_last"])
def test_one_without_the_other(only):
    model = frozen_backbone()
    prepare_for_training(model, **{"fuse_bn": False, "channels_last": False, only: True})
    assert bool(overridden(model)) == (only == "fuse_bn")
    layout = torch.channels_last if only == "channels_last" else torch.contiguous_format
    assert model(torch.randn(1, 3, 64, 64))[0].is_contiguous(memory_format=layout)


class Bare(BaseModel):
    """A model that is called with data, as MMEngine does, and has no backbone."""

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return dict(loss=self.conv(inputs).mean())


def test_models_that_cannot_be_prepared():
    model = Bare()
    with pytest.warns(UserWarning, match="not channels-last: expected a model with a backbone"):
        prepare_for_training(model)
    assert model(torch.randn(1, 3, 8, 8))["loss"].requires_grad
    model = Frozen(net(lambda m, x: m.last(m.norm(m.conv(x)) * torch.rand(1))))
    with pytest.warns(UserWarning, match="frozen BatchNorm is not fused: expected Frozen to give"):
        prepare_for_training(model)


def test_backbones_may_be_called_by_keyword():
    model = Net(lambda m, x: m.backbone(input=x), backbone=conv())
    image = torch.randn(1, 3, 8, 8)
    expected = model(image)
    prepare_for_training(model)
    assert torch.equal(model(image), expected)


def test_modes_are_kept():
    """Even of parts that are frozen by hand; and a fused BatchNorm must stay frozen."""
    model = frozen_backbone()
    part = next(m for m in model.modules() if isinstance(m, nn.ReLU))
    part.eval()
    prepare_for_training(model)
    assert model.training and not part.training
    norms(model)[0].train()
    with pytest.raises(RuntimeError, match="stays in evaluation mode"):
        model(torch.randn(1, 3, 64, 64))


def test_layers_that_misread_memory_get_what_they_got():
    model = Frozen(Regions())
    image = torch.randn(1, 3, 16, 16)
    expected = model(image)
    prepare_for_training(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
