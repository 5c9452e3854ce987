"""Export by the API; tests/test_tools/test_export.py tests the command line."""

import json
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmseg.structures import SegDataSample

from hcformer_mm.datasets.transforms import Resize
from hcformer_mm.deployment import export
from hcformer_mm.deployment.export import (
    ExportableModel,
    describe,
    export_model,
    load_exported,
    pipeline_divisor,
    pipeline_resize,
)
from tests.helpers.exporting import (
    SMALL_SWIN,
    SWIN_CONFIG,
    TINY,
    TINY_CONFIG,
    confident,
    lively_model,
    predict_bytes,
    read_config,
)

PSP = "hc-pspnet_r18_shapes-semantic"
SEMANTIC = "hcformer_r18_shapes-semantic"


@pytest.fixture(scope="module")
def tiny():
    return lively_model(read_config(TINY_CONFIG, TINY))


def image_and_sample(kind, size):
    torch.manual_seed(0)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    return torch.randint(256, (3, *size), dtype=torch.uint8), kind(metainfo=meta)


def normalize(image, description):
    """Normalize an image as the metadata of a file tell its user to."""
    assert description["channels"] == "RGB"
    mean, std = (torch.tensor(description[key]).view(3, 1, 1) for key in ("mean", "std"))
    return ((image.flip(0) - mean) / std)[None]


@torch.no_grad()
def test_equals_the_detector_in_its_pipeline(tiny):
    """Normalization, padding and network equal mmdet's, for an image that is padded."""
    image, sample = image_and_sample(DetDataSample, (70, 90))
    batch = tiny.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    assert batch["inputs"].shape[-2:] == (96, 96)
    assert pipeline_divisor(tiny) == 32
    class_logits, mask_logits = tiny(**batch, mode="tensor")

    model = ExportableModel(tiny, with_assignments=True)
    outputs = model(normalize(image, describe(model, "tiny")))
    assert list(outputs) == ["class_logits", "mask_logits", "assignment_0"]
    torch.testing.assert_close(outputs["class_logits"], class_logits[-1])
    torch.testing.assert_close(outputs["mask_logits"], mask_logits[-1])
    features = tiny.extract_feat(batch["inputs"])
    torch.testing.assert_close(outputs["assignment_0"], features.assignments[0])


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "outputs"), [(PSP, ["seg_logits"]), (SEMANTIC, ["class_logits", "mask_logits"])]
)
def test_equals_the_segmentor_in_its_pipeline(name, outputs):
    segmentor = lively_model(read_config(name))
    image, sample = image_and_sample(SegDataSample, (70, 90))
    batch = segmentor.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    # The per-pixel models do not pad.
    assert batch["inputs"].shape[-2:] == ((70, 90) if name == PSP else (96, 96))
    assert pipeline_divisor(segmentor) == (1 if name == PSP else 32)
    expected = segmentor(**batch, mode="tensor")
    model = ExportableModel(segmentor)
    got = model(normalize(image, describe(model, name)))
    assert list(got) == outputs
    last = [expected] if name == PSP else [stages[-1] for stages in expected]
    for ours, theirs in zip(got.values(), last, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_padding_has_the_value_of_the_pipeline(tiny):
    model = ExportableModel(tiny)
    model.pad_value = 3.0
    image = torch.randn(1, 3, 33, 70)
    padded = torch.full((1, 3, 64, 96), 3.0)
    padded[..., :33, :70] = image
    with torch.no_grad():
        torch.testing.assert_close(model(image), model(padded))


def test_dynamic_program_of_tokens(tmp_path):
    """Sizes with a single window, and with padding of the image and of the windows."""
    detector = lively_model(read_config(SWIN_CONFIG, SMALL_SWIN))
    model = ExportableModel(detector, with_assignments=True).eval()
    path = tmp_path / "small.pt2"
    about = describe(model, "small")
    export_model(model, path, format="torch-export", shape=(64, 96), dynamic=True, metadata=about)
    exported = load_exported(path)
    for batch, size in ((1, (33, 64)), (3, (60, 113)), (2, (224, 300))):
        image = torch.randn(batch, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), model(image), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="to be >= 33, but got 32"):
        exported(torch.randn(1, 3, 32, 64))

    files = {"metadata.json": ""}
    torch.export.load(path, extra_files=files)
    assert json.loads(files["metadata.json"]) == about
    assert about["classes"][:2] == ["person", "bicycle"]
    assert [item.name for item in tmp_path.iterdir()] == ["small.pt2"]
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert path.stat().st_size < weights + 4_000_000


class Branching(torch.nn.Module):
    """Runs one branch for large images, as the traced one, and another for small ones."""

    uint8 = deform_conv = False

    def example(self, shape, batch_size):
        return [torch.zeros(batch_size, 3, *shape)]

    def forward(self, image):
        height, width = image.shape[-2:]
        image = image.flatten(2) if height * width > 20_000 else -image.flatten(2)
        return dict(image=image.reshape(-1, 3, height, width))


def test_dynamic_program_refuses_the_branch_that_was_not_traced():
    program = export._trace(Branching(), export.TRACED_SHAPE, batch_size=2, dynamic=True)
    image = torch.randn(1, 3, 40, 501)
    torch.testing.assert_close(program.module()(image)["image"], image)
    with pytest.raises(RuntimeError, match="assertion failed for expression 20000 < "):
        program.module()(image[..., :500])


