"""BaseInferencer: images in batches, streams and several precisions."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import TRANSFORMS
from PIL import Image
from torch import nn
from torchvision.io import decode_image

from hcformer_mm.acceleration.inference import DTYPES
from hcformer_mm.apis.base_inferencer import BaseInferencer
from hcformer_mm.apis.inputs import InputImage, open_images
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG
from tests.helpers.predictions import scene

SIZES = [(48, 80), (48, 80), (60, 40), (30, 41)]


@pytest.fixture(scope="module")
def images():
    return [np.ascontiguousarray(scene(i)[:h, :w]) for i, (h, w) in enumerate(SIZES)]


@pytest.fixture(scope="module", params=[SHAPES_CONFIG, SEMANTIC_CONFIG])
def files(request, model_files):
    return model_files(request.param)


@pytest.fixture(scope="module")
def detector(model_files):
    return BaseInferencer(*model_files())


@pytest.fixture(scope="module")
def segmentor(model_files):
    return BaseInferencer(*model_files(SEMANTIC_CONFIG))


def samples(inferencer, inputs, **options):
    return [sample for _, sample in inferencer.predict(open_images(inputs), **options)]


def test_batches_of_several_sizes(segmentor, images):
    """A segmentor batches images of one size, with the results of one by one."""
    calls = []
    handle = segmentor.model.backbone.register_forward_pre_hook(
        lambda module, args: calls.append(len(args[0]))
    )
    expected = samples(segmentor, images)
    together = samples(segmentor, images, batch_size=4)
    handle.remove()
    assert calls == [1, 1, 1, 1, 2, 1, 1]
    for one, other in zip(together, expected, strict=True):
        assert torch.allclose(one.seg_logits.data, other.seg_logits.data, atol=1e-4)


def test_detectors_pad_a_batch(detector, images):
    calls = []
    handle = detector.model.backbone.register_forward_pre_hook(
        lambda module, args: calls.append(tuple(args[0].shape))
    )
    results = samples(detector, images, batch_size=3)
    handle.remove()
    # 48x80 becomes 154x256, 60x40 becomes 256x171, 30x41 becomes 187x256; all are padded to 32s.
    assert calls == [(3, 3, 256, 256), (1, 3, 192, 256)]
    assert [sample.ori_shape for sample in results] == SIZES


def test_images_run_when_their_results_are_requested(detector, images):
    read = []

    def frames():
        for image in images:
            read.append(len(read))
            yield image

    results = detector.predict(open_images(frames()), batch_size=2)
    assert read == []
    image, _ = next(results)
    assert image.name == "0"
    assert read == [0, 1]
    assert [image.name for image, _ in results] == ["1", "2", "3"]


def test_progress(detector, images, capsys):
    samples(detector, images[:2], progress=True)
    assert "2/2" in capsys.readouterr().err
    samples(detector, iter(images[:2]), progress=True)
    assert "2it" in capsys.readouterr().err
    samples(detector, images[:1])
    assert capsys.readouterr().err == ""


def scores_and_classes(sample):
    """Sorted scores of instances or logits of classes, and the class map."""
    if isinstance(sample, DetDataSample):
        scores = sample.pred_instances.scores.sort(descending=True)[0]
        return scores, sample.pred_sem_seg.sem_seg
    return sample.seg_logits.data, sample.pred_sem_seg.data


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_close(dtype, files, images):
    inferencer = BaseInferencer(*files, dtype=dtype)
    used = []
    handle = inferencer.model.backbone.register_forward_hook(
        lambda module, args, output: used.append(output[0].dtype)
    )
    ((expected, classes),) = map(scores_and_classes, samples(BaseInferencer(*files), images[0]))
    ((scores, found),) = map(scores_and_classes, samples(inferencer, images[0]))
    handle.remove()
    assert used == [DTYPES[dtype]]
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, expected)
    if scores.dim() == 1:
        assert torch.allclose(scores[:10], expected[:10], atol=0.05)
    assert len(classes.unique()) > 1
    assert (found == classes).float().mean() > 0.99


def test_results_may_be_changed(detector, segmentor, images):
    (sample,) = samples(detector, images[0])
    sample.pred_instances.scores += 1
    assert not sample.pred_instances.scores.requires_grad
    (sample,) = samples(segmentor, images[0])
    for field in (sample.seg_logits, sample.pred_sem_seg):
        field.data += 1
        assert not field.data.is_inference()


def test_models_run_in_inference_mode(detector, images):
    seen = []
    handle = detector.model.backbone.register_forward_hook(
        lambda *_: seen.append(torch.is_inference_mode_enabled())
    )
    samples(detector, images[0])
    handle.remove()
    assert seen == [True]


def test_fast_is_a_choice(files, images):
    """On by default, with the same results up to rounding."""
    fast, plain = BaseInferencer(*files), BaseInferencer(*files, fast=False)
    assert any(isinstance(module, nn.BatchNorm2d) for module in plain.model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.model.modules())
    for image in images:
        (one,), (other,) = samples(fast, image), samples(plain, image)
        if isinstance(other, DetDataSample):
            same = one.pred_panoptic_seg.sem_seg == other.pred_panoptic_seg.sem_seg
            assert same.float().mean() > 0.999
        (scores, found), (expected, classes) = map(scores_and_classes, (one, other))
        atol = 1e-4 * (1 if expected.dim() == 1 else expected.abs().max())
        assert torch.allclose(scores, expected, rtol=0, atol=atol)
        assert (found == classes).float().mean() > 0.999


def test_random_weights_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match=r"no weights .*shapes-panoptic\.py: .* are random"):
        model = BaseInferencer(SHAPES_CONFIG, fast=False, seed=3).model
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "weights.pth")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no weights")
        BaseInferencer(SHAPES_CONFIG, tmp_path / "weights.pth", "cpu")


def test_wrong_arguments(detector, images, tmp_path):
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16, got 'int8'"):
        BaseInferencer(SHAPES_CONFIG, dtype="int8")
    with pytest.raises(ValueError, match="batch_size >= 1, got 0"):
        detector.predict([], batch_size=0)
    assert samples(detector, []) == []


@pytest.fixture
def broken_folder(images, tmp_path):
    """Images ``a.jpg`` and ``e.png``, and between them four files that are none."""
    mmcv.imwrite(images[0], str(tmp_path / "a.jpg"))
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "d.png").write_text("text")
    mmcv.imwrite(images[2], str(tmp_path / "e.png"))
    mmcv.imwrite(np.zeros((2, 1500, 3), np.uint8), str(tmp_path / "f.png"))  # 256 × 0 for the model
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_broken_images_are_skipped_and_named(batch_size, files, broken_folder):
    inferencer, failed = BaseInferencer(*files), []
    with pytest.warns(UserWarning, match="skipped") as caught:
        found = list(
            inferencer.predict(
                open_images(broken_folder),
                batch_size=batch_size,
                on_failure=lambda image, reason: failed.append((image.name, reason)),
            )
        )
    assert [image.name for image, _ in found] == ["a", "e"]
    assert [sample.img_path for _, sample in found] == [
        str(broken_folder / name) for name in ("a.jpg", "e.png")
    ]
    assert [name for name, _ in failed] == ["b", "c", "d", "f"]
    warned = [str(one.message) for one in caught if "skipped" in str(one.message)]
    assert warned == [f"skipped: {reason}" for _, reason in failed]
    for (_, reason), word in zip(failed, ("b.jpg", "c.png", "d.png", "f.png"), strict=True):
        assert reason.startswith("expected a") and word in reason
    assert "1500 × 2 pixels" in failed[3][1]


def test_images_that_a_pipeline_cannot_resize(images, model_files):
    """By our Resize or another one."""
    config = Config.fromfile(model_files()[0])
    thin = np.zeros((2, 1500, 3), np.uint8)
    for kind in ("hcformer_mm.Resize", "mmdet.Resize"):
        config.test_dataloader.dataset.pipeline[1].type = kind
        inferencer = BaseInferencer(config, model_files()[1], fast=False)
        with pytest.raises(ValueError, match=r"image 0 of the input.*(2, 1500|1500 × 2)") as raised:
            samples(inferencer, thin)
        assert "\n" not in str(raised.value)


def test_threads_do_not_share_the_state_of_steps(segmentor, images, monkeypatch):
    """mmseg's ResizeShortestEdge stores the size of an image in itself while it runs."""
    step = TRANSFORMS.build(dict(type="mmseg.ResizeShortestEdge", scale=32, max_size=64))
    resize, both = type(step.resize).transform, Barrier(2)

    def waiting(self, results):
        both.wait(timeout=30)
        return resize(self, results)

    monkeypatch.setattr(type(step.resize), "transform", waiting)
    loader, _, *others = segmentor._pipeline.transforms
    monkeypatch.setattr(segmentor, "_pipeline", Compose([loader, step, *others]))
    with ThreadPoolExecutor(2) as pool:
        prepared = pool.map(segmentor._prepare, map(segmentor.bound, open_images(images[1:3])))
        shapes = [tuple(one["inputs"].shape[1:]) for one in prepared]
    assert shapes == [(32, 53), (48, 32)]


