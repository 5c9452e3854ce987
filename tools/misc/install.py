"""Create ``.venv`` in the clone and install hcformer_mm with everything that it needs.

    python3 tools/misc/install.py

``make install`` runs this. It skips steps whose inputs did not change since they last succeeded, so
it continues an interrupted run. It needs only the standard library of Python 3.10 or newer.

Environment variables, besides those of ``mmcv_wheel.py``:
    STACK            onedl (the default) or openmmlab: see ``stacks.py``; without it, an existing
                     ``.venv`` keeps its stack
    PYTHON           interpreter for ``.venv``; without it, an existing ``.venv`` keeps its Python
    TORCH_INDEX_URL  package index for torch and torchvision only, such as PyTorch's CPU index
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmcv_build import InstallError, run_script
from stacks import DEFAULT, requirements_file

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STAMPS = "installed.json"
MINIMUM = (3, 10)
VENV_ENTRIES = {
    "bin",
    "etc",
    "include",
    "lib",
    "lib64",
    "share",
    "pyvenv.cfg",
    ".gitignore",
    STAMPS,
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One part of the installation.

    Attributes:
        name: what it installs.
        inputs: files that determine its outcome.
        command: arguments for the environment's Python.
        distributions: what it installs, as ``name`` or ``name==version``.
        variables: extra environment variables of the command; they do not change the outcome.
    """

    name: str
    inputs: Sequence[str]
    command: Sequence[str]
    distributions: Sequence[str]
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def key(self, *, root: Path, python: str) -> str:
        """A hash of everything that the outcome depends on."""
        digest = hashlib.sha256(f"{root}\n{python}\n{list(self.command)}".encode())
        for name in self.inputs:
            digest.update(f"\n{name}\n".encode() + (root / name).read_bytes())
        return digest.hexdigest()

    def is_done(self, stamp: str | None, key: str, installed: Mapping[str, str]) -> bool:
        """Whether it succeeded with these inputs and its distributions are still installed."""
        return stamp == key and all(is_installed(name, installed) for name in self.distributions)


def requirements(file: Path) -> list[str]:
    """The requirements in a file, without comments."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in file.read_text().splitlines())
    return [line for line in lines if line]


def normalized(name: str) -> str:
    """A distribution's name in the form in which package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_installed(requirement: str, installed: Mapping[str, str]) -> bool:
    """Whether a requirement is installed.

    Only ``==`` versions are compared, not ranges, nor those that depend on Python's version.
    """
    match = re.match(r"([\w.-]+)(?:\[.*\])?\s*(==)?\s*([^\s;,]*)", requirement)
    if match is None:
        raise InstallError(f"expected a requirement such as name==1.0, got {requirement!r}.")
    found = installed.get(normalized(match.group(1)))
    if found is None:
        return False
    if match.group(2) is None or ";" in requirement:
        return True
    return found.partition("+")[0] == match.group(3)  # torch's carries the build: 2.14.1+cpu


def is_complete(dist_info: Path) -> bool:
    """Whether a distribution is wholly installed: pip writes RECORD last, and uv INSTALLER."""
    return all((dist_info / name).exists() for name in ("RECORD", "INSTALLER"))


def distributions_in(venv: Path) -> dict[str, str]:
    """Versions of the completely installed distributions."""
    found = filter(is_complete, venv.glob("lib/python3.*/site-packages/*.dist-info"))
    names = (path.name.removesuffix(".dist-info").rsplit("-", 1) for path in found)
    return {normalized(name): version for name, version in names}


def remove_partial(venv: Path) -> None:
    """Remove packages that an interruption left incomplete, so that they are reinstalled."""
    for site in venv.glob("lib/python3.*/site-packages"):
        partial = [path for path in site.glob("*.dist-info") if not is_complete(path)]
        for path in [*partial, *site.glob("~*")]:
            print(f"removing {path.name}, left by an interrupted installation", flush=True)
            shutil.rmtree(path, ignore_errors=True)


