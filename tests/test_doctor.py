"""The doctor: its judgment of invented environments, and its run on this one."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hcformer_mm import doctor
from hcformer_mm.doctor import Environment, diagnose, pip, try_imports, try_model
from hcformer_mm.version import LIBRARIES, WINDOWS, installed_versions


def requirements(name):
    lines = (Path(__file__).parents[1] / f"requirements/{name}.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


REQUIREMENTS = {
    doctor.MODULES.get(each.name, each.name.replace("-", "_")): each
    for each in [*requirements("runtime"), *map(Requirement, doctor.UNDECLARED)]
}
FORKS = {each.name: str(each.specifier).strip("=") for each in requirements("mminstall")}
ORIGINALS = {
    each.name: str(each.specifier).strip("=")
    for each in requirements("openmmlab")
    if each.name in WINDOWS
}
NO_EXT = "ModuleNotFoundError: No module named 'mmcv._ext'"
NO_TORCH = "ModuleNotFoundError: No module named 'torch'"
NO_GL = "ImportError: libGL.so.1: cannot open shared object file"
GPU = {"CUDA available": True}
MMCV_WHEEL = f"{doctor.short(sys.executable)} {doctor.short(doctor.MMCV_SCRIPT)}"
ORIGINAL_MMCV_WHEEL = f"STACK=openmmlab {MMCV_WHEEL}"
FORKED_MMENGINE = pip("install", "onedl-mmengine<1.0.0,>=0.10.12")
FORKED_MMDET = pip("install", "onedl-mmdetection<4.0.0,>=3.5.1")
FORKED_MMSEG = pip("install", "onedl-mmsegmentation<2.0.0,>=1.4.2")


def problems(versions=FORKS, errors=None, machine=None):
    return list(diagnose(Environment(versions, errors or {}, machine or {}, REQUIREMENTS)))


def without(versions, *names):
    return {name: version for name, version in versions.items() if name not in names}


def replaced(*names):
    return f"{pip('uninstall', '-y', *names)} && "


@pytest.mark.parametrize("versions", [FORKS, ORIGINALS], ids=["forks", "originals"])
@pytest.mark.parametrize("machine", [{}, GPU | {"MMCV CUDA Compiler": "13.0"}], ids=["cpu", "gpu"])
def test_sound_environments(versions, machine):
    assert problems(versions | {"torch": "2.14.1+cpu"}, machine=machine) == []


@pytest.mark.parametrize(
    ("versions", "what", "command"),
    [
        (
            {"torch": "2.4.1+cpu"},
            "torch is 2.4.1+cpu, but hcformer_mm supports torch>=2.5.",
            pip("install", "torch>=2.5"),
        ),
        ({"onedl-mmengine": "0.7.0"}, "onedl-mmengine is 0.7.0, but", FORKED_MMENGINE),
        ({"onedl-mmdetection": "4.0.0"}, "onedl-mmdetection is 4.0.0, but", FORKED_MMDET),
        ({"onedl-mmcv": "3.0.0"}, "onedl-mmcv is 3.0.0, but", MMCV_WHEEL),
        # Both distributions of mmcv own the same files: both go before one comes back.
        ({"mmcv": "2.1.0"}, "mmcv does not match", replaced("mmcv", "onedl-mmcv") + MMCV_WHEEL),
        # A version outside the window does not matter if the distribution has to go.
        (
            {"mmdet": "2.28.0"},
            "mmdet does not match the other libraries of OpenMMLab; onedl-mmdetection does.",
            replaced("mmdet", "onedl-mmdetection") + FORKED_MMDET,
        ),
    ],
)
def test_forks_and_an_unsuitable_version(versions, what, command):
    (found,) = problems(FORKS | versions)
    assert found.what.startswith(what) and found.severity == "error"
    assert found.command == command


def test_fork_among_originals():
    (found,) = problems(without(ORIGINALS, "mmdet") | {"onedl-mmdetection": "3.5.1"})
    assert found.what.startswith("onedl-mmdetection does not match")
    install = pip("install", "mmdet<4.0.0,>=3.3.0")
    assert found.command == replaced("onedl-mmdetection", "mmdet") + install


def test_originals_under_a_forked_detector():
    versions = {"mmengine": "0.7", "mmcv": "2.1.0"} | without(FORKS, "onedl-mmengine", "onedl-mmcv")
    assert [each.what.split()[0] for each in problems(versions)] == ["mmengine", "mmcv"]


@pytest.mark.parametrize(
    ("errors", "what", "command"),
    [
        # Only the cause is named, although later imports fail because of it.
        ({"mmcv.ops": NO_EXT, "mmdet": NO_EXT}, "torch cannot load mmcv's operators", MMCV_WHEEL),
        (
            {"mmseg": "ImportError: no such name"},
            "onedl-mmsegmentation 1.4.2 cannot be imported: ImportError: no such name",
            replaced("onedl-mmsegmentation") + FORKED_MMSEG,
        ),
        (
            dict.fromkeys(["torch", "mmcv.ops", "mmdet"], NO_TORCH),
            "torch is missing.",
            pip("install", "torch>=2.5"),
        ),
        (
            dict.fromkeys(["cv2", "mmcv", "mmdet"], NO_GL),
            "OpenCV needs the system library libGL.",
            "sudo apt-get install libgl1   # Fedora: sudo dnf install mesa-libGL",
        ),
        (
            {"panopticapi": "ModuleNotFoundError: No module named 'panopticapi'"},
            "panopticapi-lite is missing.",
            pip("install", "--no-deps", "panopticapi-lite"),
        ),
    ],
)
def test_failed_imports(errors, what, command):
    (found,) = problems(errors=errors)
    assert found.what.startswith(what) and found.severity == "error"
    assert found.command == command


def test_operators_of_originals_missing():
    (found,) = problems(ORIGINALS, {"mmcv.ops": NO_EXT})
    assert found.command == ORIGINAL_MMCV_WHEEL
    lite = {**without(ORIGINALS, "mmcv"), "mmcv-lite": "2.1.0"}
    (found,) = problems(lite, {"mmcv.ops": NO_EXT})
    assert found.what == "mmcv-lite has no compiled operators."
    assert found.command == replaced("mmcv-lite", "mmcv") + ORIGINAL_MMCV_WHEEL


def test_gpu_without_operators_for_it_is_a_warning():
    (found,) = problems(machine=GPU | {"MMCV CUDA Compiler": "not available"})
    assert found.severity == "warning" and "CPU only" in found.what


def test_two_opencvs_are_a_warning():
    (found,) = problems(FORKS | dict.fromkeys(["opencv-python", doctor.HEADLESS_OPENCV], "4.12"))
    assert found.severity == "warning" and "own the same files" in found.what
    assert Path(found.command.split()[-1]).name == "one_opencv.py"
    assert doctor.OPENCV_SCRIPT.is_file()


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_missing(name):
    fork = LIBRARIES[name].fork
    error = f"ModuleNotFoundError: No module named '{name}'"
    (found,) = problems(without(FORKS, fork), {name: error})
    assert found.what == f"{fork} is missing."
    assert found.severity == ("warning" if name == "mmpretrain" else "error")


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
        assert f"hcformer_mm is not installed here; type {pip('install', '-e', '')}" in last


def test_model_is_built_and_run():
    try_model()


@pytest.mark.slow
def test_this_environment_is_sound():
    command = [sys.executable, "-m", "hcformer_mm.doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained for a step and predicted" in done.stdout
    installed = installed_versions()
    assert all(f"{name:<22} {version}" in done.stdout for name, version in installed.items())
