"""Leave one OpenCV in the environment of the running Python.

    python tools/misc/one_opencv.py

opencv-python (which mmcv asks for) and opencv-python-headless (which imaug asks for besides, and
the forked mmdet asks for imaug) own the same files: what ``cv2`` is depends on which came last, and
removing either breaks the other. Both go, and opencv-python comes back in its version.
"""

from __future__ import annotations

import sys
from importlib import metadata

from mmcv_build import InstallError, pip

KEPT, OTHER = "opencv-python", "opencv-python-headless"


def installed_versions() -> dict[str, str]:
    """Versions of the two distributions, as far as they are installed."""
    names = (KEPT, OTHER)
    return {name: one.version for name in names for one in metadata.distributions(name=name)}


def main() -> None:
    """Reinstall opencv-python alone if both distributions are installed."""
    found = installed_versions()
    if len(found) < 2:
        return
    for arguments in (
        ("uninstall", "-q", "-y", KEPT, OTHER),
        ("install", "-q", "--no-deps", f"{KEPT}=={found[KEPT]}"),
    ):
        if pip(*arguments) != 0:
            raise InstallError(f"pip {' '.join(arguments)} failed, see above.")


if __name__ == "__main__":
    try:
        main()
    except InstallError as error:
        sys.exit(f"\n{error}")