def plan(root: Path, env: Mapping[str, str]) -> list[Step]:
    """The steps of the installation, in order."""
    rest = ["stack", "runtime", "optional", "tests", "lint"]
    limits = ["constraints", "torch", "build"]
    files = {name: f"requirements/{name}.txt" for name in (*rest, *limits, "nodeps")}
    files["stack"] = requirements_file(env)
    wanted = {name: requirements(root / file) for name, file in files.items()}
    pip = ["-m", "pip", "--disable-pip-version-check", "install"]
    uv = ["tools/misc/uv_pip.py"]
    of_stack = ["-c", files["stack"]]
    index = env.get("TORCH_INDEX_URL")
    return [
        Step(
            "build tools",
            inputs=[files["build"], files["stack"]],
            command=[*pip, *of_stack, "-q", "--upgrade", "pip", "-r", files["build"]],
            distributions=wanted["build"],
        ),
        Step(
            "torch and torchvision",
            inputs=[files["torch"], files["stack"]],
            command=[*uv, *of_stack, "-r", files["torch"]],
            distributions=wanted["torch"],
            variables={"PIP_INDEX_URL": index} if index else {},
        ),
        Step(
            "mmcv with its operators",
            inputs=[files["build"], files["torch"], files["stack"]],
            command=["tools/misc/mmcv_wheel.py"],
            distributions=[name for name in wanted["stack"] if "mmcv=" in name],
        ),
        Step(
            "OpenMMLab, tests and checks",
            inputs=[files[name] for name in (*rest, *limits)],
            command=[
                *uv,
                *(argument for name in limits for argument in ("-c", files[name])),
                *(argument for name in rest for argument in ("-r", files[name])),
            ],
            distributions=[name for file in rest for name in wanted[file]],
            variables={"UV_OVERRIDE": "requirements/override.txt"},
        ),
        Step(
            "one OpenCV",
            inputs=[files["stack"]],
            command=["tools/misc/one_opencv.py"],
            distributions=["opencv-python"],
        ),
        Step(
            "panopticapi",
            inputs=[files["nodeps"]],
            command=[*uv, "-q", "--no-deps", "-r", files["nodeps"]],
            distributions=wanted["nodeps"],
        ),
        Step(
            "hcformer_mm, editable",
            inputs=[
                "setup.py",
                "model-index.yml",
                "hcformer_mm/version.py",
                *(files[name] for name in rest),
            ],
            command=[*uv, "-q", "--no-deps", "--no-build-isolation", "--editable", "."],
            distributions=["hcformer-mm"],
            variables={"PYTHONWARNINGS": "ignore"},  # setuptools warns about editable installs
        ),
    ]


def check_version(version: Sequence[int]) -> None:
    """Refuse an interpreter that is too old.

    Raises:
        InstallError: the interpreter is too old.
    """
    if tuple(version[:2]) < MINIMUM:
        raise InstallError(
            "Python {}.{} or newer is needed, and {} is {}.{}. Name another one: "
            "PYTHON=python3.11 make install".format(*MINIMUM, sys.executable, *version[:2])
        )


def check_venv_module(has_module: Callable[[str], object]) -> None:
    """Refuse an interpreter that cannot create environments.

    Args:
        has_module: whether the interpreter has a module of this name.

    Raises:
        InstallError: ``venv`` or ``ensurepip`` is missing.
    """
    missing = [name for name in ("venv", "ensurepip") if not has_module(name)]
    if missing:
        raise InstallError(
            f"{sys.executable} has no module {' and '.join(missing)}. Install it:\n"
            "    Debian, Ubuntu:  sudo apt-get install python{}.{}-venv\n".format(
                *sys.version_info[:2]
            )
            + "    Fedora:          sudo dnf install python3-libs python3-pip"
        )


