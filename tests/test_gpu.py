"""What a GPU must show: it agrees with the CPU, trains in half precision, and how fast it is.

``make test-gpu`` runs these tests and prints their figures. A CPU can stand in for the GPU, on
small shapes: ``HCFORMER_MM_TEST_DEVICE=cpu make test-gpu``.
"""

import os
import subprocess
import sys
from copy import deepcopy
from unittest import mock

import mmcv.ops
import pytest
import torch
import torchvision.ops
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer

from benchmarks import benchmark
from benchmarks.models import random_batch
from hcformer_mm.acceleration.inference import prepare_for_inference
from hcformer_mm.engine.mixed_precision import complete_optim_wrapper
from hcformer_mm.models.layers.clustering import ClusteringModule
from hcformer_mm.ops import decode_hierarchy, decode_points, hierarchical_clusters
from hcformer_mm.ops.deform_conv import modulated_deform_conv2d
from tests.helpers.devices import DEVICE, VARIABLE, full_float32
from tests.helpers.exporting import (
    SMALL_SWIN,
    SWIN_CONFIG,
    TINY,
    TINY_CONFIG,
    lively_model,
    read_config,
)
from tests.helpers.tools import ROOT

on_gpu = pytest.mark.gpu
SMALL = DEVICE == "cpu"
BESIDE = [
    "hcformer_r50_8xb2-lsj-50e_coco-panoptic",
    "mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py",
    "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py",
]
if SMALL:
    BESIDE = [TINY_CONFIG]
DETECTOR = (TINY_CONFIG, TINY) if SMALL else (BESIDE[0], {})
MODELS = {
    "panoptic": DETECTOR,
    "Swin, tokens": (SWIN_CONFIG, SMALL_SWIN),
    "semantic, mask transformer": ("hcformer_r18_shapes-semantic", {}),
    "semantic, per-pixel": ("hc-pspnet_r18_shapes-semantic", {}),
}
SHAPE = (64, 96) if SMALL else (512, 672)
LARGE = ("64", "96") if SMALL else ("800", "1344")
ROUNDS = ("--repeats", "1", "--warmup", "0") if SMALL else ("--repeats", "10", "--warmup", "3")
EXACT, HALF = 1e-4, 2e-2


@pytest.fixture(autouse=True)
def without_tf32():
    with full_float32():
        yield


def error_of(ours, expected):
    """Largest norm of a difference, relative to the norm of what was expected."""
    assert len(ours) == len(expected)
    errors = []
    for x, y in zip(ours, expected, strict=True):
        assert x.isfinite().all()
        x, y = x.detach().cpu().double(), y.detach().cpu().double()
        errors.append(((x - y).norm() / y.norm().clamp(min=1e-12)).item())
    return max(errors)


def error_of_probabilities(ours, expected):
    """Largest mean difference of probabilities, given the logits that a head returns."""

    def probabilities(logits):
        logits = [x.float().cpu() for x in logits]
        if len(logits) == 1:  # of the classes of pixels
            return [logits[0].softmax(1)]
        return [logits[0].softmax(-1), logits[1].sigmoid()]  # of queries and their masks

    pairs = zip(probabilities(ours), probabilities(expected), strict=True)
    return max((x - y).abs().mean().item() for x, y in pairs)


def milliseconds(call):
    """Mean time of a call, with what it leaves the device to do."""
    timer = Timer("call()", globals=dict(call=call))
    return 1e3 * timer.timeit(1 if SMALL else 20).mean


def operators():
    """Functions of float32 tensors, and their inputs, at sizes that are odd."""
    height, width = (13, 9) if SMALL else (125, 167)
    half = (height + 1) // 2, (width + 1) // 2
    quarter = (half[0] + 1) // 2, (half[1] + 1) // 2
    fine, coarse = torch.randn(2, 32, height, width), torch.randn(2, 64, *half)
    module = ClusteringModule(32, 64, 16)
    masks = torch.randn(2, 10, *quarter)
    levels = [torch.randn(2, 9, *size).softmax(1) for size in ((height, width), half)]
    kernel = torch.randn(8, 32, 3, 3)
    offset, modulation = torch.randn(2, 18, *half), torch.rand(2, 9, *half)
    return {
        "clustering": (module, [fine, coarse]),
        "decoding": (lambda m, *a: decode_hierarchy(m, a), [masks, *levels]),
        "decoding at points": (
            lambda m, p, *a: decode_points(m, a, p),
            [masks, torch.rand(2, 50, 2), *levels],
        ),
        "deformable convolution": (
            lambda *tensors: modulated_deform_conv2d(*tensors, stride=2, padding=1),
            [fine, offset, modulation, kernel],
        ),
    }


