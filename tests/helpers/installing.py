"""Scripts that stand in for programs, and a copy of what a build of the package reads."""

import shutil
import stat
from pathlib import Path

ROOT = Path(__file__).parents[2]


def executable(path, script):
    """Write a shell script that can be run; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def copy_source(target):
    """Copy what a build of the package reads; the folder of the copy."""
    skip = shutil.ignore_patterns("__pycache__", "*.py[co]", ".mim")
    for name in ("hcformer_mm", "configs", "tools", "requirements"):
        shutil.copytree(ROOT / name, target / name, ignore=skip)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy2(ROOT / name, target)
    shutil.copy2(ROOT / "model-index.yml", target)
    return target
