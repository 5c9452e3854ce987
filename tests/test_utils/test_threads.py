"""OpenMP's threads spin for a short while in every command, unless the user says otherwise."""

import ast
import os
import subprocess
import sys

from hcformer_mm.utils.threads import SPINNING, spin_briefly

import pytest

from tests.helpers.installing import ROOT

COMMANDS = [
    path.relative_to(ROOT)
    for folder in ("tools", "demo", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__main__" in path.read_text() and "hcformer_mm." in path.read_text()
]
SETTINGS = (*SPINNING, "OMP_WAIT_POLICY")


@pytest.fixture
def environment(monkeypatch):
    """The variables of this process, to be changed, without those about waiting threads."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return os.environ


def test_spinning_is_short_by_default(environment):
    spin_briefly()
    assert {name: environment.get(name) for name in SETTINGS} == {
        "GOMP_SPINCOUNT": "1000",
        "KMP_BLOCKTIME": "1",
        "OMP_WAIT_POLICY": None,
    }


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "infinite"}])
def test_variables_of_the_user_are_kept(environment, chosen):
    environment.update(chosen)
    spin_briefly()
    assert {name: environment[name] for name in SPINNING} == SPINNING | chosen


def test_policy_of_the_user_is_kept(environment):
    environment["OMP_WAIT_POLICY"] = "active"
    spin_briefly()
    assert not SPINNING.keys() & environment.keys()


@pytest.mark.parametrize("path", [*COMMANDS, "tests/conftest.py"], ids=str)
def test_commands_import_the_package_before_torch(path):
    imported = []
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported.append(node.module)
    without_torch = {"cv2", "matplotlib", "numpy", "psutil", "pytest", "shapely", "yaml"}
    without_torch |= sys.stdlib_module_names
    first = next(name for name in imported if name.partition(".")[0] not in without_torch)
    assert first.startswith("hcformer_mm."), "import hcformer_mm.utils.threads first"


@pytest.mark.skipif(sys.platform != "linux", reason="torch comes with libgomp on Linux")
def test_openmp_takes_the_value(environment):
    """libgomp prints its settings when it is loaded."""
    command = [sys.executable, "-c", "import hcformer_mm, torch"]
    env = {**environment, "OMP_DISPLAY_ENV": "verbose"}
    told = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("this torch has another OpenMP")
    assert "GOMP_SPINCOUNT = '1000'" in told
