"""The package: its version, supported versions of OpenMMLab, and the contents of a wheel."""

import os
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import hcformer_mm
from hcformer_mm.version import LIBRARIES, WINDOWS, check_versions, outside_window
from tests.helpers.installing import ROOT, copy_source

MIM = "hcformer_mm/.mim/"


def pins(name):
    """Exact versions in requirements/NAME.txt."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_version_is_the_installed_one():
    assert hcformer_mm.__version__ == metadata.version("hcformer_mm")


@pytest.mark.parametrize(("kind", "file"), [("fork", "mminstall"), ("original", "openmmlab")])
def test_the_lowest_supported_versions_are_tested(kind, file):
    names = {getattr(library, kind) for library in LIBRARIES.values()}
    lowest = {name: WINDOWS[name].split(",")[0].removeprefix(">=") for name in names}
    assert pins(file).items() >= lowest.items()
    assert outside_window(lowest) == {}


@pytest.mark.parametrize(
    ("versions", "supported"),
    [
        ({}, True),
        ({"mmcv": "2.1.0"}, True),
        ({"mmcv": "2.1.0rc0"}, False),
        ({"onedl-mmcv": "2.1.0"}, False),
        ({"mmcv": "2.1.0", "mmdet": "3.3.0", "mmsegmentation": "1.2.2"}, True),
        ({"mmdet": "2.28.0"}, False),
        ({"onedl-mmsegmentation": "2.0.0"}, False),
        ({"onedl-mmdetection": "3.5.1", "mmcv": "3.0.0"}, False),
    ],
)
def test_window(versions, supported):
    if supported:
        check_versions(versions)
        return
    with pytest.raises(ImportError, match="does not work with") as raised:
        check_versions(versions)
    name = max(versions, key=lambda key: key in outside_window(versions))
    assert f"{name} {versions[name]}" in str(raised.value)
    assert f"pip install '{name}>=" in str(raised.value)


def fake_distribution(folder, name, version):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_import_refuses_an_unsupported_library(tmp_path):
    fake_distribution(tmp_path, "mmdet", "2.28.0")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import hcformer_mm"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "does not work with mmdet 2.28.0" in done.stderr
    assert "pip install 'mmdet>=3.3.0,<4.0.0'" in done.stderr


def test_ops_need_torch_alone():
    """And the package itself needs nothing."""
    code = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith(('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')):\n"
        "            raise ImportError(f'{name} was imported')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import hcformer_mm\n"
        "assert 'torch' not in sys.modules\n"
        "import hcformer_mm.ops\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def files_below(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def build(source, out):
    before = files_below(source)
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), "."]
    done = subprocess.run([sys.executable, *command], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    left = {name for name in files_below(source) - before if ".egg-info/" not in name}
    assert not left, "the build left files in the source"
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheels(source, tmp_path_factory):
    """Two wheels of one source, from which files are removed in between."""
    gone = [source / folder / "gone.py" for folder in ("hcformer_mm", "configs")]
    cache = source / "tools" / "__pycache__" / "train.pyc"
    cache.parent.mkdir()
    for file in (*gone, cache):
        file.touch()
    first = build(source, tmp_path_factory.mktemp("first"))
    for file in gone:
        file.unlink()
    second = build(source, tmp_path_factory.mktemp("second"))
    return zipfile.ZipFile(first), zipfile.ZipFile(second)


@pytest.fixture
def wheel(wheels):
    return wheels[1]


def test_removed_file_is_not_in_the_next_wheel(wheels):
    """Folders that a build leaves behind would bring it back."""
    counts = [sum(name.endswith("gone.py") for name in each.namelist()) for each in wheels]
    assert counts == [2, 0]


def test_wheel_carries_configs_tools_and_index(source, wheel):
    carried = {name.removeprefix(MIM) for name in wheel.namelist() if name.startswith(MIM)}
    expected = {
        f"{folder}/{name}"
        for folder in ("configs", "tools", "requirements")
        for name in files_below(source / folder)
        if "__pycache__" not in name
    }
    assert carried == expected | {"model-index.yml"}
    assert "tools/misc/mmcv_wheel.py" in carried


def test_wheel_carries_the_package_and_nothing_else(source, wheel):
    modules = {name for name in wheel.namelist() if not name.startswith(MIM)}
    top = {name.partition("/")[0] for name in modules}
    assert top == {"hcformer_mm", f"hcformer_mm-{hcformer_mm.__version__}.dist-info"}
    python = {f"hcformer_mm/{n}" for n in files_below(source / "hcformer_mm") if n.endswith(".py")}
    assert python == {name for name in modules if name.endswith(".py")}


def test_wheel_asks_for_ranges_and_offers_the_stack(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    text = wheel.read(name).decode()
    lines = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("Requires-D")]
    wanted = [Requirement(line) for line in lines]
    always = {item.name: item.specifier for item in wanted if item.marker is None}
    assert {"torch", "numpy", "pycocotools"} <= set(always)
    assert not [item for item in always.values() if "==" in str(item)]
    for pinned in (*pins("torch").items(), *pins("constraints").items()):
        assert pinned[0] not in always or Version(pinned[1]) in always[pinned[0]]
    offered = {i.name for i in wanted if i.marker and i.marker.evaluate({"extra": "mminstall"})}
    assert offered == set(pins("mminstall"))
    everything = {i.name for i in wanted if i.marker and i.marker.evaluate({"extra": "all"})}
    assert offered | {"pytest"} <= everything


def test_editable_install_links_into_the_clone():
    mim = ROOT / "hcformer_mm" / ".mim"
    for name in ("configs", "tools"):
        assert (mim / name).resolve() == ROOT / name
