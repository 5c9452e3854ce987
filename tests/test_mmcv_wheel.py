"""mmcv's wheel: keys, cache, checks before a build, and what a build leaves behind."""

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import mmcv_build
import mmcv_wheel
import pytest

ROOT = Path(__file__).resolve().parents[1]
MISC = ROOT / "tools" / "misc"


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_pinned_version(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text("onedl-mmcv-lite==1.0\nonedl-mmcv==2.3.6  # source only\n")
    assert mmcv_wheel.pinned(file, "onedl-mmcv") == "2.3.6"
    with pytest.raises(mmcv_wheel.InstallError, match=r"no exact version .* for onedl-mmdetection"):
        mmcv_wheel.pinned(file, "onedl-mmdetection")


KEY = dict(mmcv="2.3.6", torch="2.14.1+cu130", python="cp311", machine="linux-x86_64", device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"mmcv": "2.3.5"},
        {"torch": "2.14.1+cpu"},
        {"python": "cp312"},
        {"machine": "linux-aarch64"},
        {"device": "cuda13.0"},
    ],
)
def test_wheel_key_tells_environments_apart(change: dict[str, str]) -> None:
    key = mmcv_wheel.wheel_key(**KEY)
    assert key != mmcv_wheel.wheel_key(**{**KEY, **change})
    assert "/" not in key and " " not in key


def test_cache_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert mmcv_wheel.cache_root({}) == Path("/home/someone/.cache/hcformer_mm")
    assert mmcv_wheel.cache_root({"XDG_CACHE_HOME": "/x"}) == Path("/x/hcformer_mm")
    assert mmcv_wheel.cache_root({"XDG_CACHE_HOME": "/x", "HCFORMER_MM_CACHE": "/y"}) == Path("/y")


def test_missing_compiler_is_named(tmp_path: Path) -> None:
    with pytest.raises(mmcv_build.InstallError) as raised:
        mmcv_build.find_compiler({"PATH": str(tmp_path)})
    told = str(raised.value)
    assert "no C++ compiler was found" in told
    assert "apt-get install g++" in told and "dnf install gcc-c++" in told


def test_old_compiler_is_refused(tmp_path: Path) -> None:
    executable(tmp_path / "g++", "echo 'unrecognized option -std=c++20' >&2; exit 1")
    with pytest.raises(mmcv_build.InstallError, match=r"g\+\+ cannot compile C\+\+20"):
        mmcv_build.find_compiler({"PATH": str(tmp_path)})


def test_first_working_compiler_is_taken(tmp_path: Path) -> None:
    executable(tmp_path / "c++", "exit 1")
    executable(tmp_path / "clang++", "exit 0")
    assert mmcv_build.find_compiler({"PATH": str(tmp_path)}) == [str(tmp_path / "clang++")]
    ccache = executable(tmp_path / "ccache", "exit 0")
    env = {"PATH": str(tmp_path), "CXX": "ccache clang++"}
    assert mmcv_build.find_compiler(env) == [str(ccache), "clang++"]


def test_missing_header_is_named(tmp_path: Path) -> None:
    compiler = executable(tmp_path / "c++", "exit 1")
    with pytest.raises(mmcv_build.InstallError) as raised:
        mmcv_build.check_python_header([str(compiler)], "/include", dict(os.environ))
    told = str(raised.value)
    assert "Python.h" in told and "/include" in told
    assert "python3-dev" in told and "python3-devel" in told


def test_wrapper_has_the_last_word_on_the_standard(tmp_path: Path) -> None:
    compiler = executable(tmp_path / "a compiler", 'echo "$@"')
    wrapper = tmp_path / "bin" / "c++"
    mmcv_build.write_wrapper(wrapper, [str(compiler), "-v"])
    done = subprocess.run([wrapper, "-std=c++17", "x y.cpp"], capture_output=True, text=True)
    assert done.stdout.split() == ["-v", "-std=c++17", "x", "y.cpp", "-std=c++20"]


def test_build_without_cuda_hides_the_gpu(tmp_path: Path) -> None:
    common = dict(wrapper=tmp_path / "c++", jobs=3)
    env = mmcv_build.build_environment({"FORCE_CUDA": "1"}, cuda=False, **common)
    assert env["CUDA_VISIBLE_DEVICES"] == "" and env["FORCE_CUDA"] == "0"
    assert env["MAX_JOBS"] == "3" and env["MMCV_WITH_OPS"] == "1"
    env = mmcv_build.build_environment({"FORCE_CUDA": "1"}, cuda=True, **common)
    assert "CUDA_VISIBLE_DEVICES" not in env and env["FORCE_CUDA"] == "1"
    assert "-std=c++20" in env["NVCC_APPEND_FLAGS"]


@pytest.mark.parametrize(
    ("env", "cores", "free", "jobs"),
    [({}, 2, 20.0, 2), ({}, 64, 12.0, 8), ({}, 4, 0.5, 1), ({"MAX_JOBS": "3"}, 64, 1.0, 3)],
)
def test_jobs_fit_cores_and_memory(env: dict[str, str], cores: int, free: float, jobs: int) -> None:
    assert mmcv_build.job_count(env, cores, free) == jobs
    assert mmcv_build.job_count({}, cores, None) == cores