def venv_version(venv: Path) -> str | None:
    """Python's version in an environment; None if the environment is missing or broken."""
    code = 'import sys, pip; print("%d.%d" % sys.version_info[:2], sys.prefix, sep="\\n")'
    try:
        done = subprocess.run(
            [venv / "bin" / "python", "-c", code], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version, _, prefix = done.stdout.strip().partition("\n")
    sound = done.returncode == 0 and Path(prefix).resolve() == venv.resolve()
    return version if sound else None


def ensure_venv(venv: Path, *, replace_other: bool) -> str:
    """Create an environment unless a working one exists; return its Python version.

    Args:
        venv: folder of the environment.
        replace_other: whether to replace a working environment of another Python version.

    Raises:
        InstallError: the folder is not an environment, or creating one failed.
    """
    mine = "{}.{}".format(*sys.version_info[:2])
    found = venv_version(venv)
    if found == mine or (found and not replace_other):
        return found
    if venv.is_symlink() or (venv.exists() and not venv.is_dir()):
        raise InstallError(f"{venv} is not a folder: move it away.")
    if venv.is_dir():
        strange = sorted({path.name for path in venv.iterdir()} - VENV_ENTRIES)
        if strange and not (venv / "pyvenv.cfg").exists():
            raise InstallError(
                f"{venv} is not a virtual environment (it holds {', '.join(strange)}): "
                "move it away."
            )
        why = f"has Python {found}, not {mine}" if found else "is incomplete"
        print(f"{venv.name} {why}: creating it again", flush=True)
        # Renamed before it is removed, so that a half-removed environment never has this name.
        venv.rename(venv.with_name(f"{venv.name}.old-{os.getpid()}"))
    for old in venv.parent.glob(f"{venv.name}.old-*"):  # of interrupted runs too
        shutil.rmtree(old)
    check_venv_module(importlib.util.find_spec)
    run([sys.executable, "-m", "venv", str(venv)], cwd=venv.parent)
    made = venv_version(venv)
    if made is None:
        raise InstallError(f"{sys.executable} created no working environment in {venv}.")
    return made


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a command, and terminate it if this process is interrupted.

    Raises:
        InstallError: the command failed.
    """
    process = subprocess.Popen(command, cwd=cwd, env=None if env is None else dict(env))
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code != 0:
        raise InstallError(f"This command failed, see above: {' '.join(map(str, command))}")


def read_stamps(file: Path) -> dict[str, str]:
    """Keys by step that succeeded; empty if the file is missing or damaged."""
    try:
        stamps = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def write_stamps(file: Path, stamps: Mapping[str, str]) -> None:
    """Replace the file of keys atomically."""
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(stamps, indent=2) + "\n")
    partial.replace(file)


def chosen_stack(stamps: Mapping[str, str], env: Mapping[str, str]) -> str:
    """The stack to install: that of ``STACK``, else that of the environment.

    Raises:
        InstallError: the environment has another stack.
    """
    # Environments without this stamp were made when there was one stack.
    present = stamps.get("stack", DEFAULT if stamps else None)
    stack = env.get("STACK") or present or DEFAULT
    if present and stack != present:
        raise InstallError(
            f"expected STACK={present}, since .venv has that stack, got STACK={stack}. The stacks "
            "install modules of the same names: type `make clean` first, or use another clone."
        )
    return stack


def install(root: Path, venv: Path, python: str, env: Mapping[str, str]) -> None:
    """Run all steps from the first unfinished one, since each builds on its predecessors."""
    stamps = read_stamps(venv / STAMPS)
    stack = chosen_stack(stamps, env)
    env = {**env, "STACK": stack}
    steps = plan(root, env)
    keys = {step.name: step.key(root=root, python=python) for step in steps}
    installed = distributions_in(venv)
    unfinished = (
        number
        for number, step in enumerate(steps)
        if not step.is_done(stamps.get(step.name), keys[step.name], installed)
    )
    done = next(unfinished, None)
    if done is None:
        return
    remove_partial(venv)
    stamps = {"stack": stack, **{step.name: keys[step.name] for step in steps[:done]}}
    for number, step in enumerate(steps[done:], start=done + 1):
        write_stamps(venv / STAMPS, stamps)
        print(f"[{number}/{len(steps)}] {step.name}", flush=True)
        started = time.monotonic()
        python_of_venv = str(venv / "bin" / "python")
        run([python_of_venv, *step.command], cwd=root, env={**env, **step.variables})
        stamps[step.name] = keys[step.name]
        print(f"      done in {time.monotonic() - started:.0f} s", flush=True)
    write_stamps(venv / STAMPS, stamps)


def main() -> None:
    check_version(sys.version_info)
    python = ensure_venv(VENV, replace_other=bool(os.environ.get("PYTHON")))
    install(ROOT, VENV, python, os.environ)


if __name__ == "__main__":
    run_script(main, "`make install` continues from here.")
