"""Compile the wheel of mmcv for the environment of the Python that runs this.

Facts about its build: operators are compiled only if torch is there and build isolation is off; it
asks the compiler for C++17 where torch's headers need C++20; it compiles for CUDA wherever torch
sees a GPU, and fails there without nvcc. Objects outlive an interruption: the next build goes on.

Needs only the standard library; used by ``mmcv_wheel.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

PROGRESS_SECONDS = 30
GIB_PER_JOB = 1.5  # a compiler process on torch's headers peaks at about 1 GiB
CPP20_PROBE = "#include <concepts>\nstatic_assert(std::integral<int>);\n"


class InstallError(Exception):
    """Something the user has to put right; the message says what and how."""


def find_compiler(env: Mapping[str, str]) -> list[str]:
    """The command of a C++20 compiler.

    Raises:
        InstallError: none was found, or ``CXX`` names one that cannot do it.
    """
    candidates = [env["CXX"]] if env.get("CXX") else ["c++", "g++", "clang++"]
    found = []
    for candidate in map(shlex.split, candidates):
        path = shutil.which(candidate[0], path=env.get("PATH", os.defpath))
        if path is None:
            continue
        command = [path, *candidate[1:]]
        if compiles(command, CPP20_PROBE, env=env):
            return command
        found.append(shlex.join(command))
    reason = f"{', '.join(found)} cannot compile C++20" if found else "no C++ compiler was found"
    raise InstallError(
        f"mmcv has to be compiled, and {reason} (tried {', '.join(candidates)}).\n"
        "Install g++ 10 or newer:\n"
        "    Debian, Ubuntu:  sudo apt-get install g++\n"
        "    Fedora:          sudo dnf install gcc-c++\n"
        "or name another one: CXX=clang++-15 make install"
    )


def check_python_header(compiler: list[str], include: str, env: Mapping[str, str]) -> None:
    """Refuse an interpreter without its C header.

    Raises:
        InstallError: ``Python.h`` cannot be included.
    """
    if compiles([*compiler, f"-I{include}"], "#include <Python.h>\n", env=env):
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise InstallError(
        f"mmcv has to be compiled, and the header Python.h of Python {version} is missing or "
        f"unusable (looked in {include}).\n"
        f"Install it (for the system's own Python, python3-dev and python3-devel are enough):\n"
        f"    Debian, Ubuntu:  sudo apt-get install python{version}-dev\n"
        f"    Fedora:          sudo dnf install python{version}-devel"
    )


def compiles(command: list[str], source: str, *, env: Mapping[str, str]) -> bool:
    """Whether a compiler accepts a piece of C++20."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "probe.cpp")
        path.write_text(source)
        try:
            done = subprocess.run(
                [*command, "-std=c++20", "-fsyntax-only", str(path)],
                capture_output=True,
                env=dict(env),
                timeout=120,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0


def job_count(env: Mapping[str, str], cores: int, free_gib: float | None) -> int:
    """How many compilers to run at a time: one a core, as far as memory goes."""
    if env.get("MAX_JOBS"):
        return int(env["MAX_JOBS"])
    if free_gib is None:
        return cores
    return max(1, min(cores, int(free_gib / GIB_PER_JOB)))


def free_memory_gib() -> float | None:
    """Memory that new processes can take, where Linux tells."""
    with contextlib.suppress(OSError):
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if match:
            return int(match.group(1)) / 2**20
    return None


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock on a file, so that two installs do not build in one folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("mmcv: waiting for another install that is building it ...", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def pip(*arguments: str, env: Mapping[str, str] | None = None) -> int:
    """Run pip of this environment quietly; its exit code."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env=None if env is None else dict(env)).returncode


def unpacked_source(version: str, folder: Path) -> Path:
    """The source of mmcv, downloaded and unpacked in a folder, once."""
    source = folder / "source"
    if source.is_dir():
        return source
    download = Path(tempfile.mkdtemp(prefix="download-", dir=folder))
    arguments = ["--no-deps", "--no-build-isolation", "--no-binary=onedl-mmcv", "--no-cache-dir"]
    if pip("download", "-q", *arguments, "-d", str(download), f"onedl-mmcv=={version}") != 0:
        raise InstallError(
            f"the source of onedl-mmcv {version} could not be downloaded and "
            "unpacked; in an environment of your own, first: pip install -r requirements/build.txt"
        )
    (archive,) = download.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(download, filter="data")
        else:
            tar.extractall(download)
    (unpacked,) = (path for path in download.iterdir() if path.is_dir())
    unpacked.rename(source)
    shutil.rmtree(download)
    return source


def write_wrapper(path: Path, compiler: list[str]) -> None:
    """Write a compiler command whose last word on the language standard is C++20."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.join(compiler)} "$@" -std=c++20\n')
    path.chmod(0o755)


def build_environment(
    env: Mapping[str, str], *, wrapper: Path, jobs: int, cuda: bool
) -> dict[str, str]:
    """The environment in which mmcv's build compiles the operators."""
    flags = "-O2 -g0"
    build = {
        **env,
        "CXX": str(wrapper),
        "CFLAGS": f"{flags} {env.get('CFLAGS', '')}".strip(),
        "MMCV_WITH_OPS": "1",
        "MAX_JOBS": str(jobs),
        # ninja and the compiler of this environment first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)]),
    }
    if cuda:
        build["NVCC_APPEND_FLAGS"] = f"{env.get('NVCC_APPEND_FLAGS', '')} -std=c++20".strip()
    else:
        # torch would otherwise see the GPU and ask for nvcc.
        build |= {"CUDA_VISIBLE_DEVICES": "", "FORCE_CUDA": "0"}
    return build


def progress(log: str) -> str:
    """What the log of the build says about how far it is."""
    steps = re.findall(r"^\s*\[(\d+)/(\d+)\]", log, flags=re.MULTILINE)
    return "file {} of {}".format(*steps[-1]) if steps else "preparing"


def advice(log: str) -> str:
    """What to do about a build that failed."""
    if re.search(r"Killed signal|out of memory|cannot allocate", log, flags=re.IGNORECASE):
        return "A compiler ran out of memory: MAX_JOBS=1 make install"
    if re.search(r"No space left on device", log):
        return "A disk is full: make room, or set HCFORMER_MM_CACHE and TMPDIR to larger places."
    return "Run the command again: what was compiled is kept. The log says what went wrong."


def run_logged(command: list[str], *, env: Mapping[str, str], log: Path) -> None:
    """Run a long command with its output in a log, and report progress.

    Raises:
        InstallError: it failed; the message ends with the end of its log and what to do.
    """
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=dict(env), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=PROGRESS_SECONDS)
                if process.returncode is None:
                    minutes, seconds = divmod(int(time.monotonic() - started), 60)
                    state = progress(log.read_text(errors="replace"))
                    print(f"mmcv: {minutes:2d} min {seconds:02d} s, {state}", flush=True)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if process.returncode != 0:
        text = log.read_text(errors="replace")
        tail = "\n".join(line[:300] for line in text.splitlines()[-25:])
        raise InstallError(
            f"{tail}\n\nBuilding mmcv failed; above is the end of {log}.\n{advice(text)}"
        )


def build(version: str, target: Path, work: Path, *, cuda: bool, env: Mapping[str, str]) -> Path:
    """Compile mmcv's wheel and put it into the folder ``target``."""
    compiler = find_compiler(env)
    check_python_header(compiler, sysconfig.get_paths()["include"], env)
    jobs = job_count(env, usable_cores(), free_memory_gib())
    with locked(work.with_name(f"{work.name}.lock")):
        if ready := next(target.glob("*.whl"), None):
            return ready  # the install that held the lock made it
        work.mkdir(parents=True, exist_ok=True)
        log = work / "build.log"
        print(
            f"mmcv: compiling its operators, {jobs} at a time; about 10 minutes on two cores.\n"
            f"      Log: {log}",
            flush=True,
        )
        source = unpacked_source(version, work)
        write_wrapper(work / "bin" / "c++", compiler)
        out = work / "wheel"
        shutil.rmtree(out, ignore_errors=True)
        # Built in the unpacked source, whose object files outlive an interruption.
        arguments = ["wheel", "-v", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
        run_logged(
            [sys.executable, "-m", "pip", *arguments, "-w", str(out), str(source)],
            env=build_environment(env, wrapper=work / "bin" / "c++", jobs=jobs, cuda=cuda),
            log=log,
        )
        (wheel,) = out.glob("*.whl")
        target.mkdir(parents=True, exist_ok=True)
        wheel = wheel.replace(target / wheel.name)
        shutil.rmtree(work)
        return wheel
