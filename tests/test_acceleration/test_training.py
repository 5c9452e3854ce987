"""Models that were prepared for training learn what they learned, and keep less for it."""

from copy import deepcopy

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmengine.model import BaseModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hcformer_mm.acceleration.conv_bn_fusion import fuse_frozen_bn
from hcformer_mm.acceleration.training import speed_up_training
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from tests.helpers.models import backbone, resnet
from tests.test_acceleration.test_inference import (
    FOLDABLE,
    MISLEADING,
    READERS,
    Net,
    Regions,
    conv,
    norm,
    randomize,
    read_by,
)


class Frozen(nn.Module):
    """A model whose BatchNorms training leaves as they are, as ``norm_eval`` of the hosts does."""

    def __init__(self, model):
        super().__init__()
        self.model = randomize(model)
        for module in self.norms():
            module.requires_grad_(False)
        self.train()

    def norms(self):
        return [m for m in self.modules() if isinstance(m, _BatchNorm)]

    def train(self, mode=True):
        super().train(mode)
        for module in self.norms():
            module.eval()
        return self

    def forward(self, x):
        return self.model(x)


def frozen_backbone(**options):
    return Frozen(backbone(resnet(norm_cfg=dict(type="BN", requires_grad=False), **options)))


def overridden(model):
    """Modules whose forward is another."""
    return [module for module in model.modules() if "forward" in vars(module)]


def tensors(outputs):
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [*outputs, *getattr(outputs, "assignments", [])]


def gradients(model, image):
    """What a model says of an image, and the gradients of parameters and image."""
    image = image.clone().requires_grad_()
    outputs = tensors(model(image))
    total = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in outputs)
    inputs = [image, *(p for p in model.parameters() if p.requires_grad)]
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [*outputs, *(x for x in found if x is not None)]


def assert_same(model, expected, image):
    found = gradients(model, image)
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9 * float(1 + y.abs().max()))


@pytest.mark.parametrize("options", [{}, dict(depth=50), dict(deep_stem=True)])
def test_gradients_stay(options):
    model = frozen_backbone(**options)
    plain = deepcopy(model).double()
    names, parameters = list(model.state_dict()), list(model.parameters())
    speed_up_training(model)
    deformable = [m for m in model.modules() if isinstance(m, DeformableDownsampling)]
    assert len(overridden(model)) == 2 * len(model.norms()) and set(deformable) < set(
        overridden(model)
    )
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.training and all(p.is_contiguous() for p in model.parameters())
    image = torch.randn(2, 3, 64, 96).double()
    assert_same(model.double(), gradients(plain, image), image)
    assert model(image)[0].is_contiguous(memory_format=torch.channels_last)
    # Now in evaluation, too.
    outputs, expected = model.eval()(image), plain.eval()(image)
    for x, y in zip(tensors(outputs), tensors(expected), strict=True):
        torch.testing.assert_close(x, y)


def test_weights_may_change():
    """Checkpoints are loaded, averages exchanged, and steps taken, on prepared models too."""
    model = frozen_backbone()
    speed_up_training(model)
    copy = deepcopy(model)  # as for an average of weights
    torch.manual_seed(1)
    for p in model.state_dict().values():
        if p.is_floating_point():
            p.copy_(p + 0.1 * torch.rand_like(p))
    plain = frozen_backbone()
    plain.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 64).double()
    assert_same(model.double(), gradients(plain.double(), image), image)
    assert_same(copy.double(), gradients(frozen_backbone().double(), image), image)


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
    speed_up_training(model)
    assert kept(model) < 0.8 * before


