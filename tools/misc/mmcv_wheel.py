"""Install mmcv with compiled operators into the environment of the running Python.

mmcv is distributed as source. This script compiles it (see ``mmcv_build.py``), caches the wheel
outside the clone and continues an interrupted build.

    python tools/misc/mmcv_wheel.py

Environment variables:
    STACK               onedl (default) or openmmlab: whose mmcv, see ``stacks.py``
    HCFORMER_MM_WHEELS  folder or URL of a page of links with a prebuilt wheel, which is tried first
    HCFORMER_MM_CACHE   cache folder (default: $XDG_CACHE_HOME/hcformer_mm or ~/.cache/hcformer_mm)
    MAX_JOBS            number of parallel compilers (default: by cores and free memory)
    CXX                 C++ compiler (default: the first of c++, g++, clang++ that supports C++20)

The environment needs torch and requirements/build.txt.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import mmcv_build
from mmcv_build import InstallError, pip, run_script
from stacks import requirements_file

ROOT = Path(__file__).resolve().parents[2]
# Loads the extension's file, since the package mmcv imports packages that are installed later.
LOAD_OPERATORS = """
import importlib.util, pathlib, sys
package = importlib.util.find_spec("mmcv")
if package is None:
    sys.exit("mmcv is not installed")
files = [f for p in package.submodule_search_locations for f in pathlib.Path(p).glob("_ext*.so")]
if not files:
    sys.exit("mmcv was built without operators")
import torch  # provides the libraries that the extension is linked against
spec = importlib.util.spec_from_file_location("mmcv._ext", files[0])
extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)
if sys.argv[1] == "cuda" and extension.get_compiling_cuda_version() == "not available":
    sys.exit("mmcv's operators are compiled for the CPU only")
"""


def pinned_mmcv(file: Path) -> str:
    """The requirement of mmcv in a requirements file, such as ``onedl-mmcv==2.3.6``.

    Raises:
        InstallError: the file does not pin mmcv with ``==``.
    """
    for line in file.read_text().splitlines():
        requirement = line.partition("#")[0].strip()
        if re.fullmatch(r"(onedl-)?mmcv==\S+", requirement):
            return requirement
    raise InstallError(f"{file} gives no exact version of mmcv (mmcv==1.0 or onedl-mmcv==1.0).")


def cache_root(env: Mapping[str, str]) -> Path:
    """The cache folder, which all clones share."""
    if env.get("HCFORMER_MM_CACHE"):
        return Path(env["HCFORMER_MM_CACHE"]).expanduser()
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "hcformer_mm"


def wheel_key(*, mmcv: str, torch: str, python: str, machine: str, device: str) -> str:
    """The name under which a wheel is cached: all that a compiled wheel depends on.

    Args:
        mmcv: version of mmcv.
        torch: version of torch with its local suffix, such as ``2.14.1+cu130``.
        python: interpreter tag, such as ``cp311``.
        machine: platform, such as ``linux-x86_64``.
        device: ``cpu``, or the CUDA release of the operators, such as ``cuda13.0``.
    """
    return f"mmcv-{mmcv}_torch-{torch}_{python}_{machine}_{device}"


def cuda_release(env: Mapping[str, str]) -> str | None:
    """The CUDA release to compile for; None for operators that run on the CPU only.

    mmcv compiles for CUDA if torch sees a GPU, and then fails without an nvcc of torch's major
    release, so both are checked before the build.
    """
    import torch

    wanted = torch.cuda.is_available() or env.get("FORCE_CUDA") == "1"
    if not wanted or torch.version.cuda is None:
        return None
    from torch.utils import cpp_extension

    nvcc = Path(cpp_extension.CUDA_HOME or "", "bin", "nvcc")
    if cpp_extension.CUDA_HOME and nvcc.exists():
        output = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"release (\d+)", output)
        if found and found.group(1) == torch.version.cuda.partition(".")[0]:
            return torch.version.cuda
    print(
        f"mmcv: there is a GPU, but no nvcc of CUDA {torch.version.cuda}: building operators for "
        "the CPU only.\n      For the GPU, install that CUDA toolkit, set CUDA_HOME and run this "
        "script again.",
        flush=True,
    )
    return None


def install(wheel: Path) -> str | None:
    """Install a wheel; return why its operators do not load, or None if they do."""
    arguments = ["-q", "--no-deps", "--no-index", "--force-reinstall", str(wheel)]
    return load_error() if pip("install", *arguments) == 0 else "pip could not install it"


def load_error(*, cuda: bool = False) -> str | None:
    """Return why mmcv's operators do not load with this torch (for CUDA), or None if they do."""
    command = [sys.executable, "-c", LOAD_OPERATORS, "cuda" if cuda else "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the interpreter ended with {done.returncode}"


def is_installed(name: str, version: str) -> bool:
    """Whether this environment has a distribution in this version."""
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


def install_prebuilt(requirement: str, where: str) -> bool:
    """Install a prebuilt wheel from a folder or URL; return whether it was found and loads."""
    arguments = ["-q", "--no-deps", "--no-index", "--only-binary=:all:", "--force-reinstall"]
    if pip("install", *arguments, "--find-links", where, requirement) != 0:
        error = "no wheel for this Python and platform"
    else:
        error = load_error()
    if error is None:
        print(f"mmcv: installed from {where}", flush=True)
        return True
    print(f"mmcv: not installed from {where} (HCFORMER_MM_WHEELS): {error}", flush=True)
    return False


def main() -> None:
    """Install mmcv from a prebuilt wheel, the cache, or by building it."""
    env = dict(os.environ)
    requirement = pinned_mmcv(ROOT / requirements_file(env))
    name, version = requirement.split("==")
    try:
        import torch
    except ImportError as error:
        raise InstallError(
            f"mmcv is compiled against torch, but {sys.executable} cannot import torch: {error}"
        ) from error
    cuda = cuda_release(env)
    if is_installed(name, version) and load_error(cuda=bool(cuda)) is None:
        print(f"mmcv: {version} is installed, and its operators load.", flush=True)
        return
    if env.get("HCFORMER_MM_WHEELS") and install_prebuilt(requirement, env["HCFORMER_MM_WHEELS"]):
        return
    key = wheel_key(
        mmcv=version,
        torch=torch.__version__,
        python="cp{}{}".format(*sys.version_info[:2]),  # torch runs on CPython alone
        machine=f"{platform.system()}-{platform.machine()}".lower(),
        device=f"cuda{cuda}" if cuda else "cpu",
    )
    folder = cache_root(env) / "wheels" / key
    if wheel := next(folder.glob("*.whl"), None):
        error = install(wheel)
        if error is None:
            print(f"mmcv: installed from the cache, {folder}", flush=True)
            return
        print(f"mmcv: the cached wheel is unusable ({error}); building it again.", flush=True)
        wheel.replace(wheel.with_suffix(".unusable"))
    started = time.monotonic()
    wheel = mmcv_build.build(
        requirement, folder, cache_root(env) / "build" / key, cuda=bool(cuda), env=env
    )
    error = install(wheel)
    if error is not None:
        raise InstallError(f"mmcv was built, but its operators do not load: {error}\n({wheel})")
    minutes = (time.monotonic() - started) / 60
    print(f"mmcv: built in {minutes:.1f} minutes and kept in {folder}", flush=True)


if __name__ == "__main__":
    run_script(main, "the next run continues the build.")
