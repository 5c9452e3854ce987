"""Files with results: exported by the tool, compressed, and run by numpy and onnxruntime alone."""

import json
import runpy
import sys
from types import SimpleNamespace

import cv2
import mmcv
import numpy as np
import pytest
import torch
from packaging.version import Version
from skimage.data import chelsea
from torch import Tensor

from hcformer_mm.apis import HCFormerInferencer
from tests.helpers.exporting import (
    TINY,
    TINY_CONFIG,
    as_options,
    confident,
    lively_model,
    predict_bytes,
    read_config,
)
from tests.helpers.tools import ROOT, run_tool

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Older releases lack DeformConv.
DEFORM_CONV = ["--deform-conv"] if Version(onnxruntime.__version__) >= Version("1.32") else []
TEST_CFG = dict(object_mask_thr=0.3, iou_thr=0.3, max_per_image=20)
OPTIONS = TINY | {f"model.test_cfg.{key}": value for key, value in TEST_CFG.items()}


@pytest.fixture(scope="module")
def config():
    return read_config(TINY_CONFIG, OPTIONS)


@pytest.fixture(scope="module")
def detector(config):
    model = lively_model(config)
    confident(model)
    return model


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    """An ONNX file that takes any number of images of any size, its checkpoint and the output."""
    folder = tmp_path_factory.mktemp("exported")
    torch.save({"state_dict": detector.state_dict()}, folder / "tiny.pth")
    output = run_tool(
        *("tools/deployment/export.py", TINY_CONFIG, folder / "tiny.pth", "--format", "onnx"),
        *("--shape", 64, 96, "--dynamic", "--with-postprocess", "--uint8", *DEFORM_CONV),
        *(
            "--check",
            "--repeats",
            1,
            "--out",
            folder / "tiny.onnx",
            "--cfg-options",
            *as_options(OPTIONS),
        ),
    )
    return folder / "tiny.onnx", folder / "tiny.pth", output


def open_session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def demo():
    return runpy.run_path(str(ROOT / "demo/onnx_demo.py"))


@pytest.fixture(scope="module")
def photograph():
    return chelsea()


def share_of_equal(found, expected):
    expected = expected.numpy() if isinstance(expected, Tensor) else expected
    return (found == expected).mean()


def test_other_sizes_and_batches(exported, detector):
    path, _, output = exported
    assert "64x96: 3 of 3 images equal to 0.001" in output
    assert "| panoptic" in output
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = open_session(path)
    names = [entry.name for entry in session.get_outputs()]
    assert names[0] == "panoptic"
    assert names[-1] == "semantic"
    rng = np.random.default_rng(0)
    for batch, shape, size in ((1, (64, 96), (64, 96)), (3, (50, 77), (61, 101))):
        images = rng.integers(0, 256, (batch, *shape, 3), dtype=np.uint8)
        values = session.run(names, {"image": images, "size": np.array(size)})
        results = dict(zip(names, values, strict=True))
        samples = predict_bytes(detector, torch.from_numpy(images), size)
        for image, sample in enumerate(samples):
            panoptic = sample.pred_panoptic_seg.sem_seg[0]
            assert len(panoptic.unique()) > 1
            assert share_of_equal(results["panoptic"][image], panoptic) > 0.999
            semantic = sample.pred_sem_seg.sem_seg[0]
            assert share_of_equal(results["semantic"][image], semantic) > 0.999


def test_equals_the_inferencer_on_a_photograph(exported, config, demo, photograph, tmp_path):
    """The image is resized to the model's size and the results back, as in the inferencer."""
    path, checkpoint, _ = exported
    results = demo["predict"](open_session(path), photograph)
    inferencer = HCFormerInferencer(config, checkpoint, fast=False)
    (sample,) = inferencer(photograph[..., ::-1].copy())
    expected = sample.pred_panoptic_seg.sem_seg[0]
    assert results["panoptic"].shape == photograph.shape[:2]
    assert len(expected.unique()) > 1
    assert share_of_equal(results["panoptic"], expected) > 0.999
    assert share_of_equal(results["semantic"], sample.pred_sem_seg.sem_seg[0]) > 0.999
    instances = sample.pred_instances
    assert len(results["scores"]) == len(instances)
    ours, theirs = results["scores"].argsort(), instances.scores.argsort().numpy()
    scores = instances.scores.numpy()[theirs]
    np.testing.assert_allclose(results["scores"][ours], scores, atol=5e-3)
    best = results["masks"][ours[-1]], instances.masks[int(theirs[-1])]
    assert share_of_equal(*best) > 0.999
    assert results["labels"][ours[-1]] == instances.labels[int(theirs[-1])]