def test_undo():
    model = frozen_backbone()
    image = torch.randn(1, 3, 64, 64)
    expected = gradients(model, image)
    undo = speed_up_training(model)
    assert overridden(model)
    undo()
    assert not overridden(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    for x, y in zip(gradients(model, image), expected, strict=True):
        assert torch.equal(x, y)


def test_one_without_the_other():
    model = frozen_backbone()
    speed_up_training(model, fuse_bn=False)
    assert not overridden(model)
    assert model(torch.randn(1, 3, 64, 64))[0].is_contiguous(memory_format=torch.channels_last)
    model = frozen_backbone()
    speed_up_training(model, channels_last=False)
    assert overridden(model)
    assert model(torch.randn(1, 3, 64, 64))[0].is_contiguous()


@pytest.mark.parametrize("frozen", ["statistics", "factors", "nothing"])
def test_norms_that_learn_are_left_alone(frozen):
    options = dict(norm_eval=frozen == "statistics")
    model = backbone(
        dict(type="mmdet.ResNet", depth=18, out_indices=(0, 1, 2, 3), **options)
        | dict(norm_cfg=dict(type="BN", requires_grad=frozen != "factors"))
    )
    model.train()
    fuse_frozen_bn(model)
    assert not overridden(model)
    assert model.training


UNFIT = {
    **{name: make for name, make in MISLEADING.items() if name != "batch-statistics"},
    **{name: lambda name=name: read_by(name) for name in READERS},
    "dcn": FOLDABLE["dcn"],
    "dropout-module": lambda: nn.Sequential(conv(), nn.Dropout2d(), norm()),
    "padding-of-its-own": lambda: nn.Sequential(Conv2dAdaptivePadding(3, 3, 2, stride=2), norm()),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_fused_is_left_alone(name):
    model = Frozen(UNFIT[name]())
    fuse_frozen_bn(model)
    assert not overridden(model)


@pytest.mark.parametrize("name", [name for name in FOLDABLE if name != "dcn"])
def test_what_can_be_fused(name):
    model = Frozen(FOLDABLE[name]())
    plain = deepcopy(model).double()
    fuse_frozen_bn(model)
    assert overridden(model)
    image = torch.randn(2, 3, 16, 16).double()
    assert_same(model.double(), gradients(plain, image), image)


def test_what_fails_is_left_out():
    model = Frozen(
        Net(
            lambda m, x: m.last(m.norm(m.conv(x)) * torch.rand(1)),
            conv=conv(),
            norm=norm(),
            last=conv(),
        )
    )
    with pytest.raises(RuntimeError, match="the same results after fusing BatchNorm"):
        fuse_frozen_bn(model)
    assert not overridden(model) and model.training
    with pytest.warns(UserWarning, match="frozen BatchNorm is not fused: expected Frozen with"):
        speed_up_training(model)


class Bare(BaseModel):
    """A model that is called with data, as MMEngine does, and has no backbone."""

    def __init__(self):
        super().__init__()
        self.conv = conv()

    def forward(self, inputs, data_samples=None, mode="tensor"):
        return dict(loss=self.conv(inputs).mean())


def test_models_without_a_backbone():
    model = Bare()
    with pytest.warns(UserWarning, match="not channels-last: expected a model with a backbone"):
        speed_up_training(model)
    assert model(torch.randn(1, 3, 8, 8))["loss"].requires_grad


def test_backbones_may_be_called_by_keyword():
    model = Net(lambda m, x: m.backbone(input=x), backbone=conv())
    image = torch.randn(1, 3, 8, 8)
    expected = model(image)
    speed_up_training(model)
    assert torch.equal(model(image), expected)


def test_modes_are_kept():
    """Of parts that somebody has frozen by hand, too; and norms must stay frozen."""
    model = frozen_backbone()
    part = next(m for m in model.modules() if isinstance(m, nn.ReLU))
    part.eval()
    speed_up_training(model)
    assert model.training and not part.training
    model.norms()[0].train()
    with pytest.raises(RuntimeError, match="stays in evaluation mode"):
        model(torch.randn(1, 3, 64, 64))


def test_what_layers_keep_of_the_first_run():
    """A table that is made once can be used in training."""

    def run(module, x):
        if not hasattr(module, "table"):
            module.table = torch.ones_like(x)
        return module.norm(module.conv(x[..., :8, :8] * module.table[..., :8, :8]))

    model = Frozen(Net(run, conv=conv(), norm=norm()))
    speed_up_training(model)
    model(torch.randn(1, 3, 16, 16)).sum().backward()
    assert model.model.conv.weight.grad is not None


def test_layers_that_misread_memory_get_what_they_got():
    model = Frozen(Regions())
    image = torch.randn(1, 3, 16, 16)
    expected = model(image)
    speed_up_training(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
