"""The families of OpenMMLab's distributions that can be installed; they share import names.

Used by ``install.py`` and ``mmcv_wheel.py``; needs only the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmcv_build import InstallError

DEFAULT = "onedl"
STACKS: Mapping[str, str] = {
    DEFAULT: "requirements/mminstall.txt",
    "openmmlab": "requirements/openmmlab.txt",
}
"""Requirements files by stack: the maintained forks, and OpenMMLab's own distributions."""


def requirements_file(env: Mapping[str, str]) -> str:
    """The file that pins the stack which the variable ``STACK`` names.

    Raises:
        InstallError: there is no such stack.
    """
    stack = env.get("STACK") or DEFAULT
    if stack not in STACKS:
        raise InstallError(f"expected STACK to be {' or '.join(STACKS)}, got {stack!r}.")
    return STACKS[stack]
