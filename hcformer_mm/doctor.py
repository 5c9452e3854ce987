"""Report what keeps HCFormer from running: ``python -m hcformer_mm.doctor``.

Every problem comes with the command that fixes it. The exit code is 0 only if a small HCFormer was
built from its config, trained for a step and made a prediction.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packaging.requirements import Requirement

from .utils.paths import PACKAGE, RESOURCES
from .version import LIBRARIES, WINDOWS

CONFIG = RESOURCES / "configs/shapes/hcformer_r18_shapes-panoptic.py"
# In an editable installation the tools are a link into the clone.
MMCV_SCRIPT = (RESOURCES / "tools/misc/mmcv_wheel.py").resolve()
OPENCV_SCRIPT = MMCV_SCRIPT.with_name("one_opencv.py")
# Needed but not declared: mmcv brings OpenCV, and panopticapi-lite is installed with --no-deps,
# since it requires a numpy<2 that it does not need.
UNDECLARED = ("opencv-python", "panopticapi-lite")
HEADLESS_OPENCV = "opencv-python-headless"
MODULES = {"scikit-image": "skimage", "opencv-python": "cv2", "panopticapi-lite": "panopticapi"}


class Environment(NamedTuple):
    """Facts about a Python environment.

    Attributes:
        versions: installed versions by distribution.
        errors: import errors by module, in the order of the attempts.
        machine: hardware and compilers, as reported by mmcv's ``collect_env``.
        requirements: what hcformer_mm needs besides OpenMMLab, by module.
    """

    versions: Mapping[str, str]
    errors: Mapping[str, str]
    machine: Mapping[str, Any]
    requirements: Mapping[str, Requirement]


class Problem(NamedTuple):
    """A fault and the shell command that fixes it; most models run despite a ``warning``."""

    what: str
    command: str
    severity: str = "error"


def short(path: str | Path) -> str:
    """A path for use in a command: relative if it lies below the working directory."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def pip(*arguments: str) -> str:
    """The command that calls this interpreter's pip, with requirements quoted."""
    quoted = (f"'{text}'" if set("<>=") & set(text) else text for text in arguments)
    return f"{short(sys.executable)} -m pip {' '.join(quoted)}"


def diagnose(found: Environment) -> Iterator[Problem]:
    """Yield the problems of an environment, in the order in which to fix them."""
    # The maintained forks, unless more of the installed libraries are originals.
    kind = max(
        ("fork", "original"),
        key=lambda kind: sum(getattr(each, kind) in found.versions for each in LIBRARIES.values()),
    )
    wanted = dict(found.requirements)
    for module, library in LIBRARIES.items():
        name = getattr(library, kind)
        wanted[module] = Requirement(f"{name}{WINDOWS[name]}")
    installs = {module: pip("install", str(each)) for module, each in wanted.items()}
    installs["panopticapi"] = pip("install", "--no-deps", "panopticapi-lite")
    installs["mmcv"] = f"{short(sys.executable)} {short(MMCV_SCRIPT)}"
    if kind == "original":
        installs["mmcv"] = f"STACK=openmmlab {installs['mmcv']}"
    for module, requirement in wanted.items():
        yield from check(found, module, requirement, installs[module])
    error = root_error(found, "mmcv.ops")
    if error and "mmcv-lite" not in found.versions:
        yield Problem(f"torch cannot load mmcv's operators: {error}", installs["mmcv"])
    if found.versions.keys() >= {"opencv-python", HEADLESS_OPENCV}:
        what = f"opencv-python and {HEADLESS_OPENCV} own the same files; the first is enough."
        yield Problem(what, f"{short(sys.executable)} {short(OPENCV_SCRIPT)}", "warning")
    built_for = found.machine.get("MMCV CUDA Compiler")
    if found.machine.get("CUDA available") and built_for == "not available":
        what = "There is a GPU, but mmcv's operators are compiled for the CPU only."
        yield Problem(what, installs["mmcv"], "warning")


