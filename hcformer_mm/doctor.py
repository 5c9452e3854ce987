"""Can this environment run HCFormer, and if not, what to type: ``python -m hcformer_mm.doctor``.

Looking (``examine``), judging (``diagnose``, a pure function) and trying (``try_model``) are apart.
Exit code 0 says that a model was built from a config and ran.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

from .version import LIBRARIES, installed_versions, outside_window

Family = Literal["fork", "original"]
MINIMUM_PYTHON = (3, 10)
MINIMUM_TORCH = (2, 5)  # as in requirements/runtime.txt: reads checkpoints as data
MODEL = "hcformer_r18_shapes-panoptic.py"
# Distribution by import name, for what is needed besides OpenMMLab.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "cv2": "opencv-python",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "matplotlib": "matplotlib",
    "fvcore": "fvcore",
    "tabulate": "tabulate",
    "pycocotools": "pycocotools",
    "faster_coco_eval": "faster-coco-eval",
    "ftfy": "ftfy",
    "regex": "regex",
}
PANOPTICAPI = ("panopticapi-lite", "panopticapi")
MMCV_WITHOUT_OPERATORS = "mmcv-lite"
# Tried in this order, so that what an import needs comes before it.
IMPORTS = (*PACKAGES, "mmengine", "mmcv", "mmcv.ops", "mmdet", "mmseg", "mmpretrain", "panopticapi")
# Reports each import on a marked line of JSON: before it is tried, and its outcome.
MARK = "import outcome: "
PROBE = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
mark, *names = sys.argv[1:]
for name in names:
    print(mark + json.dumps([name, "the interpreter died", None]), flush=True)
    answer = error = None
    try:
        module = importlib.import_module(name)
        if name == "torch" and module.cuda.is_available():
            answer = module.version.cuda
        if name == "mmcv.ops":
            answer = module.get_compiling_cuda_version()
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    print(mark + json.dumps([name, error, answer]), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Environment:
    """What was found.

    Attributes:
        python: version of the interpreter.
        versions: version by distribution.
        errors: by import name, why the import failed; in the order in which they were tried.
        cuda: CUDA release with which torch sees a GPU; None without a GPU.
        ops_cuda: CUDA release for which mmcv's operators are compiled; None if for the CPU only.
        executable: how to call the interpreter.
        mmcv_script: the installer of mmcv that comes with this package.
    """

    python: tuple[int, ...]
    versions: Mapping[str, str]
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cuda: str | None = None
    ops_cuda: str | None = None
    executable: str = "python"
    mmcv_script: str = "tools/misc/mmcv_wheel.py"

    @property
    def family(self) -> Family:
        """Which distributions of OpenMMLab it is made of: those that most belong to."""
        forks = sum(library.fork in self.versions for library in LIBRARIES.values())
        originals = sum(library.original in self.versions for library in LIBRARIES.values())
        return "original" if originals > forks else "fork"

    @property
    def root_errors(self) -> dict[str, str]:
        """The failed imports that are not just a consequence of an earlier one."""
        first: dict[str, str] = {}
        for name, error in self.errors.items():
            first.setdefault(error, name)
        return {name: error for error, name in first.items()}

    def pip(self, *arguments: str) -> str:
        """A command line for pip of this environment; requirements are quoted."""
        quoted = (f"'{text}'" if set("<>=") & set(text.lstrip("-")) else text for text in arguments)
        return f"{self.executable} -m pip {' '.join(quoted)}"

    def install(self, name: str, family: Family | None = None) -> str:
        """The command that installs a library of OpenMMLab, mmcv with its operators."""
        family = family or self.family
        if name == "mmcv" and family == "fork":
            return f"{self.executable} {self.mmcv_script}"
        wanted = f"{getattr(LIBRARIES[name], family)}{LIBRARIES[name].window}"
        if name == "mmcv":
            return f"{self.pip('install', 'openmim')} && mim install '{wanted}'"
        return self.pip("install", wanted)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong, and the command that mends it.

    Attributes:
        what: what is wrong.
        command: what to type.
        severity: an ``error`` keeps models from being trained or evaluated; ``warning`` only some.
    """

    what: str
    command: str
    severity: Literal["error", "warning"] = "error"


def diagnose(found: Environment) -> list[Problem]:
    """What is wrong with an environment, in the order in which to mend it."""
    checks = (
        _python,
        _packages,
        _torch,
        _distributions,
        _windows,
        _libraries,
        _operators,
        _panopticapi,
    )
    return [problem for check in checks for problem in check(found)]


def _python(found: Environment) -> Iterator[Problem]:
    if found.python < MINIMUM_PYTHON:
        version, minimum = (".".join(map(str, item)) for item in (found.python, MINIMUM_PYTHON))
        what = f"Python is {version}; {minimum} or newer is needed."
        yield Problem(what, "PYTHON=python3.11 make install")