def test_broken_images_are_errors(detector, broken_folder):
    """If they should be, or if nothing else is left."""
    results = detector.predict(open_images(broken_folder), strict=True)
    assert next(results)[0].name == "a"
    with pytest.raises(ValueError, match=r"b\.jpg"):
        next(results)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"d\.png"):
            samples(detector, broken_folder / "d.png")
    for name in ("a.jpg", "e.png"):
        (broken_folder / name).unlink()
    for given in (broken_folder, iter(sorted(broken_folder.iterdir()))):
        with (
            pytest.warns(UserWarning, match="skipped"),
            pytest.raises(ValueError, match="an image that can be read, got none among 4 files"),
        ):
            samples(detector, given)


def test_shrunk_images_are_warned_of_once(detector, segmentor, images):
    """The Shapes models resize to 256 × 192 pixels at most."""
    large = np.zeros((800, 800, 3), np.uint8)
    for inferencer in (detector, segmentor):
        with pytest.warns(UserWarning, match="4 times shorter") as caught:
            samples(inferencer, [images[0], large, large[:, :780]])
        (warning,) = [str(one.message) for one in caught if "shorter" in str(one.message)]
        assert warning.endswith(": 2, the first image 1 of the input from (800, 800) to (192, 192)")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*shorter")
        samples(detector, [*images, large[:760, :760]])


