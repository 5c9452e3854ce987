"""HCFormerInferencer: results as data samples and as files."""

import json
import subprocess
import sys
from itertools import islice

import mmcv
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmseg.structures import SegDataSample
from PIL import Image

import hcformer_mm.apis
from hcformer_mm.apis import ClusterInferencer, HCFormerInferencer
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG
from tests.helpers.predictions import scene, write_video

INSTANCE_CONFIG = "configs/shapes/hcformer_r18_shapes-instance.py"


@pytest.fixture(scope="module")
def inferencers(model_files):
    """One inferencer per kind of result."""
    paths = dict(panoptic=SHAPES_CONFIG, instance=INSTANCE_CONFIG, semantic=SEMANTIC_CONFIG)
    return {kind: HCFormerInferencer(*model_files(path), "cpu") for kind, path in paths.items()}


@pytest.fixture(scope="module")
def inferencer(inferencers):
    return inferencers["panoptic"]


def test_it_is_exported():
    assert hcformer_mm.apis.__all__ == [
        "ClusterInferencer",
        "HCFormerInferencer",
        "VideoInferencer",
    ]
    with pytest.raises(AttributeError, match="no attribute 'Inferencer'"):
        hcformer_mm.apis.Inferencer  # noqa: B018


def test_mmdet_and_mmseg_are_imported_on_demand():
    code = "import sys, hcformer_mm.apis; print({'mmdet', 'mmseg', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("kind", "sample_type", "fields"),
    [
        (
            "panoptic",
            DetDataSample,
            {"pred_panoptic_seg", "pred_segments", "pred_instances", "pred_sem_seg"},
        ),
        ("instance", DetDataSample, {"pred_instances"}),
        ("semantic", SegDataSample, {"pred_sem_seg"}),
    ],
)
def test_data_samples(kind, sample_type, fields, inferencers, folder, images):
    samples = inferencers[kind](folder)
    assert len(samples) == len(images)
    for i, (sample, image) in enumerate(zip(samples, images, strict=True)):
        assert isinstance(sample, sample_type)
        assert sample.img_path == str(folder / f"scene{i}.png")
        predicted = {key for key in sample.keys() if key.startswith(("pred", "seg"))}  # noqa: SIM118
        assert predicted == fields
        assert sample.ori_shape == image.shape[:2]
        for field in fields:
            for key in {"sem_seg", "data", "masks"} & set(sample.get(field).keys()):
                assert sample.get(field).get(key).shape[1:] == image.shape[:2]
    for one, other in zip(inferencers[kind](images), samples, strict=True):
        for field in fields:
            for key, value in one.get(field).items():
                assert torch.equal(value, other.get(field).get(key)), (field, key)


def test_logits_are_kept_on_request(inferencers, images):
    (sample,) = inferencers["semantic"](images[0])
    assert "_seg_logits" not in vars(sample)  # else they would fill the memory
    (sample,) = inferencers["semantic"](images[0], logits=True)
    assert sample.seg_logits.data.shape == (10, *images[0].shape[:2])
    assert torch.equal(sample.seg_logits.data.argmax(0), sample.pred_sem_seg.data[0])


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("panoptic", {"panoptic", "panoptic.json", "instances.json", "semantic"}),
        ("instance", {"instances.json"}),
        ("semantic", {"semantic"}),
    ],
)
def test_files(kind, written, inferencers, folder, tmp_path):
    inferencer = inferencers[kind]
    samples = inferencer(folder, out_dir=tmp_path, batch_size=2)
    assert {path.name for path in tmp_path.iterdir()} == written | {"images.json", "vis"}
    for i, sample in enumerate(samples):
        image = np.asarray(Image.open(folder / f"scene{i}.png"))
        drawn = np.asarray(Image.open(tmp_path / "vis" / f"scene{i}.png"))
        assert np.array_equal(drawn, inferencer.draw(image, sample))
        assert not np.array_equal(drawn, image)
        if "semantic" in written:
            labels = np.asarray(Image.open(tmp_path / "semantic" / f"scene{i}.png"))
            data = sample.pred_sem_seg
            assert np.array_equal(labels, data.get("sem_seg", data.get("data"))[0].numpy())
    if kind != "semantic":
        instances = json.loads((tmp_path / "instances.json").read_text())
        assert len(instances) == sum(len(sample.pred_instances) for sample in samples) > 0


def test_options_of_the_files(inferencer, folder, tmp_path):
    inferencer(folder, out_dir=tmp_path, draw=False)
    assert not (tmp_path / "vis").exists()
    with pytest.raises(ValueError, match=r"expected out_dir for results with the ids of gt\.json"):
        inferencer(folder, ann_file="gt.json")


def test_instances_are_drawn_above_a_score(inferencers, images):
    inferencer = inferencers["instance"]
    (sample,) = inferencer(images[0])
    image = np.ascontiguousarray(images[0][..., ::-1])
    drawn = [inferencer.draw(image, sample, score_thr=score) for score in (0.0, 0.5, 1.0)]
    grays = [np.ptp(one.astype(int), axis=2) == 0 for one in drawn]
    # Without an instance the image is gray.
    assert grays[2].all()
    assert not grays[0].all()


def test_a_video_frame_by_frame(inferencer, tmp_path):
    path = write_video(tmp_path / "street.avi", (scene(i)[:64, :96] for i in range(4)))
    frames = [inferencer(frame)[0] for frame in mmcv.VideoReader(str(path))]
    out = tmp_path / "out"
    results = inferencer.iterate(path, out_dir=out)
    for sample, expected in zip(results, frames, strict=True):
        assert torch.equal(sample.pred_panoptic_seg.sem_seg, expected.pred_panoptic_seg.sem_seg)
    names = [f"street_{i:06}.png" for i in range(4)]
    for kind in ("vis", "panoptic", "semantic"):
        assert sorted(file.name for file in (out / kind).iterdir()) == names
    images = json.loads((out / "images.json").read_text())["images"]
    assert [(image["id"], image["file_name"]) for image in images] == list(enumerate(names))


def test_streams_are_endless(inferencer, images):
    def endless():
        while True:
            yield images[0]

    assert len(list(islice(inferencer.iterate(endless(), batch_size=2), 3))) == 3


def test_errors_are_raised_before_the_model_runs(inferencer, folder, images, tmp_path):
    calls = []
    handle = inferencer.model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="results would both be called scene0"):
        inferencer([folder / "scene0.png"] * 2, out_dir=tmp_path / "out")
    for call in (inferencer, inferencer.iterate):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
            call([images[0], "nowhere.png"])
        with pytest.raises(ValueError, match="nothing is downloaded"):
            call("https://example.org/cat.jpg")
        with pytest.raises(ValueError, match="batch_size >= 1"):
            call(images, batch_size=0)
    handle.remove()
    assert not calls
    assert not (tmp_path / "out").exists()


def test_images_may_have_one_name_if_nothing_is_written(inferencer, folder):
    assert len(inferencer([folder / "scene0.png"] * 2)) == 2


def test_clusters_come_with_the_same_prediction(inferencer, model_files, images):
    clusters = ClusterInferencer(*model_files())
    (image,) = clusters(images[0])
    (sample,) = inferencer(images[0])
    assert torch.equal(image.prediction.pred_panoptic_seg.sem_seg, sample.pred_panoptic_seg.sem_seg)
