"""Compile mmcv's wheel for the environment of the running Python.

mmcv compiles its operators only if torch is installed and build isolation is off. It passes
``-std=c++17``, but torch's headers need C++20. It compiles for CUDA wherever torch sees a GPU and
then fails without nvcc. Object files are kept, so the next build continues an interrupted one.
torch's headers take most of the time of a compilation, so they are compiled once, in advance.

Used by ``mmcv_wheel.py``; needs only the standard library.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

PROGRESS_SECONDS = 30
GIB_PER_JOB = 1.5  # with torch's headers, a compiler process peaks at about 1 GiB
FIRST_INCLUDE = "#include <torch/types.h>"  # what each of mmcv's sources includes first
PRECOMPILED_HEADER = Path(__file__).with_name("precompiled_header.py")
CPP20_PROBE = "#include <concepts>\nstatic_assert(std::integral<int>);\n"


class InstallError(Exception):
    """A fault that the user has to fix; the message explains how."""


def run_script(main: Callable[[], None], interrupted: str) -> None:
    """Run a script; an InstallError or an interruption ends it with one message."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        main()
    except InstallError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted; {interrupted}")


def find_compiler(env: Mapping[str, str]) -> list[str]:
    """The command of a C++20 compiler.

    Raises:
        InstallError: none was found, or the compiler in ``CXX`` lacks C++20.
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
        f"mmcv must be compiled, but {reason} (tried {', '.join(candidates)}).\n"
        "Install g++ 10 or newer:\n"
        "    Debian, Ubuntu:  sudo apt-get install g++\n"
        "    Fedora:          sudo dnf install gcc-c++\n"
        "or name another one: CXX=clang++-15 make install"
    )


def check_python_header(compiler: list[str], include: str, env: Mapping[str, str]) -> None:
    """Refuse an interpreter without its C headers.

    Raises:
        InstallError: ``Python.h`` cannot be included.
    """
    if compiles([*compiler, f"-I{include}"], "#include <Python.h>\n", env=env):
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise InstallError(
        f"mmcv must be compiled, but the header Python.h of Python {version} is missing or "
        f"unusable (searched {include}).\n"
        f"Install it (for the system's own Python, python3-dev or python3-devel):\n"
        f"    Debian, Ubuntu:  sudo apt-get install python{version}-dev\n"
        f"    Fedora:          sudo dnf install python{version}-devel"
    )


def compiles(command: list[str], source: str, *, env: Mapping[str, str]) -> bool:
    """Whether a compiler accepts C++20 source code."""
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
    """Number of parallel compilers: one per core, limited by memory; ``MAX_JOBS`` overrides."""
    if env.get("MAX_JOBS"):
        return int(env["MAX_JOBS"])
    if free_gib is None:
        return cores
    return max(1, min(cores, int(free_gib / GIB_PER_JOB)))


def free_memory_gib() -> float | None:
    """Memory available to new processes in GiB; None if it is unknown."""
    with contextlib.suppress(OSError):
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if match:
            return int(match.group(1)) / 2**20
    return None


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock on a file, so that two installations do not build in one folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print("mmcv: waiting for another installation that builds it ...", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def pip(*arguments: str, env: Mapping[str, str] | None = None) -> int:
    """Run this environment's pip; its exit code."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, env=None if env is None else dict(env)).returncode