def test_progress_and_advice_come_from_the_log() -> None:
    assert mmcv_build.progress("running build_ext") == "preparing"
    assert mmcv_build.progress("  [1/78] c++ -MMD\n  [42/78] c++ -MMD\n") == "file 42 of 78"
    assert "MAX_JOBS=1" in mmcv_build.advice("c++: fatal error: Killed signal terminated cc1plus")
    assert "disk" in mmcv_build.advice("write: No space left on device")


def test_failed_build_shows_the_end_of_its_log(tmp_path: Path) -> None:
    script = executable(tmp_path / "build", "seq 100; echo the reason >&2; exit 1")
    with pytest.raises(mmcv_build.InstallError) as raised:
        mmcv_build.run_logged([str(script)], env=os.environ, log=tmp_path / "log")
    told = str(raised.value)
    assert "\n100\nthe reason\n" in told and "\n50\n" not in told
    assert str(tmp_path / "log") in told


def test_interrupted_build_leaves_no_process(tmp_path: Path) -> None:
    """The compilers below pip end with it."""
    started = tmp_path / "started"
    script = executable(
        tmp_path / "build",
        f"sleep 60 & echo $! > {started}.partial\nmv {started}.partial {started}\nwait",
    )
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(MISC)!r}); import mmcv_build\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"log = Path({str(tmp_path / 'log')!r})\n"
        f"mmcv_build.run_logged([{str(script)!r}], env=os.environ, log=log)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    for _ in range(200):
        if started.exists():
            break
        time.sleep(0.05)
    child = int(started.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    for _ in range(100):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True)
        if not state.stdout.strip() or state.stdout.strip().startswith(b"Z"):
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} of the build is still running")


@pytest.fixture
def environment_of_mmcv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, list[str]]:
    """The wheel script on a machine without a GPU, with pip and the build replaced by records."""
    calls: dict[str, list[str]] = {"installed": [], "built": []}

    def fake_pip(*arguments: str, **_: object) -> int:
        calls["installed"].append(arguments[-1])
        return 0

    def fake_build(version: str, target: Path, work: Path, **_: object) -> Path:
        calls["built"].append(version)
        target.mkdir(parents=True, exist_ok=True)
        wheel = target / "onedl_mmcv.whl"
        wheel.write_text("built")
        return wheel

    monkeypatch.setattr(mmcv_wheel, "pip", fake_pip)
    monkeypatch.setattr(mmcv_wheel.mmcv_build, "build", fake_build)
    monkeypatch.setattr(mmcv_wheel, "cuda_release", lambda env: None)
    monkeypatch.setattr(mmcv_wheel, "installed_version", lambda: None)
    monkeypatch.setattr(mmcv_wheel, "load_error", lambda **_: None)
    monkeypatch.setenv("HCFORMER_MM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HCFORMER_MM_WHEELS", raising=False)
    return calls


def test_wheel_is_built_once_and_kept(environment_of_mmcv: dict[str, list[str]]) -> None:
    mmcv_wheel.main()
    mmcv_wheel.main()
    assert len(environment_of_mmcv["built"]) == 1
    assert len(environment_of_mmcv["installed"]) == 2


def test_prebuilt_wheels_come_first(
    environment_of_mmcv: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HCFORMER_MM_WHEELS", "https://example.org/wheels")
    mmcv_wheel.main()
    assert environment_of_mmcv["built"] == []
    version = mmcv_wheel.pinned(ROOT / "requirements" / "mminstall.txt", "onedl-mmcv")
    assert environment_of_mmcv["installed"] == [f"onedl-mmcv=={version}"]


def test_prebuilt_wheels_without_a_fitting_one(
    environment_of_mmcv: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("HCFORMER_MM_WHEELS", str(tmp_path))
    answers = iter(["undefined symbol", None])  # the prebuilt one does not load, the built one does
    monkeypatch.setattr(mmcv_wheel, "load_error", lambda **_: next(answers))
    mmcv_wheel.main()
    assert len(environment_of_mmcv["built"]) == 1
    told = capsys.readouterr().out
    assert f"not taken from {tmp_path} (HCFORMER_MM_WHEELS): undefined symbol" in told


def test_working_mmcv_is_left_alone(
    environment_of_mmcv: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    version = mmcv_wheel.pinned(ROOT / "requirements" / "mminstall.txt", "onedl-mmcv")
    monkeypatch.setattr(mmcv_wheel, "installed_version", lambda: version)
    mmcv_wheel.main()
    assert environment_of_mmcv == {"installed": [], "built": []}


def test_unusable_cached_wheel_is_built_again(
    environment_of_mmcv: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mmcv_wheel.main()
    answers = iter(["undefined symbol", None])
    monkeypatch.setattr(mmcv_wheel, "load_error", lambda **_: next(answers))
    mmcv_wheel.main()
    assert len(environment_of_mmcv["built"]) == 2
    assert "undefined symbol" in capsys.readouterr().out


def test_built_wheel_that_does_not_load_is_an_error(
    environment_of_mmcv: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mmcv_wheel, "load_error", lambda **_: "undefined symbol")
    with pytest.raises(mmcv_wheel.InstallError, match="do not load: undefined symbol"):
        mmcv_wheel.main()


def test_operators_load_before_mmcv_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the environment is being made, what mmcv imports is not there yet."""
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