@on_gpu
@pytest.mark.parametrize("name", operators())
def test_operators_agree(name, gpu, figures):
    """Outputs and gradients of all inputs, in float32."""
    torch.manual_seed(0)
    function, inputs = operators()[name]
    results = []
    for device in ("cpu", gpu):
        moved = deepcopy(function).to(device) if isinstance(function, torch.nn.Module) else function
        leaves = [x.to(device).requires_grad_() for x in inputs]
        output = moved(*leaves)
        weights = torch.linspace(-1, 1, output.numel(), device=device).view(output.shape)
        gradients = torch.autograd.grad((output * weights).sum(), leaves, allow_unused=True)
        results.append([output, *(x for x in gradients if x is not None)])
    error = error_of(results[1], results[0])
    figures.setdefault("Operators, GPU against CPU", []).append(dict(name=name, error=error))
    assert error < EXACT


@on_gpu
def test_clusters_agree(gpu):
    """Labels are equal, as the assignments differ by more than rounding."""
    torch.manual_seed(0)
    levels = [torch.randn(1, 9, *size).softmax(1) for size in ((12, 20), (6, 10), (3, 5))]
    expected = hierarchical_clusters(levels)
    found = hierarchical_clusters([x.to(gpu) for x in levels])
    assert all(torch.equal(x.cpu(), y) for x, y in zip(found, expected, strict=True))


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_models_agree(name, dtype, gpu, figures):
    """Probabilities of a network with random weights; the CPU computes in float32.

    Half precision decides otherwise which cells a query attends to, and rounds fifty layers, so
    single logits may differ by more.
    """
    if SMALL and dtype == "float16":
        pytest.skip("CPUs compute in bfloat16")
    model = lively_model(read_config(*MODELS[name]))
    images = torch.randn(1, 3, *SHAPE)
    dtype = getattr(torch, dtype)
    with torch.no_grad():
        expected = tree_leaves(model(images, mode="tensor"))
        model.to(gpu)
        with torch.autocast(gpu.type, dtype, enabled=dtype != torch.float32):
            ours = tree_leaves(model(images.to(gpu), mode="tensor"))
    error = error_of_probabilities(ours, expected)
    row = dict(name=name, dtype=str(dtype).removeprefix("torch."), error=error)
    row["error of logits (norm)"] = error_of(ours, expected)
    figures.setdefault("Models, GPU against CPU: mean error of probabilities", []).append(row)
    assert error < (EXACT if dtype == torch.float32 else HALF)


