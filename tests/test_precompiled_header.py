"""Compiling mmcv with a precompiled header: that it is used, made once, and never needed."""

import fcntl
import shutil
import subprocess
import sys

import mmcv_build
import precompiled_header
import pytest

from tests.helpers.installing import ROOT, executable

INCLUDE = "#include <vector>"
SOURCE = f"{INCLUDE}\nint sum() {{ std::vector<int> v(3, 1); return v.size() + v[0]; }}\n"


@pytest.fixture
def gcc():
    path = shutil.which("g++")
    if path is None:
        pytest.skip("there is no g++")
    return path


@pytest.fixture
def sources(tmp_path):
    """Two source files that compile."""
    files = [tmp_path / f"{name}.cpp" for name in "ab"]
    for file in files:
        file.write_text(SOURCE)
    return files


def compile_with_header(tmp_path, compiler, source, *arguments):
    script = ROOT / "tools/misc/precompiled_header.py"
    command = [sys.executable, script, tmp_path / "headers", INCLUDE, compiler, "--", *arguments]
    command += ["-c", source, "-o", source.with_suffix(".o")]
    return subprocess.run(command, capture_output=True, text=True)


def logging_compiler(tmp_path, condition):
    """A compiler that logs its arguments and succeeds where a shell condition holds."""
    log = tmp_path / "log"
    made = 'for last; do :; done; touch "$last"'  # -o FILE comes last where a header is made
    script = f'echo "$*" >> {log}\n{condition} || {{ echo the reason >&2; exit 3; }}\n{made}'
    return executable(tmp_path / "compiler", script), log


def kinds(log):
    """What the calls of a logging compiler were for."""
    return [
        "header" if "c++-header" in line else "with" if "-include" in line else "plain"
        for line in log.read_text().splitlines()
    ]


def test_flags_of_one_file_are_left_out():
    arguments = "-MMD -MF o/a.o.d -O2 -I /usr/include -c /src/a.cpp -o o/a.o -DA=1 -std=c++20"
    common = precompiled_header.common_flags(arguments.split())
    assert common == ["-O2", "-I", "/usr/include", "-DA=1", "-std=c++20"]


def test_header_is_used_and_changes_no_object(tmp_path, gcc, sources):
    plain = tmp_path / "plain.o"
    for source in sources:
        done = compile_with_header(tmp_path, gcc, source, "-O2", "-H", "-Winvalid-pch")
        assert done.returncode == 0
        (used,) = (line for line in done.stderr.splitlines() if line.startswith("!"))  # GCC's mark
        assert used.endswith("/first.h.gch") and "warning" not in done.stderr
        subprocess.run([gcc, "-O2", "-c", source, "-o", plain], check=True)
        assert source.with_suffix(".o").read_bytes() == plain.read_bytes()


def test_header_is_made_once_for_equal_flags(tmp_path, sources):
    compiler, log = logging_compiler(tmp_path, "true")
    for source in sources:
        assert compile_with_header(tmp_path, compiler, source, "-O2").returncode == 0
    assert kinds(log) == ["header", "with", "with"]
    compile_with_header(tmp_path, compiler, sources[0], "-O3")
    assert kinds(log)[3:] == ["header", "with"]


@pytest.mark.parametrize(
    ("refused", "called"),
    [
        ("*c++-header*", ["header", "plain", "plain"]),
        ("*-include*", ["header", "with", "plain", "with", "plain"]),
    ],
    ids=["making", "use"],
)
def test_refusal_compiles_plainly(tmp_path, sources, refused, called):
    compiler, log = logging_compiler(tmp_path, f'case "$*" in {refused}) false;; esac')
    for source in sources:
        done = compile_with_header(tmp_path, compiler, source)
        assert (done.returncode, done.stderr) == (0, "")
    assert kinds(log) == called


def test_error_is_that_of_the_compiler(tmp_path, sources):
    compiler, _ = logging_compiler(tmp_path, 'case "$*" in *c++-header*) ;; *) false;; esac')
    done = compile_with_header(tmp_path, compiler, sources[0])
    assert (done.returncode, done.stderr) == (3, "the reason\n")


def test_others_do_not_wait_for_the_header(tmp_path, sources):
    compiler, log = logging_compiler(tmp_path, "true")
    compile_with_header(tmp_path, compiler, sources[0])
    (made,) = (tmp_path / "headers").glob("*/first.h.gch")
    made.unlink()
    with made.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert compile_with_header(tmp_path, compiler, sources[1]).returncode == 0
    assert kinds(log)[2:] == ["plain"]


def test_linking_is_left_alone(tmp_path, sources):
    compiler, log = logging_compiler(tmp_path, "true")
    precompiled = [sys.executable, ROOT / "tools/misc/precompiled_header.py", tmp_path, INCLUDE]
    subprocess.run([*precompiled, compiler, "--", "-shared", "a.o", "-o", tmp_path / "a.so"])
    assert log.read_text() == f"-shared a.o -o {tmp_path}/a.so\n"


def test_objects_of_an_interrupted_build_are_kept(tmp_path, gcc, sources, monkeypatch):
    """Neither a new wrapper nor a newer precompiled header makes ninja compile them again."""
    monkeypatch.setattr(mmcv_build, "FIRST_INCLUDE", INCLUDE)
    wrapper = tmp_path / "bin" / "c++"
    mmcv_build.write_wrapper(wrapper, [gcc], headers=tmp_path / "headers")
    (tmp_path / "build.ninja").write_text(
        "rule compile\n"
        "  depfile = $out.d\n"
        "  deps = gcc\n"
        f"  command = {wrapper} -MMD -MF $out.d -c $in -o $out\n"
        "build a.o: compile a.cpp\n"
        "build b.o: compile b.cpp\n"
    )

    def build(*targets):
        command = [sys.executable, "-m", "ninja", "-C", tmp_path, *targets]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "[1/1]" in build("a.o")
    (header,) = (tmp_path / "headers").glob("*/first.h.gch")
    mmcv_build.write_wrapper(wrapper, [gcc], headers=tmp_path / "headers")  # by the next run
    assert "[1/1]" in build()
    header.touch()
    assert "no work to do" in build()