def unpacked_source(requirement: str, folder: Path) -> Path:
    """The folder of mmcv's source, downloaded and unpacked on the first call."""
    source = folder / "source"
    if source.is_dir():
        return source
    download = Path(tempfile.mkdtemp(prefix="download-", dir=folder))
    arguments = ["--no-deps", "--no-build-isolation", "--no-binary=:all:", "--no-cache-dir"]
    if pip("download", "-q", *arguments, "-d", str(download), requirement) != 0:
        raise InstallError(
            f"The source of {requirement} could not be downloaded and unpacked. In an "
            "environment of your own, first: pip install -r requirements/build.txt"
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


def write_wrapper(path: Path, compiler: list[str], *, headers: Path) -> None:
    """Write a compiler command for mmcv.

    It appends ``-std=c++20``, since the last standard wins, and includes a precompiled header.

    Args:
        path: file of the command.
        compiler: command of the compiler, beginning with a path.
        headers: folder of precompiled headers.
    """
    # Python starts faster without its site packages.
    command = [sys.executable, "-I", "-S", str(PRECOMPILED_HEADER), str(headers), FIRST_INCLUDE]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec {shlex.join([*command, *compiler])} -- "$@" -std=c++20\n')
    path.chmod(0o755)


def build_environment(
    env: Mapping[str, str], *, wrapper: Path, jobs: int, cuda: bool
) -> dict[str, str]:
    """Environment variables with which mmcv's build compiles the operators."""
    build = {
        **env,
        "CXX": str(wrapper),
        "CFLAGS": f"-O2 -g0 {env.get('CFLAGS', '')}".strip(),
        "MMCV_WITH_OPS": "1",
        "MAX_JOBS": str(jobs),
        # This environment's ninja comes first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)]),
    }
    if cuda:
        build["NVCC_APPEND_FLAGS"] = f"{env.get('NVCC_APPEND_FLAGS', '')} -std=c++20".strip()
    else:
        # Otherwise torch would see the GPU and need nvcc.
        build |= {"CUDA_VISIBLE_DEVICES": "", "FORCE_CUDA": "0"}
    return build


def progress(log: str) -> str:
    """Progress of the build, as shown in its log."""
    steps = re.findall(r"^\s*\[(\d+)/(\d+)\]", log, flags=re.MULTILINE)
    return "file {} of {}".format(*steps[-1]) if steps else "preparing"


def advice(log: str) -> str:
    """What to do after a failed build with this log."""
    if re.search(r"Killed signal|out of memory|cannot allocate", log, flags=re.IGNORECASE):
        return "A compiler ran out of memory: MAX_JOBS=1 make install"
    if re.search(r"No space left on device", log):
        return "A disk is full: make room, or set HCFORMER_MM_CACHE and TMPDIR to larger places."
    return "The log shows the cause. Running the command again keeps what was compiled."


def run_logged(command: list[str], *, env: Mapping[str, str], log: Path) -> None:
    """Run a long command with its output in a log, and print its progress.

    Raises:
        InstallError: the command failed; the message has the end of its log and some advice.
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
            f"{tail}\n\nBuilding mmcv failed; this is the end of {log}.\n{advice(text)}"
        )


def build(
    requirement: str, target: Path, work: Path, *, cuda: bool, env: Mapping[str, str]
) -> Path:
    """Compile mmcv's wheel into a folder.

    Args:
        requirement: mmcv's distribution and version, such as ``onedl-mmcv==2.3.6``.
        target: the folder for the wheel.
        work: a folder for sources and object files; it is removed when the wheel is ready.
        cuda: whether to compile for CUDA too.
        env: environment variables.

    Returns:
        The wheel's path.
    """
    compiler = find_compiler(env)
    check_python_header(compiler, sysconfig.get_paths()["include"], env)
    jobs = job_count(env, usable_cores(), free_memory_gib())
    with locked(work.with_name(f"{work.name}.lock")):
        if ready := next(target.glob("*.whl"), None):
            return ready  # built by the installation that held the lock
        work.mkdir(parents=True, exist_ok=True)
        log = work / "build.log"
        print(
            f"mmcv: compiling its operators with {jobs} jobs; about 3 minutes on two cores.\n"
            f"      Log: {log}",
            flush=True,
        )
        source = unpacked_source(requirement, work)
        write_wrapper(work / "bin" / "c++", compiler, headers=work / "headers")
        out = work / "wheel"
        shutil.rmtree(out, ignore_errors=True)
        # Building in the unpacked source keeps object files after an interruption.
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