def _packages(found: Environment) -> Iterator[Problem]:
    for name, distribution in PACKAGES.items():
        error = found.errors.get(name)
        if error is None:
            continue
        if "libGL" in error:
            command = "sudo apt-get install libgl1   # Fedora: sudo dnf install mesa-libGL"
            yield Problem("OpenCV needs the system's libGL.", command)
        elif distribution not in found.versions:
            yield Problem(f"{distribution} is missing.", found.pip("install", distribution))
        elif name in found.root_errors:
            what = f"{distribution} {found.versions[distribution]} cannot be imported: {error}"
            yield Problem(what, found.pip("install", "--force-reinstall", distribution))


def _torch(found: Environment) -> Iterator[Problem]:
    version = found.versions.get("torch")
    if version is None:
        return
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_TORCH:
        minimum = ".".join(map(str, MINIMUM_TORCH))
        what = f"torch is {version}; {minimum} or newer is needed."
        yield Problem(what, found.pip("install", f"torch>={minimum}"))


def _distributions(found: Environment) -> Iterator[Problem]:
    """The forks and the originals write the same files."""
    strangers = {
        name: library.original if found.family == "fork" else library.fork
        for name, library in LIBRARIES.items()
        if (library.original if found.family == "fork" else library.fork) in found.versions
    }
    if not strangers:
        return
    # Removing one of two that share their files breaks the other: both go, and one comes back.
    twins = [getattr(LIBRARIES[name], found.family) for name in strangers]
    unwanted = [*strangers.values(), *(name for name in twins if name in found.versions)]
    kind = "maintained forks (onedl-*)" if found.family == "fork" else "original distributions"
    yield Problem(
        f"Mismatched distributions of OpenMMLab: {', '.join(unwanted)} among the {kind}; both "
        "kinds import under the same names.",
        " && ".join([found.pip("uninstall", "-y", *unwanted), *map(found.install, strangers)]),
    )


def _windows(found: Environment) -> Iterator[Problem]:
    for distribution, wanted in outside_window(found.versions).items():
        name, family = _library_of(distribution)
        if family != found.family:
            continue  # it is to be removed, whichever its version
        what = f"{distribution} is {found.versions[distribution]}; supported is {wanted}."
        yield Problem(what, found.install(name, family))


def _library_of(distribution: str) -> tuple[str, Family]:
    for name, library in LIBRARIES.items():
        if distribution == library.fork:
            return name, "fork"
        if distribution == library.original:
            return name, "original"
    raise KeyError(distribution)


def _libraries(found: Environment) -> Iterator[Problem]:
    for name, library in LIBRARIES.items():
        severity: Literal["error", "warning"] = "warning" if name == "mmpretrain" else "error"
        version = found.versions.get(library.fork, found.versions.get(library.original))
        lite = name == "mmcv" and MMCV_WITHOUT_OPERATORS in found.versions
        if version is None and not lite:
            yield Problem(f"{name} is missing.", found.install(name), severity)
        elif name in found.root_errors:
            what = f"{name} {version} cannot be imported: {found.errors[name]}"
            remove = found.pip("uninstall", "-y", getattr(library, found.family))
            yield Problem(what, f"{remove} && {found.install(name)}", severity)


def _operators(found: Environment) -> Iterator[Problem]:
    if MMCV_WITHOUT_OPERATORS in found.versions:
        remove = found.pip("uninstall", "-y", MMCV_WITHOUT_OPERATORS)
        what = f"{MMCV_WITHOUT_OPERATORS} is mmcv without operators."
        yield Problem(what, f"{remove} && {found.install('mmcv')}")
    elif "mmcv.ops" in found.root_errors:
        what = f"mmcv has no operators that this torch can load: {found.errors['mmcv.ops']}"
        yield Problem(what, found.install("mmcv"))
    elif found.cuda and not found.ops_cuda and "mmcv.ops" not in found.errors:
        what = "there is a GPU, and mmcv's operators are compiled for the CPU only."
        yield Problem(what, found.install("mmcv"), "warning")


def _panopticapi(found: Environment) -> Iterator[Problem]:
    if "panopticapi" in found.root_errors:
        # Its own demand of numpy<2 is without a reason, hence --no-deps.
        what = f"panoptic results cannot be evaluated: {found.errors['panopticapi']}"
        yield Problem(what, found.pip("install", "--no-deps", PANOPTICAPI[0]))


