"""The command line of ``tools/deployment/export.py``."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch

import hcformer_mm.deployment.export as api
from hcformer_mm.deployment.export import ExportableModel
from tests.helpers.exporting import (
    TINY,
    TINY_CONFIG,
    as_options,
    lively_checkpoint,
    lively_model,
    read_config,
)
from tests.helpers.tools import ROOT, run_tool

TOOL = "tools/deployment/export.py"
PANOPTIC = "8xb2-lsj-50e_coco-panoptic"
R50 = f"hcformer_r50_{PANOPTIC}"
SWIN_S = f"hcformer_swin-s-p4-w7-224_{PANOPTIC}"
ORIGINAL = {"model.backbone.downsampling": "original"}
MODELS = {
    "R18": (TINY_CONFIG, {}),
    "R18 without DCNv2": (TINY_CONFIG, ORIGINAL),
    "R50": (R50, {}),
    "R50 without DCNv2": (R50, ORIGINAL),
    "Swin-T": (SWIN_S, {"model.backbone.backbone.depths": (2, 2, 6, 2)}),
    "Swin-S": (SWIN_S, {}),
    "HCFormer+ R50": ("hcformer-plus_r50_8xb2-lsj-100e_coco-panoptic", {}),
    "HC-PSPNet R101": ("hc-pspnet_r101_4xb4-160k_ade20k-512x512", {}),
}
BASIC = ("--format", "torch-export", "--shape", 64, 64)
RESIZE = dict(type="hcformer_mm.Resize", scale=(256, 192), keep_ratio=True)


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Arguments that name a small model and a checkpoint of it."""
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    lively_checkpoint(read_config(TINY_CONFIG, TINY), file)
    return [TINY_CONFIG, file, "--cfg-options", *as_options(TINY)]


