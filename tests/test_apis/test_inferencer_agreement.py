"""mmdet's and mmseg's inferencers run our configs and checkpoints and predict what ours does."""

from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import BaseDataElement
from mmseg.apis import MMSegInferencer, inference_model, init_model
from PIL import Image

from hcformer_mm.apis import HCFormerInferencer
from hcformer_mm.apis.inference import inference_pipeline
from hcformer_mm.apis.inputs import open_images
from hcformer_mm.apis.result_writer import ResultWriter
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG

DETECTORS = [SHAPES_CONFIG, "configs/shapes/hcformer_r18_shapes-instance.py"]
SEGMENTORS = [SEMANTIC_CONFIG, "configs/shapes/hc-fcn32s_r18_shapes-semantic.py"]
ZOO = sorted(Path("configs").glob("[!_]*/*.py"))


@pytest.fixture(scope="module")
def paths(folder):
    return [str(folder / f"scene{i}.png") for i in range(2)]


@pytest.fixture(params=DETECTORS)
def detector(request, model_files):
    return [str(path) for path in model_files(request.param)]


@pytest.fixture(params=SEGMENTORS)
def segmentor(request, model_files):
    return [str(path) for path in model_files(request.param)]


def predictions(sample):
    """Predicted tensors by name."""
    found = {}
    for name, value in sample.items():
        if name.startswith(("pred", "seg")) and isinstance(value, BaseDataElement):
            found |= {(name, key): tensor for key, tensor in value.items()}
    return found


def assert_same(samples, expected):
    for sample, other in zip(samples, expected, strict=True):
        one, two = predictions(sample), predictions(other)
        assert set(one) == set(two) != set()
        for key, value in one.items():
            assert torch.equal(value, two[key].cpu()), key


def test_detectors(detector, paths, images, run_device):
    device = str(run_device)
    ours = HCFormerInferencer(*detector, device, fast=False)
    theirs = DetInferencer(*detector, device=device, show_progress=False)
    for given, batch_size in ((paths, 1), (images[:2], 1), (paths, 2)):
        expected = theirs(given, batch_size=batch_size, return_datasamples=True)["predictions"]
        assert_same(ours(given, batch_size=batch_size), expected)
    assert theirs.model.dataset_meta["classes"] == ours.model.dataset_meta["classes"]
    assert theirs.model.dataset_meta["palette"] == ours.model.dataset_meta["palette"]
    model = init_detector(*detector, device=device)
    assert_same(ours(paths), inference_detector(model, paths))


def test_segmentors(segmentor, paths, images, run_device):
    device = str(run_device)
    ours = HCFormerInferencer(*segmentor, device, fast=False)
    theirs = MMSegInferencer(*segmentor, device=device)  # OpenMMLab's own has no show_progress
    for given in (paths, images[:2]):
        assert_same(ours(given, logits=True), theirs(given, return_datasamples=True))
    assert len(predictions(ours(paths[0])[0])) == 1  # without logits
    model = init_model(*segmentor, device=device)
    assert_same(ours(paths, logits=True), [inference_model(model, path) for path in paths])


def test_files_of_detectors(detector, paths, tmp_path):
    """From mmdet's data samples we write the same files; mmdet's own have the same segments."""
    ours = HCFormerInferencer(*detector, "cpu", fast=False)
    ours(paths, out_dir=tmp_path / "ours")
    theirs = DetInferencer(*detector, device="cpu", show_progress=False)
    samples = theirs(paths, return_datasamples=True)["predictions"]
    with ResultWriter(tmp_path / "samples", ours.classes) as writer:
        for image, sample in zip(open_images(paths), samples, strict=True):
            writer.add(image, sample)
    for file in (tmp_path / "ours").rglob("*.*"):
        other = tmp_path / "samples" / file.relative_to(tmp_path / "ours")
        assert file.read_bytes() == other.read_bytes()

    theirs(paths, out_dir=str(tmp_path / "theirs"), no_save_pred=False)
    for path in paths:
        name = Path(path).name
        assert (tmp_path / "theirs" / "vis" / name).is_file()
        assert (tmp_path / "ours" / "vis" / name).is_file()
        if (tmp_path / "ours" / "panoptic").exists():
            one, other = (
                np.asarray(Image.open(tmp_path / file)).reshape(-1, 3)
                for file in (
                    f"ours/panoptic/{name}",
                    f"theirs/preds/{Path(path).stem}_panoptic_seg.png",
                )
            )
            pairs = np.unique(np.concatenate([one, other], axis=1), axis=0)
            assert len(pairs) == len(np.unique(one, axis=0)) == len(np.unique(other, axis=0)) > 1


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_pipelines_of_every_config(path, paths):
    """mmdet's and mmseg's inferencers prepare files and arrays as ours does."""
    config = Config.fromfile(path)
    init_default_scope(config.default_scope)
    assert "visualizer" in config
    ours = inference_pipeline(config)
    kind = MMSegInferencer if config.default_scope == "mmseg" else DetInferencer
    theirs = kind.__new__(kind)._init_pipeline(config.copy())
    expected = theirs(paths[0])["inputs"]
    assert torch.equal(ours(dict(img_path=paths[0], img_id=0))["inputs"], expected)
    image = mmcv.imread(paths[0])
    assert torch.equal(ours(dict(img=image, img_path=None, img_id=0))["inputs"], expected)
