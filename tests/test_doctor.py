"""The doctor: its judgment of invented environments, and its run on this one."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hcformer_mm import doctor
from hcformer_mm.doctor import Environment, Problem, diagnose, pip, try_imports, try_model
from hcformer_mm.version import LIBRARIES


def requirements(name):
    lines = (Path(__file__).parents[1] / f"requirements/{name}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


REQUIREMENTS = {
    doctor.MODULES.get(each.name, each.name.replace("-", "_")): each
    for each in [*requirements("runtime"), *map(Requirement, doctor.UNDECLARED)]
}
FORKS = {each.name: str(each.specifier).strip("=") for each in requirements("mminstall")}
ORIGINALS = {
    "mmengine": "0.10.5",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "mmsegmentation": "1.2.2",
    "mmpretrain": "1.2.0",
}
NO_EXT = "ModuleNotFoundError: No module named 'mmcv._ext'"
NO_TORCH = "ModuleNotFoundError: No module named 'torch'"
NO_GL = "ImportError: libGL.so.1: cannot open shared object file"
GPU = {"CUDA available": True}
MMCV_WHEEL = f"{doctor.short(sys.executable)} " + doctor.short(doctor.MMCV_SCRIPT)
MIM = f"{pip('install', 'openmim')} && mim install 'mmcv<3.0.0,>=2.0.0rc4'"
FORKED_MMDET = pip("install", "onedl-mmdetection<4.0.0,>=3.0.0")


def problems(versions=FORKS, errors=None, machine=None):
    return list(diagnose(Environment(versions, errors or {}, machine or {}, REQUIREMENTS)))


def problem(*arguments, **options) -> Problem:
    (only,) = problems(*arguments, **options)
    return only


def without(versions, *names):
    return {name: version for name, version in versions.items() if name not in names}


@pytest.mark.parametrize("versions", [FORKS, ORIGINALS], ids=["forks", "originals"])
@pytest.mark.parametrize("machine", [{}, GPU | {"MMCV CUDA Compiler": "13.0"}], ids=["cpu", "gpu"])
def test_sound_environments(versions, machine):
    assert problems(versions | {"torch": "2.14.1+cpu"}, machine=machine) == []


@pytest.mark.parametrize(
    ("name", "version", "command"),
    [
        ("torch", "2.4.1+cpu", pip("install", "torch>=2.5")),
        ("onedl-mmengine", "0.7.0", pip("install", "onedl-mmengine<1.0.0,>=0.10.0")),
        ("onedl-mmdetection", "4.0.0", FORKED_MMDET),
        ("onedl-mmcv", "3.0.0", MMCV_WHEEL),
    ],
)
def test_version_outside_the_window(name, version, command):
    found = problem({**FORKS, name: version})
    assert found.what.startswith(f"{name} is {version}; supported is {name}")
    assert found.command == command


@pytest.mark.parametrize(("versions", "command"), [(FORKS, MMCV_WHEEL), (ORIGINALS, MIM)])
def test_operators_missing(versions, command):
    """Only the cause is named, although mmdet fails to import as well."""
    found = problem(versions, {"mmcv.ops": NO_EXT, "mmdet": NO_EXT})
    assert found == (f"torch cannot load mmcv's operators: {NO_EXT}", command, "error")


def test_mmcv_lite():
    versions = {**without(ORIGINALS, "mmcv"), "mmcv-lite": "2.1.0"}
    found = problem(versions, {"mmcv.ops": NO_EXT})
    assert found.command == f"{pip('uninstall', '-y', 'mmcv-lite', 'mmcv')} && {MIM}"
    assert found.what == "mmcv-lite has no compiled operators."


def test_gpu_without_operators_for_it_is_a_warning():
    found = problem(machine=GPU | {"MMCV CUDA Compiler": "not available"})
    assert found.severity == "warning" and "CPU only" in found.what


@pytest.mark.parametrize(
    ("versions", "stranger", "removed", "install"),
    [
        (
            {**without(FORKS, "onedl-mmengine"), "mmengine": "0.10.5"},
            "mmengine",
            "mmengine onedl-mmengine",
            pip("install", "onedl-mmengine<1.0.0,>=0.10.0"),
        ),
        # Both distributions of mmcv own the same files: both go before one comes back.
        ({**FORKS, "mmcv": "2.1.0"}, "mmcv", "mmcv onedl-mmcv", MMCV_WHEEL),
        # A version outside the window does not matter if the distribution has to go.
        ({**FORKS, "mmdet": "2.28.0"}, "mmdet", "mmdet onedl-mmdetection", FORKED_MMDET),
        (
            {**without(ORIGINALS, "mmdet"), "onedl-mmdetection": "3.5.1"},
            "onedl-mmdetection",
            "onedl-mmdetection mmdet",
            pip("install", "mmdet<4.0.0,>=3.0.0"),
        ),
    ],
)
def test_mixed_distributions(versions, stranger, removed, install):
    found = problem(versions)
    assert found.what.startswith(f"{stranger} does not match the other libraries of OpenMMLab")
    assert found.command == f"{pip('uninstall', '-y', removed)} && {install}"


def test_originals_under_a_forked_detector():
    versions = {
        **without(FORKS, "onedl-mmengine", "onedl-mmcv"),
        "mmcv": "2.1.0",
        "mmengine": "0.7",
    }
    strangers = [each.what.split()[0] for each in problems(versions)]
    assert strangers == ["mmengine", "mmcv"]


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_missing(name):
    fork = LIBRARIES[name].fork
    found = problem(without(FORKS, fork), {name: f"ModuleNotFoundError: No module named '{name}'"})
    assert found.what == f"{fork} is missing."
    assert found.severity == ("warning" if name == "mmpretrain" else "error")


def test_library_that_does_not_import():
    found = problem(errors={"mmseg": "ImportError: no such name"})
    assert found.what == "onedl-mmsegmentation 1.4.2 cannot be imported: ImportError: no such name"
    install = pip("install", "onedl-mmsegmentation<2.0.0,>=1.0.0")
    assert found.command == f"{pip('uninstall', '-y', 'onedl-mmsegmentation')} && {install}"


@pytest.mark.parametrize(
    ("errors", "command"),
    [
        (dict.fromkeys(["torch", "mmcv.ops", "mmdet"], NO_TORCH), pip("install", "torch>=2.5")),
        (dict.fromkeys(["cv2", "mmcv", "mmdet"], NO_GL), "sudo apt-get install libgl1   # Fedora:"),
        ({"panopticapi": "no module"}, pip("install", "--no-deps", "panopticapi-lite")),
    ],
)
def test_consequences_of_a_missing_package_are_not_problems(errors, command):
    found = problem(errors=errors)
    assert found.command.startswith(command) and found.severity == "error"


def test_empty_environment_names_everything():
    modules = ["torch", "torchvision", "mmengine", "mmcv", "mmcv.ops", "mmdet", "mmseg"]
    modules += ["mmpretrain", "panopticapi"]
    told = [each.what for each in problems({}, {name: f"No module '{name}'" for name in modules})]
    forks = [library.fork for library in LIBRARIES.values()]
    names = ["torch", "torchvision", "panopticapi-lite", *forks]
    assert told[:-1] == [f"{name} is missing." for name in names]


def test_imports_are_tried_apart(tmp_path, monkeypatch):
    """An import that fails, prints or ends the interpreter does not hide the others."""
    (tmp_path / "printing_module.py").write_text("print('printed')")
    (tmp_path / "failing_module.py").write_text("raise ValueError('of this')")
    (tmp_path / "exiting_module.py").write_text("raise SystemExit('bye')")
    (tmp_path / "deadly_module.py").write_text("import os; os._exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"{kind}_module" for kind in ("printing", "failing", "exiting", "deadly", "missing")]
    assert try_imports([*names, "json"]) == {
        "failing_module": "ValueError: of this",
        "exiting_module": "SystemExit: bye",
        "deadly_module": "the interpreter died",
        "missing_module": "ModuleNotFoundError: No module named 'missing_module'",
    }


def test_clone_that_is_not_installed(monkeypatch, capsys, tmp_path):
    def not_installed(name):
        raise metadata.PackageNotFoundError(name)

    for target, value in (("CONFIG", tmp_path / "none"), ("metadata.requires", not_installed)):
        with monkeypatch.context() as patch:
            patch.setattr(f"hcformer_mm.doctor.{target}", value)
            assert doctor.main() == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert f"hcformer_mm is not installed here: {pip('install', '-e', '')}" in last


def test_model_is_built_and_run():
    try_model()


@pytest.mark.slow
def test_this_environment_is_sound():
    command = [sys.executable, "-m", "hcformer_mm.doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained for a step and predicted" in done.stdout
    assert metadata.version("onedl-mmcv") in done.stdout