@pytest.mark.parametrize("path", [SHAPES_CONFIG, SEMANTIC_CONFIG])
def test_predictions_that_are_not_finite_are_warned_of(path, model_files, images):
    inferencer = BaseInferencer(*model_files(path), fast=False)
    with torch.no_grad():
        inferencer.model.backbone.backbone.layer4[0].conv1.weight[0] = torch.nan
    with pytest.warns(UserWarning, match=r"not finite .*: 2, the first image 0"):
        samples(inferencer, images[:2])


def test_images_in_memory_are_predicted_like_files(detector, images, tmp_path):
    """As bytes, arrays, tensors and images of Pillow; members of archives keep their names."""
    path = tmp_path / "scene.png"
    mmcv.imwrite(images[0], str(path))
    content = path.read_bytes()
    tensor = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    given = [path, content, mmcv.imread(str(path)), tensor, Image.open(path)]
    found = samples(detector, given)
    member = InputImage("7.cls", 0, path=Path("shard.tar/7.cls.png"), content=content)
    found += [sample for _, sample in detector.predict([member])]
    assert [sample.img_path for sample in found] == [str(path), *[None] * 4, str(member.path)]
    for sample in found:
        for key, value in found[0].pred_instances.items():
            assert torch.equal(sample.pred_instances[key], value)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_arrays_that_the_model_does_not_take(detector, images, batch_size):
    """Lists are refused as a whole, and streams where the array comes."""
    wrong = [images[0], images[1][..., :1]]
    message = (
        r"array \(H, W, 3\), BGR, of uint8, .* as image 1 of the input, got uint8 \(48, 80, 1\)"
    )
    with pytest.raises(ValueError, match=message):
        detector.predict(open_images(wrong), batch_size=batch_size)
    stream = detector.predict(open_images(iter(wrong)))
    next(stream)
    with pytest.raises(ValueError, match=message):
        next(stream)
    with pytest.raises(ValueError, match="got float32"):
        detector.predict(open_images(torch.zeros(3, 4, 4)))