def test_command_line(exported, photograph, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "cat.npy", photograph)
    files = [str(tmp_path / name) for name in ("cat.npy", "results.npz")]
    monkeypatch.setattr(sys, "argv", ["onnx_demo.py", str(exported[0]), *files])
    runpy.run_path(str(ROOT / "demo/onnx_demo.py"), run_name="__main__")
    assert f"wrote {files[1]}" in capsys.readouterr().out
    with np.load(files[1]) as results:
        assert results["panoptic"].shape == photograph.shape[:2]


@pytest.mark.parametrize("change", [lambda x: x / 255, lambda x: x[..., 0], lambda x: x[..., :2]])
def test_other_arrays_are_refused(demo, photograph, change):
    with pytest.raises(SystemExit, match=r"expected RGB bytes \(H, W, 3\), got (float64|uint8) \("):
        demo["predict"](None, change(photograph))


def test_pixels_of_16_bits_are_refused(demo, photograph, tmp_path):
    """Pillow would make them white."""
    cv2.imwrite(str(tmp_path / "deep.png"), photograph[..., 0].astype(np.uint16) * 16)
    with pytest.raises(SystemExit, match=r"expected RGB bytes \(H, W, 3\), got uint16 \("):
        demo["predict"](None, demo["read_image"](str(tmp_path / "deep.png")))


def test_files_of_logits_are_refused(demo, photograph):
    image = SimpleNamespace(name="image", type="tensor(float)")
    session = SimpleNamespace(get_inputs=lambda: [image])
    message = r"--with-postprocess --uint8, got \['image tensor\(float\)'\]"
    with pytest.raises(SystemExit, match=message):
        demo["predict"](session, photograph)


@pytest.mark.parametrize("size", [(192, 289), (480, 700), (31, 1), (300, 451)])
def test_resized_images_are_those_of_opencv(demo, photograph, size):
    found = demo["resize_image"](photograph, size)
    assert (found != cv2.resize(photograph, size[::-1])).mean() < 1e-3
    assert np.abs(found.astype(int) - cv2.resize(photograph, size[::-1])).max() <= 1


def test_sizes_are_those_of_mmcv(demo):
    for height, width in ((300, 451), (451, 300), (7, 1000), (800, 1333)):
        for scale in ((256, 192), (1333, 800), (64, 2000)):
            resize = dict(scale=scale, keep_ratio=True)
            found = demo["input_size"](height, width, resize)
            assert found[::-1] == mmcv.rescale_size((width, height), scale)
    assert demo["input_size"](3, 4, dict(scale=(5, 6), keep_ratio=False)) == (6, 5)
    assert demo["input_size"](3, 4, None) == (3, 4)


def test_compressed_files(exported, photograph, tmp_path):
    """Half precision and 8 bits: much smaller backbones, and results of the same kind."""
    from hcformer_mm.deployment.compression import to_float16, to_int8

    whole = exported[0]
    images = [photograph[:192, :256], photograph[100:292, 100:356]]
    inputs = [dict(image=image[None], size=np.array((192, 256))) for image in images]
    to_float16(whole, tmp_path / "half.onnx")
    to_int8(whole, tmp_path / "int8.onnx", inputs)
    (expected,) = open_session(whole).run(["semantic"], inputs[0])
    sizes = {}
    for name, kind in (("half", "FLOAT16"), ("int8", "INT8")):
        path = tmp_path / f"{name}.onnx"
        model = onnx.load(path)
        dtype = getattr(onnx.TensorProto, kind)
        assert any(entry.data_type == dtype for entry in model.graph.initializer)
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(metadata["name"]) == TINY_CONFIG
        (found,) = open_session(path).run(["semantic"], inputs[0])
        assert (found == expected).mean() > 0.9
        sizes[name] = path.stat().st_size
    assert sizes["int8"] < sizes["half"] < whole.stat().st_size
