"""The package's version, and the versions of OpenMMLab that it supports."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

__version__ = "0.1.0"


class Library(NamedTuple):
    """A library of OpenMMLab; both of its distributions import under one name.

    Attributes:
        fork: the maintained distribution, which ``make install`` installs.
        original: OpenMMLab's own distribution, which ``make install STACK=openmmlab`` installs.
    """

    fork: str
    original: str


LIBRARIES: Mapping[str, Library] = {
    "mmengine": Library("onedl-mmengine", "mmengine"),
    "mmcv": Library("onedl-mmcv", "mmcv"),
    "mmdet": Library("onedl-mmdetection", "mmdet"),
    "mmseg": Library("onedl-mmsegmentation", "mmsegmentation"),
    "mmpretrain": Library("onedl-mmpretrain", "mmpretrain"),
}
WINDOWS: Mapping[str, str] = {
    "onedl-mmengine": ">=0.10.12,<1.0.0",
    "onedl-mmcv": ">=2.3.6,<3.0.0",
    "onedl-mmdetection": ">=3.5.1,<4.0.0",
    "onedl-mmsegmentation": ">=1.4.2,<2.0.0",
    "onedl-mmpretrain": ">=1.3.6,<2.0.0",
    "mmengine": ">=0.10.7,<1.0.0",
    "mmcv": ">=2.1.0,<3.0.0",
    "mmdet": ">=3.3.0,<4.0.0",
    "mmsegmentation": ">=1.2.2,<2.0.0",
    "mmpretrain": ">=1.2.0,<2.0.0",
}
"""Supported versions by distribution, as pip specifiers. The lowest are those that are tested."""


def installed_versions() -> dict[str, str]:
    """Versions of OpenMMLab's installed distributions, by distribution name."""
    found = {}
    for distribution in WINDOWS:
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def outside_window(installed: Mapping[str, str]) -> dict[str, str]:
    """Requirements such as ``mmdet>=3.3.0,<4.0.0`` that installed versions do not meet.

    Args:
        installed: versions by distribution name.

    Returns:
        The requirement by distribution name; empty if every version is supported.
    """
    # Every distribution of OpenMMLab brings packaging; torch alone need not.
    from packaging.specifiers import SpecifierSet

    return {
        name: f"{name}{window}"
        for name, window in WINDOWS.items()
        if name in installed
        and not SpecifierSet(window).contains(installed[name], prereleases=True)
    }


def check_versions(installed: Mapping[str, str] | None = None) -> None:
    """Raise if a library of OpenMMLab has an unsupported version; a missing library passes.

    Args:
        installed: versions by distribution name; by default those of this environment.

    Raises:
        ImportError: a version is not supported; the message gives the pip command.
    """
    installed = installed_versions() if installed is None else installed
    wanted = outside_window(installed) if installed else {}
    if not wanted:
        return
    found = ", ".join(f"{name} {installed[name]}" for name in wanted)
    quoted = " ".join(f"'{requirement}'" for requirement in wanted.values())
    raise ImportError(
        f"hcformer_mm {__version__} does not work with {found}. Type\n    pip install {quoted}\n"
        "or check the whole environment with: python -m hcformer_mm.doctor"
    )
