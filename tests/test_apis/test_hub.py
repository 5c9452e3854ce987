"""Models by name: the same names in Python, in the tools and in torch.hub."""

import subprocess
import sys

import pytest
import torch
import yaml
from mmengine.infer import BaseInferencer

import hcformer_mm
from hcformer_mm import create_model, list_models
from hcformer_mm.apis import HCFormerInferencer
from hcformer_mm.utils.config import CONFIGS, find_config
from tests.helpers.installing import ROOT
from tests.helpers.models import SHAPES_CONFIG

ALIASES = {
    alias: model["Name"]
    for file in CONFIGS.glob("*/metafile.yml")
    for model in yaml.safe_load(file.read_text())["Models"]
    for alias in model.get("Alias", ())
}
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
    with pytest.raises(ValueError, match=r"path of a checkpoint .* got True: .*converting\.md"):
        create_model(SHAPES_CONFIG, pretrained=True)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        create_model(SHAPES_CONFIG, tmp_path / "none.pth")
    assert same(create_model(SHAPES_CONFIG, pretrained=False), create_model(SHAPES_CONFIG))
    with pytest.raises(ValueError, match="a device of this machine"):
        create_model(SHAPES_CONFIG, device="cuda:77")


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
        with pytest.raises(ValueError, match=f"as pretrained of {alias}, got True"):
            torch.hub.load(str(ROOT), alias.replace("-", "_"), pretrained=True, source="local")


def test_import_of_the_package_stays_quick():
    """OpenMMLab's models are imported with the first name that needs them."""
    code = "import sys, hcformer_mm; assert not {'mmcv', 'mmdet', 'mmseg'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hcformer_mm.nothing  # noqa: B018
