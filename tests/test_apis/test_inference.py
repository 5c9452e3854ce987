"""Models, classes and pipelines of configs, found by name."""

import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import LoadPanopticAnnotations, PackDetInputs
from mmengine.config import Config, ConfigDict

from hcformer_mm.apis.inference import build_model, check_device, inference_pipeline, read_classes
from hcformer_mm.utils.config import find_config, without_pretrained
from tests.helpers.models import SHAPES_CONFIG

FCN = "mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py"
MASKFORMER = "mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py"


def test_configs_are_found_by_path_and_by_package():
    assert str(find_config(SHAPES_CONFIG)) == SHAPES_CONFIG
    for name in (FCN, MASKFORMER):
        assert find_config(name).name == name.rpartition("/")[2]


@pytest.mark.parametrize(
    "name",
    ["nowhere.py", "mmseg::fcn/nowhere.py", "no_package::fcn.py", "::", "default_runtime"],
)
def test_unknown_configs(name):
    """Bases have no name."""
    with pytest.raises(ValueError, match=f"expected .*package::path.*{name!r}"):
        find_config(name)


def test_pretrained_weights_are_taken_out_everywhere():
    pretrained = dict(type="Pretrained", checkpoint="torchvision://resnet50")
    normal = dict(type="Normal", layer="Conv2d", std=0.01)
    config = ConfigDict(
        pretrained="open-mmlab://resnet50",
        backbone=dict(backbone=dict(depth=18, init_cfg=pretrained), pretrained=None),
        heads=[dict(init_cfg=[normal, pretrained]), dict(init_cfg=normal)],
        strides=(1, 2),
    )
    assert without_pretrained(config) == ConfigDict(
        pretrained=None,
        backbone=dict(backbone=dict(depth=18, init_cfg=None), pretrained=None),
        heads=[dict(init_cfg=[normal]), dict(init_cfg=normal)],
        strides=(1, 2),
    )


@pytest.mark.parametrize("suffix", ["", ".py"])
def test_configs_are_found_by_their_name_from_any_folder(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "hcformer_r18_shapes-panoptic" + suffix
    assert find_config(name).is_file() and find_config(name).match(SHAPES_CONFIG)
    (tmp_path / name).write_text("")  # a file goes before a name
    assert str(find_config(name)) == name


@pytest.fixture
def config():
    return Config.fromfile(SHAPES_CONFIG)


def test_building_leaves_the_config_as_it_is(config):
    config.model.backbone.backbone.init_cfg = dict(type="Pretrained", checkpoint="nowhere.pth")
    build_model(config)
    assert config.model.backbone.backbone.init_cfg.checkpoint == "nowhere.pth"


def test_weights_are_those_of_the_seed_or_of_a_checkpoint(config, tmp_path):
    other = build_model(config, seed=1).state_dict()
    torch.save(dict(state_dict=other), tmp_path / "weights.pth")
    options = (dict(), dict(seed=0), dict(checkpoint=tmp_path / "weights.pth"))
    default, again, loaded = (build_model(config, **o).state_dict() for o in options)
    name = "backbone.backbone.conv1.weight"
    assert torch.equal(default[name], again[name])
    assert not torch.equal(default[name], other[name])
    assert torch.equal(loaded[name], other[name])


def test_models_that_cannot_be_built(config, tmp_path):
    torch.save(build_model(config).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth does not fit .*fcn_r18"):
        build_model(Config.fromfile(find_config(FCN)), checkpoint=tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"expected a detector of mmdet or .*got ResNet"):
        build_model(Config(dict(model=dict(type="mmdet.ResNet", depth=18))))
    with pytest.raises(ValueError, match="expected a config with a model"):
        build_model(Config(dict(dataset=dict())))


def test_classes_of_the_config(config):
    classes = read_classes(build_model(config))
    assert len(classes.names) == len(classes.palette) > len(classes.things) == 6


def test_classes_of_the_checkpoint_go_first(config, tmp_path):
    model = build_model(config)
    meta = dict(dataset_meta=dict(classes=("one", "two"), thing_classes=["two"], palette="random"))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / "weights.pth")
    classes = read_classes(build_model(config, tmp_path / "weights.pth"))
    assert classes.names == ("one", "two")
    assert classes.things == {"two"}
    assert classes.palette is None


def test_nobody_names_the_classes(config):
    config.pop("test_dataloader")
    model = build_model(config)
    with pytest.raises(ValueError, match="expected dataset_meta with the classes"):
        read_classes(model)
    with pytest.raises(ValueError, match="expected a test_dataloader with a pipeline"):
        inference_pipeline(config)


def test_metainfo_of_a_dataset_and_wrapped_datasets(config):
    dataset = config.test_dataloader.dataset
    dataset.metainfo = dict(classes=("a",) * 10)
    config.test_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=dataset)
    assert read_classes(build_model(config)).names == ("a",) * 10


def test_pipelines_that_read_no_file(config):
    config.test_dataloader.dataset.pipeline = config.test_dataloader.dataset.pipeline[1:]
    with pytest.raises(ValueError, match="begins with LoadImageFromFile"):
        inference_pipeline(config)


def test_steps_that_are_classes_as_in_new_style_configs(config):
    steps = [
        dict(type=LoadImageFromFile),
        dict(type=LoadPanopticAnnotations),
        dict(type=PackDetInputs),
    ]
    config.test_dataloader.dataset.pipeline = steps
    names = [type(step).__name__ for step in inference_pipeline(config).transforms]
    assert names == ["LoadImageFromFile", "PackDetInputs"]


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=f"expected a device of this machine, got {device}: "):
        check_device(device)