def check(found: Environment, module: str, wanted: Requirement, install: str) -> Iterator[Problem]:
    """Yield the problem of one package, if any: conflicting, missing, unsupported or broken."""
    name, version = wanted.name, found.versions.get(wanted.name)
    error = root_error(found, module)
    names = (f"{module}-lite", *LIBRARIES[module][:2]) if module in LIBRARIES else ()
    rivals = [each for each in names if each != name and each in found.versions]
    severity = "warning" if module == "mmpretrain" else "error"
    if rivals:
        # Two distributions of one module own the same files: removing one breaks the other.
        command = f"{pip('uninstall', '-y', *rivals, name)} && {install}"
        why = f"does not match the other libraries of OpenMMLab; {name} does"
        if rivals[0] == "mmcv-lite":
            why = "has no compiled operators"
        yield Problem(f"{rivals[0]} {why}.", command)
    elif error and "libGL" in error:
        command = "sudo apt-get install libgl1   # Fedora: sudo dnf install mesa-libGL"
        yield Problem("OpenCV needs the system library libGL.", command)
    elif module in found.errors and version is None:
        yield Problem(f"{name} is missing.", install, severity)
    elif version and not wanted.specifier.contains(version, prereleases=True):
        yield Problem(f"{name} is {version}, but hcformer_mm supports {wanted}.", install)
    elif error:
        command = f"{pip('uninstall', '-y', name)} && {install}"
        yield Problem(f"{name} {version} cannot be imported: {error}", command, severity)


def root_error(found: Environment, module: str) -> str | None:
    """Import error of a module; None without one, or if an earlier module failed with it too."""
    error = found.errors.get(module)
    first = next((name for name, each in found.errors.items() if each == error), None)
    return error if first == module else None


def examine() -> Environment:
    """Collect the facts about the environment of the running interpreter.

    Raises:
        importlib.metadata.PackageNotFoundError: hcformer_mm is not installed.
    """
    if not CONFIG.exists():
        raise metadata.PackageNotFoundError("hcformer_mm")
    lines = [*(metadata.requires("hcformer_mm") or ()), *UNDECLARED]
    declared = [each for each in map(Requirement, lines) if each.marker is None]
    requirements = {MODULES.get(each.name, each.name.replace("-", "_")): each for each in declared}
    versions, machine = {}, {}
    for name in (*(each.name for each in declared), "mmcv-lite", HEADLESS_OPENCV, *WINDOWS):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    libraries = ("mmengine", "mmcv", "mmcv.ops", "mmdet", "mmseg", "mmpretrain")
    errors = try_imports([*requirements, *libraries])
    if not errors.keys() & {"mmcv", "mmcv.ops"}:
        from mmcv.utils import collect_env

        machine = collect_env()
    return Environment(versions, errors, machine, requirements)


def try_imports(modules: Sequence[str]) -> dict[str, str]:
    """Import modules in another process, which may crash.

    Returns:
        Errors by module, in the order of the attempts, without the modules that can be imported.
    """
    errors, left = {}, list(modules)
    while left:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork"), _mute) as pool:
            try:
                while left:
                    if error := pool.submit(_import_error, left[0]).result():
                        errors[left[0]] = error
                    left.pop(0)
            except BrokenProcessPool:
                errors[left.pop(0)] = "the interpreter died"
    return errors


def _mute() -> None:
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _import_error(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except BaseException as error:  # some modules call sys.exit
        return f"{type(error).__name__}: {error}"
    return None


def try_model() -> None:
    """Build a small HCFormer from its config, train it for a step and predict, on a GPU if any.

    Raises:
        RuntimeError: the loss is not finite.
    """
    import torch
    from mmdet.registry import MODELS
    from mmdet.testing import demo_mm_inputs
    from mmengine.config import Config
    from mmengine.device import get_device
    from mmengine.registry import init_default_scope

    config = Config.fromfile(CONFIG)
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model).to(get_device())
    shape = (3, 64, 64)
    batch = demo_mm_inputs(image_shapes=shape, num_classes=6, with_mask=True, with_semantic=True)
    losses = model.train()(**model.data_preprocessor(batch, training=True), mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    if not total.isfinite():
        raise RuntimeError(f"expected a finite loss, got {total.item()}")
    with torch.inference_mode():
        model.eval().test_step(batch)


def main() -> int:
    """Print versions, hardware and problems, then try a model; 0 if it runs, otherwise 1."""
    print("Examining the environment ...", flush=True)
    try:
        found = examine()
    except metadata.PackageNotFoundError:
        install = pip("install", "-e", short(PACKAGE.parent))
        print(f"error: hcformer_mm is not installed here; type {install}")
        return 1
    skipped = ("PyTorch compiling details", "numpy_random_seed")
    for name, value in {**found.machine, **found.versions}.items():
        if name not in skipped:
            print(f"{name:<22} {value}")
    problems = list(diagnose(found))
    for what, command, severity in problems:
        print(f"\n{severity}: {what}\n    {command}", flush=True)
    if any(problem.severity == "error" for problem in problems):
        return 1
    try:
        try_model()
    except Exception as error:
        print(f"\nerror: a small model does not run: {type(error).__name__}: {error}")
        return 1
    print("\nA small HCFormer was built from its config, trained for a step and predicted.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