def run_process(*arguments):
    command = [sys.executable, str(ROOT / TOOL), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result


def test_calibration_takes_images_of_any_size(tiny, tmp_path):
    """A file of one size and number of images gets them resized and repeated."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for i, size in enumerate([(64, 96), (97, 41)]):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        mmcv.imwrite(pixels, str(tmp_path / f"images/{i}.png"))
    shape = ("--shape", 64, 96, "--batch-size", 2)
    with pytest.raises(SystemExit, match="no such image: nowhere"):
        run_tool(TOOL, *tiny, "--format", "onnx", *shape, "--int8", "nowhere")
    run_tool(TOOL, *tiny, "--format", "onnx", *shape, "--int8", "images", "--out", "int8.onnx")
    session = onnxruntime.InferenceSession("int8.onnx", providers=["CPUExecutionProvider"])
    images = np.zeros((2, 3, 64, 96), np.float32)
    assert len(session.run(["class_logits"], {"image": images})[0]) == 2


def test_dynamic_onnx(tiny, tmp_path):
    """In a process of its own, as a user runs it."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = run_process(
        *(*tiny, "--format", "onnx", "--shape", 64, 96, "--dynamic"),
        *("--assignments", "--check", "--repeats", 1),
    )
    for shape in ("64x96", "123x213"):
        assert f"| {shape}" in result.stdout
        assert f"{shape}: 3 of 3 images equal to 0.001" in result.stdout
    assert "Skipping" not in result.stderr

    path = tmp_path / f"{TINY_CONFIG}.onnx"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    sides = [side.dim_param for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", "", "height", "width"]
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["name"] == TINY_CONFIG
    assert about["classes"][0] == "disc"
    assert about["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert (about["channels"], about["size_divisor"]) == ("RGB", 32)

    # At a third size, and without this package's help.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["class_logits", "mask_logits", "assignment_0"]
    image = torch.randn(3, 3, 40, 201)
    outputs = session.run(names, {"image": image.numpy()})
    network = lively_model(read_config(TINY_CONFIG, TINY))
    with torch.no_grad():
        expected = ExportableModel(network, with_assignments=True).eval()(image)
    for name, output in zip(names, outputs, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected[name], rtol=1e-3, atol=1e-4)


def test_pytorch_program_of_a_batch(tiny, tmp_path):
    path = tmp_path / "tiny.pt2"
    output = run_tool(
        *(TOOL, *tiny, "--format", "torch-export", "--shape", 64, 96, "--batch-size", 2),
        *("--check", "--repeats", 1, "--out", path),
    )
    assert "64x96: 3 of 3 images equal to 0.001" in output
    outputs = torch.export.load(path).module()(torch.randn(2, 3, 64, 96))
    assert outputs["mask_logits"].shape == (2, 5, 16, 24)


@pytest.fixture
def fails(monkeypatch, capsys):
    """Run the tool in this process, and return its exit status and its output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [TOOL, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / TOOL), run_name="__main__")
        assert stopped.value.code
        return stopped.value.code, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.py", "random", *BASIC), "expected a config file"),
        ((TINY_CONFIG, "no.pth", *BASIC), "no.pth"),
        ((TINY_CONFIG, *BASIC), "the following arguments are required: checkpoint"),
        ((TINY_CONFIG, "random", *BASIC, "--out", "x.onnx"), "a file *.pt2 in an existing folder"),
        ((TINY_CONFIG, "random", *BASIC, "--repeats", 0), "an integer from 1 on, got '0'"),
        ((TINY_CONFIG, "random", *BASIC, "--batch-size", 0), "--batch-size: expected an int"),
        ((TINY_CONFIG, "random", "--format", "onnx", "--shape", 0, 64), "a shape of at least 1 1"),
        ((TINY_CONFIG, "random", *BASIC, "--fp16"), "expected --format onnx and one of --fp16"),
        (
            (TINY_CONFIG, "random", "--format", "onnx", *BASIC[2:], "--fp16", "--check"),
            "expected --check without --fp16 and --int8",
        ),
        (
            ("fcn32s_r18_shapes-semantic", "random", *BASIC, "--assignments"),
            "expected an HCBackbone to return assignments of, got ResNetV1c",
        ),
    ],
)
def test_wrong_arguments(fails, arguments, message, tmp_path):
    status, output = fails(*arguments)
    assert message in f"{status} {output}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "steps",
    [
        [dict(type="hcformer_mm.Resize", scale_factor=0.5)],
        [dict(type="hcformer_mm.ResizeShortestEdge", scale=192, max_size=256)],
        [RESIZE, dict(type="mmdet.Pad", size_divisor=32)],
        [RESIZE, dict(type="hcformer_mm.Resize", scale=(64, 64))],
    ],
)
def test_resizing_that_metadata_do_not_tell_is_refused(steps, fails, monkeypatch):
    def read(*options):
        config = read_config(TINY_CONFIG, TINY)
        pipeline = config.test_dataloader.dataset.pipeline
        config.test_dataloader.dataset.pipeline = [pipeline[0], *steps, *pipeline[2:]]
        return config

    monkeypatch.setattr("hcformer_mm.utils.config.read_config", read)
    status, _ = fails(TINY_CONFIG, "random", *BASIC)
    assert "resizes images by Resize with scale alone" in status
    assert "in place of" in status
    assert not list(Path().iterdir())


def test_a_difference_fails(fails, monkeypatch):
    """A file that returns other outputs than the model."""
    load = api.load_exported

    def wrong(file):
        exported = load(file)
        return lambda image: {name: 1.01 * x for name, x in exported(image).items()}

    monkeypatch.setattr(api, "load_exported", wrong)
    status, output = fails(
        *(TINY_CONFIG, "random", *BASIC, "--check", "--repeats", 1, "--out", "tiny.pt2"),
        *("--cfg-options", *as_options(TINY)),
    )
    assert status == "export: tiny.pt2 differs from the model by more than 0.001"
    assert "64x64: 0 of 3 images equal to 0.001" in output
    assert "the weights are random" in output


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_paper(name, format, tmp_path):
    """The table in docs/deployment.md: every model at the traced size and at another one."""
    config, overrides = MODELS[name]
    weights = lively_checkpoint(read_config(config, overrides), tmp_path / "weights.pth")
    options = ["--cfg-options", *as_options(overrides)] if overrides else []
    result = run_process(
        *(config, weights, "--format", format, "--shape", 320, 480, "--dynamic"),
        *("--assignments", "--check", *options),
    )
    assert result.stdout.count("of 3 images equal to 0.001") >= 1
