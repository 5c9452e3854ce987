"""The doctor: its judgment of made-up environments, and its run on this one."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hcformer_mm.doctor import MINIMUM_TORCH, Environment, diagnose, table, try_imports, try_model
from hcformer_mm.version import LIBRARIES

FORKS = {
    "onedl-mmengine": "0.10.12",
    "onedl-mmcv": "2.3.6",
    "onedl-mmdetection": "3.5.1",
    "onedl-mmsegmentation": "1.4.2",
    "onedl-mmpretrain": "1.3.6",
}
ORIGINALS = {
    "mmengine": "0.10.5",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "mmsegmentation": "1.2.2",
    "mmpretrain": "1.2.0",
}
NO_EXT = "ModuleNotFoundError: No module named 'mmcv._ext'"
NO_TORCH = "ModuleNotFoundError: No module named 'torch'"


def environment(versions: dict[str, str] | None = None, **found: Any) -> Environment:
    """A sound environment of the forks, except for what is given."""
    base = Environment(python=(3, 11, 7), versions=FORKS if versions is None else versions)
    return dataclasses.replace(base, **found)


def without(versions: dict[str, str], *names: str) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name not in names}


@pytest.mark.parametrize("versions", [FORKS, ORIGINALS], ids=["forks", "originals"])
def test_sound_environments(versions: dict[str, str]) -> None:
    assert diagnose(environment(versions)) == []


def test_gpu_with_operators_for_it_is_sound() -> None:
    assert diagnose(environment(cuda="13.0", ops_cuda="13.0")) == []


def test_old_python() -> None:
    (problem,) = diagnose(environment(python=(3, 9, 2)))
    assert "3.9.2" in problem.what and "3.10" in problem.what
    assert problem.command == "PYTHON=python3.11 make install"


def test_old_torch() -> None:
    (problem,) = diagnose(environment({**FORKS, "torch": "2.4.1+cpu"}))
    assert "torch is 2.4.1+cpu; 2.5 or newer" in problem.what
    assert "'torch>=2.5'" in problem.command
    assert diagnose(environment({**FORKS, "torch": "2.14.1"})) == []


def test_oldest_torch_is_that_of_the_requirements() -> None:
    runtime = Path(__file__).parents[1] / "requirements" / "runtime.txt"
    assert f"torch>={'.'.join(map(str, MINIMUM_TORCH))}" in runtime.read_text().splitlines()


def test_operators_missing() -> None:
    """One problem is named, although mmdet fails of it too."""
    (problem,) = diagnose(environment(errors={"mmcv.ops": NO_EXT, "mmdet": NO_EXT}))
    assert problem.severity == "error"
    assert "no operators" in problem.what and "mmcv._ext" in problem.what
    assert problem.command == "python tools/misc/mmcv_wheel.py"


def test_operators_missing_in_the_original() -> None:
    (problem,) = diagnose(environment(ORIGINALS, errors={"mmcv.ops": NO_EXT}))
    assert problem.command == (
        "python -m pip install openmim && mim install 'mmcv>=2.0.0rc4,<3.0.0'"
    )


def test_mmcv_lite() -> None:
    versions = {**without(ORIGINALS, "mmcv"), "mmcv-lite": "2.1.0"}
    (problem,) = diagnose(environment(versions, errors={"mmcv.ops": NO_EXT}))
    assert problem.command.startswith("python -m pip uninstall -y mmcv-lite && ")
    assert "mim install" in problem.command


def test_gpu_without_operators_for_it_is_a_warning() -> None:
    (problem,) = diagnose(environment(cuda="13.0"))
    assert problem.severity == "warning"
    assert "CPU only" in problem.what


def test_original_libraries_under_a_forked_detector() -> None:
    versions = {
        "onedl-mmdetection": "3.5.1",
        "onedl-mmsegmentation": "1.4.2",
        "onedl-mmpretrain": "1.3.6",
        "mmcv": "2.1.0",
        "mmengine": "0.10.5",
    }
    (problem,) = diagnose(environment(versions))
    assert "Mismatched" in problem.what
    assert problem.command == (
        "python -m pip uninstall -y mmengine mmcv"
        " && python -m pip install 'onedl-mmengine>=0.10.0,<1.0.0'"
        " && python tools/misc/mmcv_wheel.py"
    )


def test_both_distributions_of_mmcv() -> None:
    """They share their files, so both are removed before one comes back."""
    (problem,) = diagnose(environment({**FORKS, "mmcv": "2.1.0"}))
    assert problem.command == (
        "python -m pip uninstall -y mmcv onedl-mmcv && python tools/misc/mmcv_wheel.py"
    )


def test_stranger_outside_the_window_is_only_removed() -> None:
    (problem,) = diagnose(environment({**FORKS, "mmdet": "2.28.0"}))
    assert problem.command == (
        "python -m pip uninstall -y mmdet onedl-mmdetection"
        " && python -m pip install 'onedl-mmdetection>=3.0.0,<4.0.0'"
    )


def test_a_fork_among_originals() -> None:
    versions = {**without(ORIGINALS, "mmdet"), "onedl-mmdetection": "3.5.1"}
    (problem,) = diagnose(environment(versions))
    assert problem.command == (
        "python -m pip uninstall -y onedl-mmdetection"
        " && python -m pip install 'mmdet>=3.0.0,<4.0.0'"
    )


@pytest.mark.parametrize(
    ("name", "version", "command"),
    [
        ("onedl-mmengine", "0.7.0", "python -m pip install 'onedl-mmengine>=0.10.0,<1.0.0'"),
        ("onedl-mmdetection", "4.0.0", "python -m pip install 'onedl-mmdetection>=3.0.0,<4.0.0'"),
        ("onedl-mmcv", "3.0.0", "python tools/misc/mmcv_wheel.py"),
    ],
)
def test_version_outside_the_window(name: str, version: str, command: str) -> None:
    (problem,) = diagnose(environment({**FORKS, name: version}))
    assert f"{name} is {version}" in problem.what
    assert problem.command == command


@pytest.mark.parametrize("name", LIBRARIES)
def test_library_missing(name: str) -> None:
    versions = without(FORKS, LIBRARIES[name].fork)
    errors = {name: f"ModuleNotFoundError: No module named '{name}'"}
    (problem,) = diagnose(environment(versions, errors=errors))
    assert problem.what == f"{name} is missing."
    assert problem.severity == ("warning" if name == "mmpretrain" else "error")


def test_library_that_does_not_import() -> None:
    (problem,) = diagnose(environment(errors={"mmseg": "ImportError: no such name"}))
    assert "mmseg 1.4.2 cannot be imported: ImportError: no such name" in problem.what
    assert problem.command == (
        "python -m pip uninstall -y onedl-mmsegmentation"
        " && python -m pip install 'onedl-mmsegmentation>=1.0.0,<2.0.0'"
    )


def test_empty_environment_names_everything() -> None:
    imports = ["torch", "torchvision", "mmengine", "mmcv", "mmcv.ops", "mmdet", "panopticapi"]
    errors = {name: f"ModuleNotFoundError: No module named '{name}'" for name in imports}
    problems = diagnose(environment({}, errors=errors))
    told = " ".join(problem.what for problem in problems)
    for name in ("torch", "torchvision", *LIBRARIES, "panopticapi"):
        assert f"{name} is missing" in told or (name == "panopticapi" and name in told)
    assert problems[0].what == "torch is missing."


def test_consequences_of_a_missing_torch_are_not_problems() -> None:
    errors = dict.fromkeys(["torch", "mmcv.ops", "mmdet", "mmseg"], NO_TORCH)
    (problem,) = diagnose(environment(errors=errors))
    assert problem.command == "python -m pip install torch"


def test_missing_system_library_of_opencv() -> None:
    error = "ImportError: libGL.so.1: cannot open shared object file"
    (problem,) = diagnose(environment(errors={"cv2": error, "mmcv": error, "mmdet": error}))
    assert problem.command.startswith("sudo apt-get install libgl1")


def test_panopticapi_missing() -> None:
    error = "ModuleNotFoundError: No module named 'panopticapi'"
    (problem,) = diagnose(environment(errors={"panopticapi": error}))
    assert problem.severity == "error"
    assert problem.command == "python -m pip install --no-deps panopticapi-lite"


def test_commands_call_the_interpreter_that_was_examined() -> None:
    found = environment(
        without(FORKS, "onedl-mmdetection"), executable=".venv/bin/python", cuda="13.0"
    )
    commands = [problem.command for problem in diagnose(found)]
    assert len(commands) == 2
    assert all(command.startswith(".venv/bin/python ") for command in commands)


def test_table_shows_versions_and_failures() -> None:
    lines = table(environment(errors={"mmcv.ops": NO_EXT, "mmdet": NO_EXT})).splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert "0.10.12 (onedl-mmengine)" in rows["mmengine"]
    assert rows["mmdet"].endswith("cannot be imported")
    assert rows["mmcv.ops"].split() == ["mmcv.ops", "none"]
    assert rows["torch"].split() == ["torch", "missing"]


def test_imports_are_tried_apart(tmp_path, monkeypatch) -> None:
    """An import that fails, prints or ends the interpreter does not hide the others."""
    (tmp_path / "printing_module.py").write_text("print('[\"import outcome\"]')")
    (tmp_path / "failing_module.py").write_text("raise ValueError('of this')")
    (tmp_path / "deadly_module.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ["printing_module", "failing_module", "deadly_module", "json", "no_such_module"]
    outcomes = try_imports(names)
    assert outcomes["printing_module"] == (None, None)
    assert outcomes["failing_module"] == ("ValueError: of this", None)
    assert outcomes["deadly_module"] == ("the interpreter died", None)
    assert outcomes["json"] == (None, None)
    assert outcomes["no_such_module"][0] == (
        "ModuleNotFoundError: No module named 'no_such_module'"
    )


def test_model_is_built_and_run() -> None:
    try_model()


@pytest.mark.slow
def test_this_environment_is_sound() -> None:
    command = [sys.executable, "-m", "hcformer_mm.doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained a step and predicted" in done.stdout
