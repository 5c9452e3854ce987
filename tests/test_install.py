"""The installer: its decisions and the order of its steps, without installing anything."""

import os
import shutil
import subprocess
import sys

import install
import one_opencv
import pytest
from stacks import STACKS

from tests.helpers.installing import ROOT, executable

SITE = ".venv/lib/python3.11/site-packages"
PYTHON = "{}.{}".format(*sys.version_info[:2])


def fake_python(venv, version):
    """An interpreter that says it belongs to an environment and has a version."""
    return executable(venv / "bin" / "python", f'printf "{version}\\n%s\\n" {venv}')


# Requirements and pins


def test_requirements_drop_comments(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("# why\n\nnumpy\nsetuptools>=80,<82  # a range\n")
    assert install.requirements(file) == ["numpy", "setuptools>=80,<82"]


def test_every_version_is_pinned_once():
    """Exact versions stand in one file only; what runtime.txt leaves open is not pinned twice."""
    exact = [
        # A marker ("; python_version ...") makes it another requirement.
        line.partition("==")[0] + line.partition(";")[2]
        for file in (ROOT / "requirements").glob("*.txt")
        for line in install.requirements(file)
        if "==" in line
    ]
    assert len(exact) == len(set(exact))
    assert {"torch", "torchvision", "onedl-mmcv", "panopticapi-lite", "pycocotools"} <= set(exact)


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("torch", True),
        ("torch==2.14.1", True),
        ("torch==2.14.0", False),
        ("torch>=99", True),  # a range is pip's affair
        ('torch==2.9.0; python_version < "3.10"', True),
        ("Scikit_Image", True),
        ("numpy", False),
    ],
)
def test_is_installed(requirement, expected):
    installed = {"torch": "2.14.1+cpu", "scikit-image": "0.26.0"}
    assert install.is_installed(requirement, installed) is expected


def dist_info(site, name, *, lacks=None):
    folder = site / f"{name}.dist-info"
    folder.mkdir(parents=True)
    for file in {"METADATA", "RECORD", "INSTALLER"} - {lacks}:
        (folder / file).touch()
    return folder