def test_dynamic_models_need_a_recent_pytorch(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_config", object())
    path, shape = tmp_path / "tiny.pt2", (64, 64)
    with pytest.raises(ValueError, match=r"PyTorch 2\.7 or newer for a dynamic model, got 2"):
        export_model(ExportableModel(tiny), path, format="torch-export", shape=shape, dynamic=True)


def test_too_large_for_onnx(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_ONNX", 1_000_000)
    pytest.importorskip("onnxscript")
    path = tmp_path / "tiny.onnx"
    with pytest.raises(ValueError, match=r"expected at most 0.0 GB .*; use the format 'torch-ex"):
        export_model(ExportableModel(tiny), path, format="onnx", shape=(64, 64))


def test_half_written_files_do_not_stay(tiny, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(export, "_trace", lambda *args: None)
    monkeypatch.setattr(torch.export, "save", fails)
    path = tmp_path / "tiny.pt2"
    path.write_text("the file before")
    with pytest.raises(OSError, match="disk full"):
        export_model(ExportableModel(tiny), path, format="torch-export", shape=(32, 32))
    assert [item.name for item in tmp_path.iterdir()] == ["tiny.pt2"]
    assert path.read_text() == "the file before"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(format="tflite"), "format among .*, got 'tflite'"),
        (dict(path="nowhere/model.onnx"), "existing folder"),
        (dict(shape=(32, 64), dynamic=True), "shape of at least 33 33"),
    ],
)
def test_wrong_arguments(tiny, tmp_path, options, message):
    arguments = dict(path="model.onnx", format="onnx", shape=(64, 64)) | options
    path = tmp_path / arguments.pop("path")
    with pytest.raises(ValueError, match=message):
        export_model(ExportableModel(tiny), path, **arguments)


def test_dynamic_models_need_a_divisor(tiny, tmp_path):
    model = ExportableModel(tiny, size_divisor=1)
    with pytest.raises(ValueError, match="expected a size_divisor for a dynamic model"):
        export_model(model, tmp_path / "x.pt2", format="torch-export", shape=(64, 64), dynamic=True)


def test_models_without_a_known_head(tiny, monkeypatch):
    with pytest.raises(ValueError, match="got Linear with NoneType"):
        ExportableModel(torch.nn.Linear(1, 1))
    monkeypatch.setattr(tiny, "panoptic_head", torch.nn.Identity())
    with pytest.raises(ValueError, match="got MaskFormer with Identity"):
        ExportableModel(tiny)


@pytest.mark.parametrize("kind", ["Resize", "hcformer_mm.Resize", Resize])
@pytest.mark.parametrize(("scale", "expected"), [((96, 64), [96, 64]), (64, [64, 64])])
def test_resizing_is_described_however_it_is_written(kind, scale, expected):
    """A config may hold classes in place of names, and one number for both bounds."""
    pipeline = [dict(type="LoadImageFromFile"), dict(type=kind, scale=scale, keep_ratio=True)]
    config = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    assert pipeline_resize(config) == dict(scale=expected, keep_ratio=True)


def test_unknown_files():
    with pytest.raises(ValueError, match=r"expected a file of one of \['.onnx', '.pt2'\]"):
        load_exported(Path("model.trt"))


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_broken_files(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    with pytest.raises(FileNotFoundError, match=f"no such exported model: {path}"):
        load_exported(path)
    for content in (b"", b"some text", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"expected {path} to be a whole exported model"):
            load_exported(path)


@torch.no_grad()
@pytest.mark.parametrize("name", [PSP, SEMANTIC])
def test_semantic_map_of_a_segmentor(name):
    segmentor = lively_model(read_config(name))
    confident(segmentor)
    model = ExportableModel(segmentor, with_postprocess=True, uint8=True)
    images, _ = model.example((70, 90), 2)
    found = model(images, torch.tensor((35, 101)))["semantic"]
    for image, sample in enumerate(predict_bytes(segmentor, images, (35, 101))):
        assert torch.equal(found[image].long(), sample.pred_sem_seg.data[0])
    segmentor.test_cfg.mode = "slide"
    with pytest.raises(ValueError, match="got 'slide' and False; export its logits"):
        ExportableModel(segmentor, with_postprocess=True)


@pytest.mark.slow
def test_results_in_a_program(tmp_path):
    """torch.export, too, records results of any size."""
    detector = lively_model(read_config(TINY_CONFIG, TINY))
    confident(detector)
    detector.panoptic_fusion_head.test_cfg.object_mask_thr = 0.3
    model = ExportableModel(detector, with_postprocess=True).eval()
    path = tmp_path / "tiny.pt2"
    export_model(model, path, format="torch-export", shape=(64, 96))
    exported = load_exported(path)
    image, _ = model.example((64, 96), seed=1)
    for size in ((64, 96), (31, 70)):
        with torch.no_grad():
            expected = model(image, torch.tensor(size))
        found = exported(image, torch.tensor(size))
        for name in ("panoptic", "semantic"):
            assert (found[name] == expected[name]).float().mean() > 0.999
        assert found["panoptic"].shape == (1, *size)
        assert len(found["panoptic"].unique()) > 1


def test_inputs_that_a_file_does_not_take_are_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    ends = [onnx.helper.make_tensor_value_info(name, kind, [1, 3]) for name in ("image", "out")]
    node = onnx.helper.make_node("Identity", ["image"], ["out"])
    graph = onnx.helper.make_graph([node], "copy", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "copy.onnx"
    )
    exported = load_exported(tmp_path / "copy.onnx")
    assert exported(torch.ones(1, 3))["out"].shape == (1, 3)
    for given in ([torch.ones(1, 4)], [torch.ones(1, 3).byte()], [torch.ones(1, 3)] * 2):
        with pytest.raises(
            ValueError, match=r"image tensor\(float\) \[1, 3\], got image .*give these"
        ):
            exported(*given)
