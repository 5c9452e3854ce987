"""Small networks of convolutions and BatchNorms that can, and cannot, be fused."""

import torch
from mmcv.cnn import ConvModule, ConvWS2d
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling


class Net(nn.Module):
    """Layers, in the order of their names, and a function that runs them."""

    def __init__(self, run, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


class RectifiedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class Regions(nn.Module):
    """RoIAlign, which reads any memory as contiguous, after a convolution and a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.align = RoIAlign(4)

    def forward(self, x):
        return self.align(self.norm(self.conv(x)), x.new_tensor([[0, 1, 1, 9, 9]]))


def conv():
    return nn.Conv2d(3, 3, 3, padding=1)


def norm(**options):
    return nn.BatchNorm2d(3, **options)


def net(run):
    """A network of three layers: ``conv``, ``norm`` and, after them, ``last``."""
    return Net(run, conv=conv(), norm=norm(), last=conv())


def norms(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def randomize(model):
    """Give every BatchNorm its own statistics and factors, and let deformable layers deform."""
    torch.manual_seed(0)
    for module in norms(model):
        if module.affine:
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0.0, 0.1)
        if module.track_running_stats:
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0.0, 0.1)
    for module in model.modules():
        if isinstance(module, DeformableDownsampling):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
    model.eval()  # which returns None in mmdet's ResNet
    return model


class Frozen(nn.Module):
    """A model whose BatchNorms stay as they are in training, as ``norm_eval`` makes them."""

    def __init__(self, model):
        super().__init__()
        self.model = randomize(model)
        for module in norms(self):
            module.requires_grad_(False)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        for module in norms(self):
            module.eval()
        return self

    def forward(self, x):
        return self.model(x)


def overridden(model):
    """Modules with a forward of their own, which is how frozen BatchNorm is fused."""
    return [module for module in model.modules() if "forward" in vars(module)]


def maps(outputs):
    """Feature maps and assignments of a backbone, or the one map of a network."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [*outputs, *getattr(outputs, "assignments", [])]


def gradients(model, image):
    """The maps that a model returns, and the gradients of image and parameters."""
    image = image.clone().requires_grad_()
    outputs = maps(model(image))
    total = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in outputs)
    inputs = [image, *(p for p in model.parameters() if p.requires_grad)]
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [*outputs, *(x for x in found if x is not None)]


def flat(outputs):
    """The tensors of nested sequences."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in flat(output)]


def assert_close(outputs, expected, tolerance):
    """Compare tensors, relative to the largest value of each."""
    for one, other in zip(flat(outputs), flat(expected), strict=True):
        assert other.std() > 0
        atol = tolerance * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def assert_same_gradients(model, expected, image):
    found = gradients(model, image)
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9 * (1 + y.detach().abs().max().item()))


def conv_module(**options):
    return ConvModule(3, 3, 3, **{"norm_cfg": dict(type="BN"), **options})


UNFUSIBLE = {
    "activation-between": lambda: nn.Sequential(conv(), nn.ReLU(), norm()),
    "norm-first": lambda: net(lambda m, x: m.conv(m.norm(x))),
    "norm-first-module": lambda: conv_module(order=("norm", "conv", "act")),
    "activation-first-module": lambda: conv_module(order=("conv", "act", "norm"), inplace=False),
    "standardized-weights": lambda: nn.Sequential(ConvWS2d(3, 3, 3), norm()),
    "norm-with-activation": lambda: nn.Sequential(conv(), RectifiedNorm(3)),
    "two-norms-of-a-conv": lambda: Net(
        lambda m, x: m.a(y := m.conv(x)) - m.b(2 * y) + m.c(y),
        **dict(conv=conv(), a=norm(), b=norm(), c=norm()),
    ),
    "another-conv-reads": lambda: net(lambda m, x: m.norm(y := m.conv(x)) + m.last(y)),
    "conv-called-twice": lambda: net(lambda m, x: m.norm(m.conv(m.conv(x)))),
    "norm-of-two-convs": lambda: net(lambda m, x: m.norm(m.conv(x)) + m.norm(m.last(x))),
    "batch-statistics": lambda: nn.Sequential(conv(), norm(track_running_stats=False)),
    "linear": lambda: nn.Sequential(
        conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3), nn.BatchNorm1d(3)
    ),
    # Something else reads the convolution.
    "read-before-another-layer": lambda: net(
        lambda m, x: m.last(m.norm(y := m.conv(x)) * y.sigmoid())
    ),
    "read-last": lambda: net(lambda m, x: (m.last(x), m.norm(y := m.conv(x)), y.sigmoid())),
    "read-by-the-caller": lambda: net(lambda m, x: (m.last(x), m.norm(y := m.conv(x)), y)),
    "read-by-numpy": lambda: net(
        lambda m, x: m.last(m.norm(y := m.conv(x))) * float(y.detach().numpy().mean())
    ),
    "read-by-dropout": lambda: net(
        lambda m, x: m.last(m.norm(F.dropout2d(m.conv(x), training=m.training)))
    ),
}
FUSIBLE = {
    "order-of-names": lambda: Net(
        lambda m, x: m.conv2(m.norm1(m.conv1(x))), norm1=norm(), conv2=conv(), conv1=conv()
    ),
    "inplace": lambda: nn.Sequential(conv(), norm(), nn.ReLU(inplace=True), conv(), norm()),
    "module": lambda: conv_module(norm_cfg=dict(type="SyncBN"), padding_mode="reflect"),
    "without-factors": lambda: nn.Sequential(conv(), norm(affine=False)),
    "both-twice": lambda: net(lambda m, x: m.norm(m.conv(m.norm(m.conv(x))))),
    "dcn": lambda: nn.Sequential(ModulatedDeformConv2dPack(3, 3, 3), norm()),
}