@on_gpu
def test_training_in_mixed_precision(gpu, figures):
    """Fifty steps on one batch: losses are finite, and their total falls."""
    config = read_config(*DETECTOR)
    if SMALL:
        config.model.train_cfg.num_points = 256
    model = lively_model(config).to(gpu).train()
    data = random_batch(model, SHAPE, batch=1 if SMALL else 2, objects=4)
    amp = dict(type="AmpOptimWrapper", loss_scale="dynamic")
    settings = ConfigDict(optim_wrapper={**config.optim_wrapper, **amp}, default_scope="mmdet")
    precision = complete_optim_wrapper(settings)
    with DefaultScope.overwrite_default_scope("mmdet"):
        wrapper = build_optim_wrapper(model, settings.optim_wrapper)
    steps = 8 if SMALL else 50
    totals = []
    for step in range(steps):
        torch.manual_seed(step)
        losses = model.train_step(deepcopy(data), wrapper)
        assert all(value.isfinite() for value in losses.values()), losses
        totals.append(losses["loss"].item())
    tenth = max(1, steps // 10)
    first, last = (sum(part) / tenth for part in (totals[:tenth], totals[-tenth:]))
    row = dict(precision=precision, steps=steps, first=first, last=last)
    title = "Training in mixed precision: mean loss of the first and the last tenth of the steps"
    figures.setdefault(title, []).append(row)
    assert precision and last < first


@on_gpu
def test_forms_of_a_network(gpu, figures):
    """Eager, with BatchNorm fused, compiled, and as a CUDA graph: equal results, and times."""
    model = lively_model(read_config(*DETECTOR)).to(gpu)
    images = torch.randn(1, 3, *SHAPE, device=gpu)

    def network(x):
        return model(x, mode="tensor")

    backend = "aot_eager" if SMALL else "inductor"
    forms = {"eager": network, "compiled": torch.compile(network, fullgraph=True, backend=backend)}
    rows = figures.setdefault(f"One network at {SHAPE[0]}x{SHAPE[1]}, float32", [])
    expected = None
    for fused in (False, True):
        if fused:
            torch._dynamo.reset()
            prepare_for_inference(model)
            if gpu.type == "cuda":
                forms["CUDA graph"] = torch.compile(network, fullgraph=True, mode="reduce-overhead")
        for name, call in forms.items():
            with torch.no_grad():
                ours = [x.clone() for x in tree_leaves(call(images))]
                time = milliseconds(lambda call=call: call(images))
            expected = expected or ours
            error = error_of_probabilities(ours, expected)
            rows.append({"name": name, "fused": fused, "mean (ms)": time, "error": error})
            assert error < EXACT
    torch._dynamo.reset()


@on_gpu
def test_kernels_of_deformable_convolution(gpu, figures):
    """mmcv's, torchvision's and ours: equal outputs and gradients, and times."""
    torch.manual_seed(0)
    height, width = (12, 20) if SMALL else (100, 168)
    half = height // 2, width // 2
    x, weight = torch.randn(1, 64, height, width), torch.randn(64, 64, 3, 3)
    offset, mask = torch.randn(1, 18, *half), torch.rand(1, 9, *half)
    inputs = [t.to(gpu).requires_grad_() for t in (x, offset, mask, weight)]
    kernels = {
        "ours": lambda x, o, m, w: modulated_deform_conv2d(x, o, m, w, stride=2, padding=1),
        "torchvision": lambda x, o, m, w: torchvision.ops.deform_conv2d(
            x, o, w, stride=2, padding=1, mask=m
        ),
        "mmcv": lambda x, o, m, w: mmcv.ops.modulated_deform_conv2d(x, o, m, w, None, 2, 1),
    }
    rows = figures.setdefault("DCNv2, forward and backward", [])
    expected = None
    for name, kernel in kernels.items():

        def call(kernel=kernel):
            output = kernel(*inputs)
            return [output, *torch.autograd.grad(output.square().sum(), inputs)]

        ours = call()
        expected = expected or ours
        error = error_of(ours, expected)
        rows.append({"name": name, "mean (ms)": milliseconds(call), "error": error})
        assert error < EXACT


def rows_of(*arguments):
    """Rows of benchmarks/benchmark.py."""
    argv = ["benchmark.py", *arguments, *ROUNDS, "--device", str(DEVICE)]
    with mock.patch.object(sys, "argv", argv):
        args = benchmark.parse_args()
    try:
        return args.run(args)
    finally:
        torch.set_default_device(None)


@on_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prediction_beside_peers(gpu, figures, dtype):
    rows = rows_of("model", *BESIDE, "--shape", *LARGE, "--dtype", dtype, "--kept-queries", "20")
    figures.setdefault("Inference of one image", []).extend(rows)
    assert all(row["median (ms)"] > 0 for row in rows)


@on_gpu
def test_training_step_beside_peers(gpu, figures):
    """Time and peak memory of a step; each model takes the peak in a process of its own."""
    rows = rows_of("train", *BESIDE, "--shape", *map(str, SHAPE), "--batch", "2")
    figures.setdefault("A training step of two images", []).extend(rows)
    assert all(row["peak extra (MiB)"] > 0 for row in rows)


@on_gpu
def test_post_processing_alone(gpu, figures):
    rows = rows_of("ops", "--operator", "post-processing", "--shape", *LARGE)
    figures.setdefault("Post-processing of 100 queries", []).extend(rows)
    assert all(row["median (ms)"] > 0 for row in rows)


@pytest.mark.slow
def test_the_suite_runs_on_a_cpu(tmp_path):
    """So it is known to work before there is a GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu and not slow", __file__],
        cwd=ROOT,
        env={**os.environ, VARIABLE: "cpu"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "| clustering" in done.stdout and " passed" in done.stdout
