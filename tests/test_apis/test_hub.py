"""Models by name: the same names in Python, in the tools and in torch.hub."""

import subprocess
import sys
import warnings

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.infer import BaseInferencer

import hcformer_mm
from hcformer_mm import create_model, list_models
from hcformer_mm.apis import HCFormerInferencer
from hcformer_mm.checkpoints.io import load_checkpoint
from hcformer_mm.utils.config import CONFIGS, find_config, included_weights, read_config
from tests.helpers.installing import ROOT
from tests.helpers.models import SHAPES_CONFIG

ALIASES = {
    alias: model["Name"]
    for file in CONFIGS.glob("*/metafile.yml")
    for model in yaml.safe_load(file.read_text())["Models"]
    for alias in model.get("Alias", ())
}
TINY = "hcformer_tiny_shapes"
SMALL = {"model.panoptic_head.num_queries": 7}


def same(one, other):
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def test_models_are_listed_by_name():
    found = list_models()
    assert found == sorted(set(found))
    assert {*ALIASES, *(file.stem for file in CONFIGS.glob("[!_]*/*.py"))} == set(found)
    swin = list_models("*swin*")
    assert "hcformer_swin-s" in swin
    assert swin == [name for name in found if "swin" in name]
    assert list_models("no*") == []


def test_aliases_are_unique_names():
    listed = [
        alias
        for file in CONFIGS.glob("*/metafile.yml")
        for model in yaml.safe_load(file.read_text())["Models"]
        for alias in model.get("Alias", ())
    ]
    assert len(listed) == len(set(listed))
    assert not {*listed} & {file.stem for file in CONFIGS.glob("*/*.py")}
    for alias, name in ALIASES.items():
        assert alias == alias.lower()  # as MMEngine looks it up
        assert find_config(alias) == find_config(name)
        assert name.startswith(alias)
    assert ALIASES["hcformer_r50"] == "hcformer_r50_8xb2-lsj-50e_coco-panoptic"


def test_mmengine_reads_the_aliases():
    models = list(BaseInferencer._get_models_from_metafile(str(ROOT)))
    found = {alias: model["Name"] for model in models for alias in model.get("Alias", [])}
    assert found == ALIASES


def test_mistyped_aliases_are_answered_with_near_ones():
    with pytest.raises(ValueError, match=r"got 'hcformer_r5O': .*\(did you mean hcformer_r50 or"):
        create_model("hcformer_r5O")


def test_models_are_created_as_by_the_inferencer(run_device, tmp_path):
    name, device = "hcformer_r50", str(run_device)
    model = create_model(name, device=device, cfg_options=SMALL)
    assert not model.training
    assert next(model.parameters()).device.type == run_device.type
    assert model.panoptic_head.num_queries == 7
    assert len(model.dataset_meta["classes"]) == 133
    path = tmp_path / "weights.pth"
    torch.save(dict(state_dict=model.state_dict()), path)
    loaded = create_model(find_config(name), path, device=device, cfg_options=SMALL)
    assert same(loaded, model)
    inferencer = HCFormerInferencer(name, path, device, fast=False, cfg_options=SMALL)
    assert same(inferencer.model, model)


def test_pretrained_is_a_path(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint for .* got none: .*tiny_.*converting\.md"):
        create_model(SHAPES_CONFIG, pretrained=True)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        create_model(SHAPES_CONFIG, tmp_path / "none.pth")
    assert same(create_model(SHAPES_CONFIG, pretrained=False), create_model(SHAPES_CONFIG))
    with pytest.raises(ValueError, match="a device of this machine"):
        create_model(SHAPES_CONFIG, device="cuda:77")


@pytest.mark.parametrize(
    "name", [TINY, f"{ALIASES[TINY]}.py", CONFIGS / f"shapes/{ALIASES[TINY]}.py"]
)
def test_weights_that_come_with_the_package(name):
    """They are found by name and by path, and are those of the file, at half precision."""
    model = create_model(name, pretrained=True)
    path = included_weights(read_config(name))
    assert path.stat().st_size <= 8e6
    content = load_checkpoint(path)
    assert model.dataset_meta == content["meta"]["dataset_meta"]
    for key, value in model.state_dict().items():
        assert torch.equal(content["state_dict"][key].to(value.dtype), value)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no weights")
        assert same(HCFormerInferencer(name, device="cpu", fast=False).model, model)


def test_other_files_have_no_weights(tmp_path):
    """A file of the same name in another folder can be another model."""
    config = read_config(TINY)
    config.dump(tmp_path / f"{ALIASES[TINY]}.py")
    assert included_weights(config) is not None
    assert included_weights(read_config(tmp_path / f"{ALIASES[TINY]}.py")) is None
    assert included_weights(Config(config.to_dict())) is None


@pytest.fixture
def clone(monkeypatch, tmp_path):
    """Name of a repository whose clone torch.hub finds where it keeps downloads."""
    (tmp_path / "owner_hcformer_mm_main").symlink_to(ROOT)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "owner/hcformer_mm:main"


def test_torch_hub_lists_models(clone):
    options = dict(skip_validation=True, trust_repo=True)
    names = torch.hub.list(clone, **options)
    entries = {alias.replace("-", "_") for alias in ALIASES}
    assert set(names) == {*entries, "create_model"}
    for name in names:
        assert "pretrained" in torch.hub.help(clone, name, **options)


def test_torch_hub_loads_from_a_clone(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = torch.hub.load(str(ROOT), "hcformer_r50", source="local", cfg_options=SMALL)
    assert same(model, create_model("hcformer_r50", cfg_options=SMALL))
    for alias in ALIASES:
        entry = alias.replace("-", "_")
        if alias == TINY:
            loaded = torch.hub.load(str(ROOT), entry, pretrained=True, source="local")
            assert same(loaded, create_model(TINY, pretrained=True))
        else:
            with pytest.raises(ValueError, match=rf"checkpoint for .*{ALIASES[alias]}.*, got none"):
                torch.hub.load(str(ROOT), entry, pretrained=True, source="local")


def test_import_of_the_package_stays_quick():
    """OpenMMLab's models are imported with the first name that needs them."""
    code = "import sys, hcformer_mm; assert not {'mmcv', 'mmdet', 'mmseg'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hcformer_mm.nothing  # noqa: B018
