"""The wheel of mmcv: keys, cache, checks before a build, and what a build leaves behind."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mmcv_build
import mmcv_wheel
import pytest
from mmcv_wheel import InstallError
from stacks import STACKS

from tests.helpers.installing import ROOT, executable

KEY = dict(mmcv="2.3.6", torch="2.14.1+cu130", python="cp311", machine="linux-x86_64", device="cpu")


@pytest.mark.parametrize("pin", ["onedl-mmcv==2.3.6", "mmcv==2.1.0"])
def test_pinned_version(tmp_path, pin):
    file = tmp_path / "some.txt"
    file.write_text(f"mmcv-lite==1.0\n{pin}  # source only\n")
    assert mmcv_wheel.pinned_mmcv(file) == pin
    file.write_text("mmcv>=2.1\n")
    with pytest.raises(InstallError, match=r"no exact version of mmcv"):
        mmcv_wheel.pinned_mmcv(file)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("mmcv", "2.3.5"),
        ("torch", "2.14.1+cpu"),
        ("python", "cp312"),
        ("machine", "linux-aarch64"),
        ("device", "cuda13.0"),
    ],
)
def test_wheel_key_differs_between_environments(part, other):
    key = mmcv_wheel.wheel_key(**KEY)
    assert key != mmcv_wheel.wheel_key(**KEY | {part: other})
    assert "/" not in key and " " not in key


def test_cache_root(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    env = {}
    assert mmcv_wheel.cache_root(env) == tmp_path / ".cache/hcformer_mm"
    env["XDG_CACHE_HOME"] = str(tmp_path / "caches")
    assert mmcv_wheel.cache_root(env) == tmp_path / "caches/hcformer_mm"
    env["HCFORMER_MM_CACHE"] = str(tmp_path / "wheels")
    assert mmcv_wheel.cache_root(env) == tmp_path / "wheels"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (None, r"no C\+\+ compiler was found(.|\n)*apt-get install g\+\+(.|\n)*dnf install gcc-c"),
        ("echo 'unrecognized option -std=c++20' >&2; exit 1", r"g\+\+ cannot compile C\+\+20"),
    ],
    ids=["missing", "old"],
)
def test_unusable_compiler_is_named(tmp_path, script, told):
    if script:
        executable(tmp_path / "g++", script)
    with pytest.raises(InstallError, match=told):
        mmcv_build.find_compiler({"PATH": str(tmp_path)})


def test_first_working_compiler_is_taken(tmp_path):
    executable(tmp_path / "c++", "exit 1")
    executable(tmp_path / "clang++", "exit 0")
    assert mmcv_build.find_compiler({"PATH": str(tmp_path)}) == [str(tmp_path / "clang++")]
    ccache = executable(tmp_path / "ccache", "exit 0")
    env = {"PATH": str(tmp_path), "CXX": "ccache clang++"}
    assert mmcv_build.find_compiler(env) == [str(ccache), "clang++"]


def test_missing_header_is_named(tmp_path):
    compiler = executable(tmp_path / "c++", "exit 1")
    told = r"Python\.h(.|\n)*/include(.|\n)*python3\.\d+-dev(.|\n)*python3\.\d+-devel"
    with pytest.raises(InstallError, match=told):
        mmcv_build.check_python_header([str(compiler)], "/include", dict(os.environ))


def test_wrapper_sets_the_standard_last(tmp_path):
    compiler = executable(tmp_path / "a compiler", 'echo "$@"')
    wrapper = tmp_path / "bin" / "c++"
    mmcv_build.write_wrapper(wrapper, [str(compiler), "-v"], headers=tmp_path / "some headers")
    done = subprocess.run([wrapper, "-std=c++17", "x y.cpp"], capture_output=True, text=True)
    assert done.stdout.split() == ["-v", "-std=c++17", "x", "y.cpp", "-std=c++20"]


def test_build_without_cuda_hides_the_gpu(tmp_path):
    common = dict(wrapper=tmp_path / "c++", jobs=3)
    env = mmcv_build.build_environment({"FORCE_CUDA": "1"}, cuda=False, **common)
    assert env["CUDA_VISIBLE_DEVICES"] == "" and env["FORCE_CUDA"] == "0"
    assert env["MAX_JOBS"] == "3" and env["MMCV_WITH_OPS"] == "1"
    env = mmcv_build.build_environment({"FORCE_CUDA": "1"}, cuda=True, **common)
    assert "CUDA_VISIBLE_DEVICES" not in env and env["FORCE_CUDA"] == "1"
    assert "-std=c++20" in env["NVCC_APPEND_FLAGS"]


@pytest.mark.parametrize(
    ("env", "cores", "free", "jobs"),
    [
        ({}, 2, 20.0, 2),
        ({}, 64, 12.0, 8),
        ({}, 4, 0.5, 1),
        ({}, 4, None, 4),
        ({"MAX_JOBS": "3"}, 64, 1.0, 3),
    ],
)
def test_jobs_fit_cores_and_memory(env, cores, free, jobs):
    assert mmcv_build.job_count(env, cores, free) == jobs


def test_progress_and_advice_come_from_the_log():
    assert mmcv_build.progress("running build_ext") == "preparing"
    assert mmcv_build.progress("  [1/78] c++ -MMD\n  [42/78] c++ -MMD\n") == "file 42 of 78"
    assert "MAX_JOBS=1" in mmcv_build.advice("c++: fatal error: Killed signal terminated cc1plus")
    assert "disk" in mmcv_build.advice("write: No space left on device")


def test_failed_build_shows_the_end_of_its_log(tmp_path):
    script = executable(tmp_path / "build", "seq 100; echo the reason >&2; exit 1")
    with pytest.raises(InstallError) as raised:
        mmcv_build.run_logged([str(script)], env=os.environ, log=tmp_path / "log")
    told = str(raised.value)
    assert "\n100\nthe reason\n" in told and "\n50\n" not in told
    assert str(tmp_path / "log") in told


def wait_until(condition):
    """Poll for at most 10 seconds; the last result."""
    deadline = time.monotonic() + 10
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def test_interrupted_build_leaves_no_process(tmp_path):
    """The compilers below pip end with it."""
    started = tmp_path / "started"
    script = executable(
        tmp_path / "build",
        f"sleep 60 & echo $! > {started}.partial\nmv {started}.partial {started}\nwait",
    )
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(ROOT / 'tools/misc')!r}); import mmcv_build\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"log = Path({str(tmp_path / 'log')!r})\n"
        f"mmcv_build.run_logged([{str(script)!r}], env=os.environ, log=log)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until(started.exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143

    def ended():
        command = ["ps", "-o", "stat=", "-p", started.read_text().strip()]
        state = subprocess.run(command, capture_output=True, text=True).stdout
        return not state.strip() or state.startswith("Z")

    assert wait_until(ended), "a process of the build is still running"


class Machine:
    """A machine without a GPU, on which pip, the build and the loading of operators are recorded.

    ``load_errors`` are the results of loading the operators, one for each attempt; then they load.
    """

    def __init__(self, monkeypatch, cache):
        self.installed, self.built, self.load_errors = [], [], []
        monkeypatch.setattr(mmcv_wheel, "pip", self.pip)
        monkeypatch.setattr(mmcv_wheel.mmcv_build, "build", self.build)
        monkeypatch.setattr(mmcv_wheel, "load_error", self.load_error)
        monkeypatch.setattr(mmcv_wheel, "cuda_release", lambda env: None)
        monkeypatch.setattr(mmcv_wheel, "is_installed", lambda name, version: False)
        monkeypatch.delenv("STACK", raising=False)
        monkeypatch.setenv("HCFORMER_MM_CACHE", str(cache))
        monkeypatch.delenv("HCFORMER_MM_WHEELS", raising=False)

    def pip(self, *arguments, **_):
        self.installed.append(arguments[-1])
        return 0

    def build(self, requirement, target, work, **_):
        self.built.append(requirement)
        target.mkdir(parents=True, exist_ok=True)
        (target / "onedl_mmcv.whl").write_text("built")
        return target / "onedl_mmcv.whl"

    def load_error(self, **_):
        return self.load_errors.pop(0) if self.load_errors else None


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path / "cache")


def test_wheel_is_built_once_and_kept(machine):
    mmcv_wheel.main()
    mmcv_wheel.main()
    assert len(machine.built) == 1
    assert len(machine.installed) == 2


@pytest.mark.parametrize("stack", STACKS)
def test_prebuilt_wheels_come_first(machine, stack, monkeypatch):
    monkeypatch.setenv("STACK", stack)
    monkeypatch.setenv("HCFORMER_MM_WHEELS", "https://example.org/wheels")
    mmcv_wheel.main()
    assert machine.built == []
    assert machine.installed == [mmcv_wheel.pinned_mmcv(ROOT / STACKS[stack])]


def test_prebuilt_wheel_that_does_not_load_is_replaced(machine, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HCFORMER_MM_WHEELS", str(tmp_path))
    machine.load_errors = ["undefined symbol"]
    mmcv_wheel.main()
    assert len(machine.built) == 1
    told = capsys.readouterr().out
    assert f"{tmp_path} (HCFORMER_MM_WHEELS)" in told and "undefined symbol" in told


def test_working_mmcv_is_left_alone(machine, monkeypatch):
    monkeypatch.setattr(mmcv_wheel, "is_installed", lambda name, version: name == "onedl-mmcv")
    mmcv_wheel.main()
    assert (machine.built, machine.installed) == ([], [])


def test_unusable_cached_wheel_is_built_again(machine, capsys):
    mmcv_wheel.main()
    machine.load_errors = ["undefined symbol"]
    mmcv_wheel.main()
    assert len(machine.built) == 2
    assert "undefined symbol" in capsys.readouterr().out


def test_built_wheel_that_does_not_load_is_an_error(machine):
    machine.load_errors = ["undefined symbol"]
    with pytest.raises(InstallError, match="do not load: undefined symbol"):
        mmcv_wheel.main()


def test_operators_load_before_mmcv_does(tmp_path, monkeypatch):
    """Packages that mmcv imports are installed after it."""
    (installed,) = importlib.util.find_spec("mmcv").submodule_search_locations
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('no cv2 yet')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert mmcv_wheel.load_error() == "mmcv was built without operators"
    (extension,) = Path(installed).glob("_ext*.so")
    (package / extension.name).symlink_to(extension)
    assert mmcv_wheel.load_error() is None
    (package / extension.name).unlink()
    (package / extension.name).write_text("not a library")
    assert "ImportError" in mmcv_wheel.load_error()