def examine() -> Environment:
    """Look at the running interpreter's environment."""
    versions = installed_versions()
    for name in (*PACKAGES.values(), *PANOPTICAPI, MMCV_WITHOUT_OPERATORS, __package__):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    outcomes = try_imports(IMPORTS)
    ops_cuda = outcomes["mmcv.ops"][1]
    package = Path(__file__).resolve().parent
    script = package.parent / "tools" / "misc" / "mmcv_wheel.py"
    if not script.exists():
        script = package / ".mim" / "tools" / "misc" / script.name
    return Environment(
        python=tuple(sys.version_info[:3]),
        versions=versions,
        errors={name: error for name, (error, _) in outcomes.items() if error is not None},
        cuda=outcomes["torch"][1],
        ops_cuda=None if ops_cuda == "not available" else ops_cuda,
        executable=_as_typed(Path(sys.executable)),
        mmcv_script=_as_typed(script),
    )


def try_imports(names: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """Import modules in another process, which may die of it.

    Returns:
        By name, the error or None, and what the module says of CUDA or None.
    """
    outcomes: dict[str, tuple[str | None, str | None]] = {}
    while left := [name for name in names if name not in outcomes]:
        command = [sys.executable, "-c", PROBE, MARK, *left]
        done = subprocess.run(command, capture_output=True, text=True)
        before = len(outcomes)
        for line in done.stdout.splitlines():
            if line.startswith(MARK):
                name, error, answer = json.loads(line.removeprefix(MARK))
                outcomes[name] = (error, answer)
        if len(outcomes) == before:
            raise RuntimeError(f"{sys.executable} cannot import anything: {done.stderr.strip()}")
    return outcomes


def _as_typed(path: Path) -> str:
    """A path as short as it can be written here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def table(found: Environment) -> str:
    """What was found, for people."""
    rows = {"Python": f"{'.'.join(map(str, found.python))} on {platform.platform()}"}
    for name, distribution in PACKAGES.items():
        rows[distribution] = _cell(found, name, distribution)
    for name, library in LIBRARIES.items():
        rows[name] = _cell(found, name, library.fork, library.original)
        if name == "mmcv":
            built = f"compiled for {'CUDA ' + found.ops_cuda if found.ops_cuda else 'the CPU'}"
            rows["mmcv.ops"] = "none" if "mmcv.ops" in found.errors else built
    rows["panopticapi"] = _cell(found, "panopticapi", *PANOPTICAPI)
    rows["GPU"] = f"CUDA {found.cuda}" if found.cuda else "none"
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _cell(found: Environment, name: str, *distributions: str) -> str:
    here = [f"{found.versions[each]} ({each})" for each in distributions if each in found.versions]
    state = ", cannot be imported" if here and name in found.errors else ""
    return (", ".join(here) or "missing") + state


def try_model() -> None:
    """Build a small HCFormer from its config, and run a training step and a prediction.

    On the GPU if torch sees one.

    Raises:
        RuntimeError: a loss is not finite.
    """
    import torch
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.config import Config
    from mmengine.device import get_device
    from mmengine.registry import init_default_scope
    from mmengine.structures import InstanceData, PixelData

    config = Config.fromfile(Path(__file__).parent / ".mim" / "configs" / "shapes" / MODEL)
    init_default_scope(config.default_scope)
    model = MODELS.build(config.model).to(get_device())
    side = 64
    sample = DetDataSample(metainfo=dict(img_shape=(side, side), ori_shape=(side, side)))
    masks = BitmapMasks([torch.ones(side, side, dtype=torch.uint8).numpy()], side, side)
    sample.gt_instances = InstanceData(labels=torch.tensor([0]), masks=masks)
    sample.gt_sem_seg = PixelData(sem_seg=torch.zeros(1, side, side, dtype=torch.long))
    image = torch.zeros(3, side, side, dtype=torch.uint8)
    # Twice the same: batch normalization wants more than one value per channel.
    batch = dict(inputs=[image, image], data_samples=[sample, sample.clone()])
    losses = model.train()(**model.data_preprocessor(batch, training=True), mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    if not total.isfinite():
        raise RuntimeError(f"expected a finite loss, got {total.item()}")
    with torch.inference_mode():
        model.eval().test_step(batch)


def main() -> int:
    """Print what was found and what to do.

    Returns:
        0 if a model runs, 1 if not.
    """
    print("Looking at the environment ...", flush=True)
    found = examine()
    print(table(found), flush=True)
    problems = diagnose(found)
    for problem in problems:
        print(f"\n{problem.severity}: {problem.what}\n    {problem.command}")
    if any(problem.severity == "error" for problem in problems):
        return 1
    try:
        try_model()
    except Exception as error:  # whatever keeps a model from running is the answer
        print(f"\nerror: a small model does not run: {type(error).__name__}: {error}")
        return 1
    print("\nA small HCFormer was built from its config, trained a step and predicted.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
