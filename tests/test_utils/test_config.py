"""Configs are found by path, name and package, in a clone that is not installed too."""

import runpy
import shutil
import warnings

import pytest

from hcformer_mm.utils import paths
from hcformer_mm.utils.config import find_config, read_config
from tests.helpers.models import SHAPES_CONFIG

NAME = "hcformer_r18_shapes-panoptic"


@pytest.mark.parametrize(
    "name", [SHAPES_CONFIG, NAME, f"{NAME}.py", f"hcformer_mm::shapes/{NAME}.py"]
)
def test_one_config_has_several_names(name):
    assert find_config(name).samefile(SHAPES_CONFIG)


@pytest.mark.parametrize("installed", [True, False])
def test_resources_of_a_clone(installed, tmp_path):
    """Configs and tools lie beside the package until an installation puts them into it."""
    module = tmp_path / "hcformer_mm/utils/paths.py"
    module.parent.mkdir(parents=True)
    shutil.copy(paths.__file__, module)
    if installed:
        (tmp_path / "hcformer_mm/.mim").mkdir()
    found = runpy.run_path(str(module))["RESOURCES"]
    assert found == (tmp_path / "hcformer_mm/.mim" if installed else tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "nowhere::a.py", "hcformer_mm::a.py", "configs"])
def test_configs_that_are_not_there(name):
    with pytest.raises(ValueError, match=rf"expected .* got '{name}'"):
        find_config(name)


def test_mistyped_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match=rf"no config of that name .* \(did you mean {NAME} or "):
        find_config(NAME.replace("panoptic", "panoptik"))
    with pytest.raises(ValueError, match=r"\(did you mean detr_r50_8xb2-150e_coco"):
        find_config("mmdet::detr/detr_r50_8xb2-150_coco.py")


@pytest.mark.parametrize(
    ("base", "missing"),
    [
        ("./bases.py", r"such as its _base_, got no .*bases\.py \(did you mean base\.py\?\); corr"),
        ("../nowhere/x.py", r"got no .*nowhere/x\.py; correct the path"),
        ("mmdet::_base_/defalt_runtime.py", r"got no .* \(did you mean default_runtime\.py\?\)"),
    ],
)
def test_bases_that_are_missing(base, missing, tmp_path):
    (tmp_path / "base.py").touch()
    (tmp_path / "leaf.py").write_text(f"_base_ = {base!r}")
    with pytest.raises(ValueError, match=rf"expected all files that .*leaf\.py reads, .*{missing}"):
        read_config(tmp_path / "leaf.py")


def test_overrides(tmp_path):
    assert read_config(NAME, {"train_cfg.max_iters": 7}).train_cfg.max_iters == 7
    match = rf"expected overrides of .*{NAME}\.py that apply to it, got .*val_evaluator\.9"
    with pytest.raises(ValueError, match=match):
        read_config(NAME, {"val_evaluator.9.metric": "x"})


def test_overrides_of_other_sections_are_told():
    """MMEngine makes a section of any name."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "pkg_resources", UserWarning)  # MMEngine 0.10 imports it
        read_config(SHAPES_CONFIG, {"randomness.seed": 1, "compile": True, "model.x": 2})
    with pytest.warns(UserWarning, match="sections of .*panoptic.py, got optim_wraper, which"):
        read_config(SHAPES_CONFIG, {"optim_wraper.optimizer.lr": 0.1})
