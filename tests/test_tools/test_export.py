"""Exporting as a user does it."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hcformer_mm.deployment.export import ExportableModel
from tests.helpers.exporting import (
    TINY,
    TINY_CONFIG,
    as_options,
    lively_checkpoint,
    lively_model,
    read_config,
)

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/deployment/export.py"
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


def export(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint of a small model, and the arguments that name both."""
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    lively_checkpoint(read_config(TINY_CONFIG, TINY), file)
    return [TINY_CONFIG, file, "--cfg-options", *as_options(TINY)]


def test_dynamic_onnx(tiny, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = export(
        *(*tiny, "--format", "onnx", "--shape", 64, 96, "--dynamic"),
        *("--assignments", "--check", "--repeats", 1),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    for shape in ("64x96", "123x213"):
        assert f"| {shape}" in result.stdout
        assert f"{shape}: 3 of 3 images equal to 0.001" in result.stdout
    assert "Skipping" not in result.stderr

    path = tmp_path / f"{TINY_CONFIG}.onnx"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    domains = {node.domain for node in model.graph.node}
    assert domains <= {"", "ai.onnx"}
    sides = [side.dim_param for side in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["", "", "height", "width"]
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["name"] == TINY_CONFIG
    assert about["classes"][0] == "disc"
    assert about["mean"] == pytest.approx([123.675, 116.28, 103.53])
    assert (about["channels"], about["size_divisor"]) == ("RGB", 32)

    # As the page on deployment shows it, at a third size and without this package's help.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["class_logits", "mask_logits", "assignment_0"]
    image = torch.randn(1, 3, 40, 201)
    outputs = session.run(names, {"image": image.numpy()})
    eager = ExportableModel(
        lively_model(read_config(TINY_CONFIG, TINY)), with_assignments=True
    ).eval()
    with torch.no_grad():
        expected = eager(image)
    for name, output in zip(names, outputs, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected[name], rtol=1e-3, atol=1e-4)


def test_pytorch_program_of_a_batch(tiny, tmp_path):
    path = tmp_path / "tiny.pt2"
    result = export(
        *(*tiny, "--format", "torch-export", "--shape", 64, 96, "--batch-size", 2),
        *("--check", "--repeats", 1, "--out", path),
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert "64x96: 3 of 3 images equal to 0.001" in result.stdout
    outputs = torch.export.load(path).module()(torch.randn(2, 3, 64, 96))
    assert outputs["mask_logits"].shape == (2, 5, 16, 24)


@pytest.fixture
def fails(monkeypatch, capsys, tmp_path):
    """Run the tool in this process, and return what it exits with and says."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(TOOL), run_name="__main__")
        assert stopped.value.code
        assert not list(tmp_path.iterdir())
        return f"{stopped.value.code} {capsys.readouterr().err}"

    return run


BASIC = ("--format", "torch-export", "--shape", "64", "64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.py", "random", *BASIC), "expected a config file"),
        ((TINY_CONFIG, "no.pth", *BASIC), "no.pth"),
        ((TINY_CONFIG, *BASIC), "the following arguments are required: checkpoint"),
        ((TINY_CONFIG, "random", *BASIC, "--out", "x.onnx"), "a file *.pt2 in an existing folder"),
        ((TINY_CONFIG, "random", *BASIC, "--repeats", "0"), "--repeats of at least 1, got 0"),
        ((TINY_CONFIG, "random", *BASIC, "--batch-size", "0"), "one image, got (64, 64) and 0"),
        (
            (TINY_CONFIG, "random", "--format", "onnx", "--shape", "0", "64"),
            "a shape of at least 1 1",
        ),
        (
            ("fcn32s_r18_shapes-semantic", "random", *BASIC, "--assignments"),
            "expected an HCBackbone to return assignments of, got ResNetV1c",
        ),
    ],
)
def test_wrong_arguments(fails, arguments, message):
    assert message in fails(*arguments)


def test_a_difference_fails(tmp_path, monkeypatch, capsys):
    """A file that says something else than the model."""
    path = tmp_path / "tiny.pt2"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            *(str(TOOL), TINY_CONFIG, "random", *BASIC, "--check", "--repeats", "1"),
            *("--out", str(path), "--cfg-options", *as_options(TINY)),
        ],
    )
    import hcformer_mm.deployment.export as api

    load = api.load_exported

    def wrong(file):
        exported = load(file)
        return lambda image: {name: 1.01 * x for name, x in exported(image).items()}

    monkeypatch.setattr(api, "load_exported", wrong)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert "tiny.pt2 is not equal to the model to 0.001" in str(stopped.value.code)
    shown = capsys.readouterr()
    assert "64x64: 0 of 3 images equal to 0.001" in shown.out
    assert "the weights are random" in shown.err


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_paper(name, format, tmp_path):
    """What docs/deployment.md has in its table: all models, at the size asked for and another."""
    config, overrides = MODELS[name]
    weights = lively_checkpoint(read_config(config, overrides), tmp_path / "weights.pth")
    options = ["--cfg-options", *as_options(overrides)] if overrides else []
    result = export(
        *(config, weights, "--format", format, "--shape", 320, 480, "--dynamic"),
        *("--assignments", "--check", *options),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert result.stdout.count("of 3 images equal to 0.001") >= 1
