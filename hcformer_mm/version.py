"""The package's version, and the versions of OpenMMLab that it works with."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

__version__ = "0.1.0"


class Library(NamedTuple):
    """A library of OpenMMLab, and the window of versions that is supported.

    Attributes:
        fork: distribution maintained at present, which ``make install`` installs.
        original: OpenMMLab's own distribution; both import under the same name.
        minimum: oldest supported version.
        below: first version that is no longer supported.
    """

    fork: str
    original: str
    minimum: str
    below: str

    @property
    def window(self) -> str:
        """The supported versions, as pip writes them."""
        return f">={self.minimum},<{self.below}"


LIBRARIES: Mapping[str, Library] = {
    "mmengine": Library("onedl-mmengine", "mmengine", "0.10.0", "1.0.0"),
    "mmcv": Library("onedl-mmcv", "mmcv", "2.0.0rc4", "3.0.0"),
    "mmdet": Library("onedl-mmdetection", "mmdet", "3.0.0", "4.0.0"),
    "mmseg": Library("onedl-mmsegmentation", "mmsegmentation", "1.0.0", "2.0.0"),
    "mmpretrain": Library("onedl-mmpretrain", "mmpretrain", "1.0.0", "2.0.0"),
}


def installed_versions() -> dict[str, str]:
    """Versions of the installed distributions of OpenMMLab, by distribution."""
    found = {}
    for library in LIBRARIES.values():
        for distribution in (library.fork, library.original):
            try:
                found[distribution] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
    return found


def outside_window(installed: Mapping[str, str]) -> dict[str, str]:
    """Which distributions are of a version that is not supported.

    Args:
        installed: version by distribution; what is not installed is not in it.

    Returns:
        By distribution, the requirement that it does not meet, such as ``mmdet>=3.0.0,<4.0.0``.
    """
    wanted = {}
    for library in LIBRARIES.values():
        for distribution in (library.fork, library.original):
            if distribution in installed and not _in_window(installed[distribution], library):
                wanted[distribution] = f"{distribution}{library.window}"
    return wanted


def check_versions(installed: Mapping[str, str] | None = None) -> None:
    """Refuse unsupported versions of OpenMMLab's libraries; missing ones are no fault here.

    Args:
        installed: version by distribution; by default what is installed.

    Raises:
        ImportError: names what was found and what to type.
    """
    installed = installed_versions() if installed is None else installed
    wanted = outside_window(installed)
    if not wanted:
        return
    found = ", ".join(f"{name} {installed[name]}" for name in wanted)
    quoted = " ".join(f"'{requirement}'" for requirement in wanted.values())
    raise ImportError(
        f"hcformer_mm {__version__} does not work with {found}. Type\n    pip install {quoted}\n"
        "or see the whole environment with: python -m hcformer_mm.doctor"
    )


def _in_window(version: str, library: Library) -> bool:
    # Every distribution of OpenMMLab brings packaging; torch alone need not.
    from packaging.version import Version

    return Version(library.minimum) <= Version(version) < Version(library.below)