@pytest.mark.parametrize("lacks", ["RECORD", "INSTALLER"])  # what pip writes last, and uv
def test_traces_of_an_interruption_are_removed(tmp_path, lacks):
    """Half a package would count as installed, for pip and uv too."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    dist_info(site, "scikit_image-0.26.0")
    partial = dist_info(site, "torch-2.14.1", lacks=lacks)
    (site / "~umpy").mkdir()
    assert install.distributions_in(tmp_path) == {"scikit-image": "0.26.0"}
    install.remove_partial(tmp_path)
    assert not partial.exists() and not (site / "~umpy").exists()
    assert (site / "scikit_image-0.26.0.dist-info").exists()


# Steps


@pytest.fixture
def clone(tmp_path):
    """A folder with what the plan reads, and a recording interpreter in its environment."""
    root = tmp_path / "clone"
    (root / "hcformer_mm").mkdir(parents=True)
    (root / "requirements").mkdir()
    for file in (ROOT / "requirements").glob("*.txt"):
        (root / "requirements" / file.name).write_text("")
    for name in ("setup.py", "model-index.yml", "hcformer_mm/version.py"):
        (root / name).write_text("")
    for name in ("hcformer_mm-0.1.0", "opencv_python-4.12.0.88"):
        dist_info(root / SITE, name)
    return root


def commands_run(clone, *, fails_at=None, **variables):
    """Install with an interpreter that does nothing; the number of commands that it was given."""
    env = {name: value for name, value in os.environ.items() if name != "STACK"} | variables
    count = clone / "count"
    count.write_text("")
    failure = f'[ "$(wc -l < {count})" -ne {fails_at} ]' if fails_at else "true"
    executable(clone / ".venv" / "bin" / "python", f"echo run >> {count}\n{failure}")
    try:
        install.install(clone, clone / ".venv", "3.11", env)
    except install.InstallError:
        if not fails_at:
            raise
    return len(count.read_text().splitlines())


def test_second_run_does_nothing(clone):
    assert commands_run(clone) == 7
    assert commands_run(clone) == 0


def test_interrupted_run_goes_on(clone):
    assert commands_run(clone, fails_at=3) == 3
    assert commands_run(clone) == 5  # the one that failed, and those after it


@pytest.mark.parametrize(
    ("file", "text", "commands"),
    [
        ("requirements/torch.txt", "# another\n", 6),  # torch and all that is built on it
        ("requirements/nodeps.txt", "# another\n", 2),
        (f".venv/{install.STAMPS}", '{"build too', 7),  # damaged
        (f"{SITE}/hcformer_mm-0.1.0.dist-info/RECORD", None, 1),  # a package that was removed
    ],
)
def test_changes_run_from_their_step(clone, file, text, commands):
    commands_run(clone)
    (clone / file).unlink()
    if text:
        (clone / file).write_text(text)
    assert commands_run(clone) == commands


@pytest.mark.parametrize("fails_at", [None, 1])
def test_an_environment_keeps_its_stack(clone, fails_at):
    """Both families install modules of the same names."""
    commands_run(clone, STACK="openmmlab", fails_at=fails_at)
    assert commands_run(clone) == (7 if fails_at else 0)
    with pytest.raises(install.InstallError, match=r"expected STACK=openmmlab.*`make clean`"):
        commands_run(clone, STACK="onedl")


def test_environment_without_a_note_of_its_stack_has_the_forks(clone):
    commands_run(clone)
    stamps = install.read_stamps(clone / ".venv" / install.STAMPS)
    del stamps["stack"]
    install.write_stamps(clone / ".venv" / install.STAMPS, stamps)
    with pytest.raises(install.InstallError, match="expected STACK=onedl"):
        commands_run(clone, STACK="openmmlab")
    assert commands_run(clone) == 0


def test_unknown_stack_is_refused(clone):
    with pytest.raises(install.InstallError, match="to be onedl or openmmlab, got 'mmlab'"):
        commands_run(clone, STACK="mmlab")


@pytest.mark.parametrize("stack", STACKS)
def test_stack_limits_every_step_that_resolves(stack):
    """Else torchvision would bring a numpy that the stack cannot use."""
    file = STACKS[stack]
    told = [step.name for step in install.plan(ROOT, {"STACK": stack}) if file in step.command]
    assert told == ["build tools", "torch and torchvision", "OpenMMLab, tests and checks"]


@pytest.mark.parametrize(
    ("installed", "commands"),
    [
        ({"opencv-python": "4.11.0.86"}, []),
        ({}, []),
        (
            {"opencv-python": "4.12.0.88", "opencv-python-headless": "4.12.0.88"},
            [
                ["uninstall", "-q", "-y", "opencv-python", "opencv-python-headless"],
                ["install", "-q", "--no-deps", "opencv-python==4.12.0.88"],
            ],
        ),
    ],
)
def test_one_opencv_stays(installed, commands, monkeypatch):
    called = []
    monkeypatch.setattr(one_opencv, "installed_versions", lambda: installed)
    monkeypatch.setattr(one_opencv, "pip", lambda *arguments: called.append([*arguments]) or 0)
    one_opencv.main()
    assert called == commands


def test_keys_depend_on_python_and_place(clone, tmp_path):
    step = install.plan(clone, {})[0]
    other = shutil.copytree(clone, tmp_path / "other")
    places = [(clone, "3.11"), (clone, "3.12"), (other, "3.11")]
    assert len({step.key(root=root, python=python) for root, python in places}) == 3


def test_torch_index_is_for_torch_alone():
    steps = install.plan(ROOT, {"TORCH_INDEX_URL": "https://example.org/cpu"})
    told = [step.name for step in steps if "PIP_INDEX_URL" in step.variables]
    assert told == ["torch and torchvision"]
    for step, plain in zip(steps, install.plan(ROOT, {}), strict=True):
        assert step.key(root=ROOT, python="3.11") == plain.key(root=ROOT, python="3.11")


# Interpreter and environment


def test_old_interpreter_is_refused():
    install.check_version((3, 10, 0))
    with pytest.raises(install.InstallError, match=r"3\.10 or newer .* is 3\.9.*PYTHON="):
        install.check_version((3, 9, 18))


def test_interpreter_without_venv_is_refused():
    install.check_venv_module(lambda name: True)
    told = r"ensurepip(.|\n)*apt-get install python3\.\d+-venv"
    with pytest.raises(install.InstallError, match=told):
        install.check_venv_module(lambda name: name != "ensurepip")


@pytest.mark.parametrize("damage", ["half made", "no interpreter", "dead interpreter"])
def test_broken_environment_is_removed(tmp_path, monkeypatch, damage):
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    if damage != "half made":
        (venv / "pyvenv.cfg").write_text("home = /nowhere\n")
    if damage == "dead interpreter":
        executable(venv / "bin" / "python", "exit 1")

    def fake_run(command, cwd):
        assert command == [sys.executable, "-m", "venv", str(venv)] and not venv.exists()
        fake_python(venv, PYTHON)

    monkeypatch.setattr(install, "run", fake_run)
    assert install.ensure_venv(venv, replace_other=False) == PYTHON


def test_interrupted_removal_goes_on(tmp_path, monkeypatch):
    """Files that packages put into the environment do not prevent its removal."""
    venv = tmp_path / ".venv"
    fake_python(venv, "3.99")
    (venv / "pyvenv.cfg").touch()
    (venv / "tests.txt").touch()
    monkeypatch.setattr(install, "run", lambda command, cwd: fake_python(venv, "3.98"))

    def interrupted(path):
        (path / "pyvenv.cfg").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(install.shutil, "rmtree", interrupted)
        install.ensure_venv(venv, replace_other=True)
    assert install.ensure_venv(venv, replace_other=True) == "3.98"
    assert [path.name for path in tmp_path.iterdir()] == [".venv"]


def test_environment_is_made_once(tmp_path):
    venv = tmp_path / ".venv"
    version = install.ensure_venv(venv, replace_other=False)
    assert version == PYTHON
    (venv / "marker").touch()
    assert install.ensure_venv(venv, replace_other=True) == version
    assert (venv / "marker").exists(), "a sound environment was replaced"


def test_environment_of_another_python(tmp_path, monkeypatch):
    """It is kept, unless the user named an interpreter."""
    venv = tmp_path / ".venv"
    fake_python(venv, "3.99")
    (venv / "pyvenv.cfg").write_text("home = /nowhere\n")
    assert install.ensure_venv(venv, replace_other=False) == "3.99"
    monkeypatch.setattr(install, "run", lambda command, cwd: None)
    with pytest.raises(install.InstallError, match="no working environment"):
        install.ensure_venv(venv, replace_other=True)
    assert not venv.exists()


def test_what_is_no_environment_is_left_alone(tmp_path):
    folder = tmp_path / ".venv"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(install.InstallError, match=r"not a virtual environment .*thesis\.tex"):
        install.ensure_venv(folder, replace_other=True)
    assert (folder / "thesis.tex").exists()


def test_candidates_are_run_to_be_chosen(tmp_path):
    """A version manager's launcher can be on PATH and fail when it runs."""
    broken = executable(tmp_path / "python3.11", "echo 'command not found' >&2; exit 127")
    good = executable(tmp_path / "python3.12", 'case "$1" in -c) exit 0;; esac; echo "ran $1"')
    command = ["make", "-s", "install", f"CANDIDATES={broken} {good}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "ran tools/misc/install.py"
    command[-1] = f"CANDIDATES={broken}"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "No Python 3.10 or newer runs" in done.stderr and "apt-get" in done.stderr
