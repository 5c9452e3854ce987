"""torch.compile: what it returns, and where it has to leave the graph."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.optim import OptimWrapper
from torch import _dynamo as dynamo
from torch import nn
from torch.utils._pytree import tree_leaves

import hcformer_mm
from hcformer_mm.models.layers import deformable_downsampling
from hcformer_mm.models.losses import mask_criterion
from tests.helpers.exporting import (
    SMALL_SWIN,
    SWIN_CONFIG,
    TINY,
    TINY_CONFIG,
    as_options,
    lively_model,
    read_config,
)
from tests.helpers.models import data_sample
from tests.test_tools.test_train_and_test import small_shapes, train  # noqa: F401

OURS = str(Path(hcformer_mm.__file__).parent)
MODELS = {
    "detector": (TINY_CONFIG, TINY),
    "detector of tokens": (SWIN_CONFIG, SMALL_SWIN),
    "segmentor": ("hc-pspnet_r18_shapes-semantic", {}),
}


@pytest.fixture(autouse=True)
def fresh():
    dynamo.reset()
    yield
    dynamo.reset()


def batch(size=2):
    torch.manual_seed(0)
    images = [torch.randint(256, (3, 64, 96), dtype=torch.uint8) for _ in range(size)]
    return dict(inputs=images, data_samples=[data_sample((64, 96)) for _ in images])


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_one_graph(name):
    model = lively_model(read_config(*MODELS[name]))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        explanation = dynamo.explain(lambda x: model(x, mode="tensor"))(image)
    assert (explanation.graph_count, explanation.break_reasons) == (1, [])


class Network(nn.Module):
    """The part of a model whose outputs are tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return self.model(image, mode="tensor")


@pytest.mark.parametrize(
    "name", ["detector", *(pytest.param(name, marks=pytest.mark.slow) for name in list(MODELS)[1:])]
)
@torch.no_grad()
def test_networks_read_no_value_back(name):
    """As CUDA graphs need it: no shape or branch depends on values."""
    network = Network(lively_model(read_config(*MODELS[name])))
    image = torch.randn(1, 3, 64, 96)
    program = torch.export.export(network, (image,), strict=True)
    assert not program.range_constraints  # of numbers that are known only after a kernel has run
    expected, found = network(image), program.module()(image)
    torch.testing.assert_close(tree_leaves(found), tree_leaves(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA graphs")
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_cuda_graphs(name, monkeypatch):
    """Every replay gives the results of its own image."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = Network(lively_model(read_config(*MODELS[name]))).cuda()
    compiled = torch.compile(network, mode="reduce-overhead", fullgraph=True)
    dynamo.utils.counters.clear()
    for image in torch.randn(4, 1, 3, 64, 96, device="cuda"):
        found = tree_leaves(compiled(image))
        torch.testing.assert_close(found, tree_leaves(network(image)), rtol=1e-3, atol=1e-3)
    assert not dynamo.utils.counters["inductor"]["cudagraph_skips"]


def agree(backbone, compiled):
    """Type, maps, assignments, scales and gradients agree."""
    image = torch.randn(1, 3, 64, 96)
    outputs, expected = compiled(image), backbone(image)
    assert type(outputs) is type(expected)
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    sums = []
    for features in (outputs, expected):
        tensors = [*features, *features.assignments, *features.scales]
        weights = [torch.linspace(-1, 1, t.numel()).view(t.shape) for t in tensors]
        sums.append(sum((t * w).sum() for t, w in zip(tensors, weights, strict=True)))
    for ours, theirs in zip(
        [*outputs, *outputs.assignments], [*expected, *expected.assignments], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(s, parameters, allow_unused=True) for s in sums]
    for ours, theirs in zip(*gradients, strict=True):
        if theirs is not None:
            scale = theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * scale + 1e-5)


@pytest.mark.parametrize("name", ["detector", "detector of tokens"])
def test_backbone_agrees(name):
    backbone = lively_model(read_config(*MODELS[name])).backbone
    # fullgraph: it never leaves the graph, with gradients either.
    agree(backbone, torch.compile(backbone, backend="aot_eager", fullgraph=True))


def test_backbone_agrees_beside_mmcv_kernels(monkeypatch):
    """As on GPUs: eager layers run mmcv's kernel, which no graph can hold, compiled ones do not."""
    for kernels in ("_MMCV_KERNELS", "_TORCHVISION_KERNELS"):
        monkeypatch.setattr(deformable_downsampling, kernels, {"cpu"})
    backbone = lively_model(read_config(*MODELS["detector"])).backbone
    agree(backbone, torch.compile(backbone, backend="aot_eager", fullgraph=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detector", "detector of tokens"])
def test_backbone_agrees_on_generated_code(name):
    backbone = lively_model(read_config(*MODELS[name])).backbone
    agree(backbone, torch.compile(backbone, fullgraph=True))


@pytest.mark.slow
def test_where_training_leaves_the_graph():
    """Where the classes of an image are listed, and for matching, which the CPU does."""
    model = lively_model(read_config(TINY_CONFIG, TINY)).train()
    data = model.data_preprocessor(batch(), True)
    explanation = dynamo.explain(lambda: model(**data, mode="loss"))()
    places = [reason.user_stack[-1].filename for reason in explanation.break_reasons]
    ours = {Path(place).name for place in places if place.startswith(OURS)}
    assert ours == {"label_maps.py", "mask_criterion.py"}


@pytest.mark.parametrize(
    "options",
    [
        dict(backend="aot_eager"),
        # By default generated code draws its own random numbers.
        pytest.param(dict(options={"fallback_random": True}), marks=pytest.mark.slow),
    ],
)
def test_training_step_agrees(monkeypatch, options):
    """As the runner compiles it."""
    # Eager code on a CPU samples points layer by layer, in another order.
    monkeypatch.setattr(mask_criterion, "is_eager_cpu", lambda x: False)
    losses, parameters = [], []
    for compiled in (False, True):
        model = lively_model(read_config(TINY_CONFIG, TINY)).train()
        if compiled:
            model.train_step = torch.compile(model.train_step, **options)
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
        data = batch()
        for _ in range(2):
            # Points of the masks are sampled at random.
            torch.manual_seed(0)
            losses.append(model.train_step(deepcopy(data), optimizer))
        parameters.append([p.detach() for p in model.parameters()])
    assert losses[0]["loss"] > losses[1]["loss"]
    for ours, theirs in zip(losses[2:], losses[:2], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(*parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_runner_compiles(small_shapes, tmp_path):  # noqa: F811
    """`compile=True` on the command line, with AdamW, gives the losses of eager training.

    They differ slightly, as generated code samples other points of the masks.
    """
    logs = []
    for name, options in (("eager", []), ("compiled", ["compile=True"])):
        tiny = [*as_options(TINY), "default_hooks.logger.interval=1", "randomness.seed=0"]
        output = train(tmp_path / name, [*small_shapes, *tiny, *options])
        assert ('"compiled"' in output) == bool(options)
        (log,) = (tmp_path / name).glob("*/vis_data/scalars.json")
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        logs.append([row for row in rows if "loss" in row])
    assert len(logs[0]) == len(logs[1]) == 2
    for ours, theirs in zip(*logs, strict=True):
        for key, value in theirs.items():
            if "loss" in key:
                assert ours[key] == pytest.approx(value, rel=0.02, abs=1e-4), key
