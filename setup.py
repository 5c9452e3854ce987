"""Package of hcformer_mm: its wheel carries configs and tools as OpenMMLab's packages do."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = "hcformer_mm"
# mim and MMEngine look for these under hcformer_mm/.mim; tools/misc/mmcv_wheel.py reads mmcv's
# version from the requirements.
MIM = ("configs", "tools", "requirements", "model-index.yml")
PYTHONS = (10, 11, 12, 13)  # minor versions on which the tests ran
JUNK = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*")


def requirements(name: str) -> list[str]:
    """The requirements in requirements/NAME.txt, without comments."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    stripped = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return [line for line in stripped if line]


def version() -> str:
    """The version, read without importing the package."""
    text = (ROOT / PACKAGE / "version.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{PACKAGE}/version.py has no line __version__ = ...")
    return found.group(1)


class BuildWithMim(build_py):
    """Adds hcformer_mm/.mim: copies in a wheel, links into the clone if installed as editable."""

    def run(self) -> None:
        """Build the package, then .mim."""
        super().run()
        sources = [ROOT / name for name in MIM if (ROOT / name).exists()]
        if self.editable_mode:
            mim = ROOT / PACKAGE / ".mim"
            shutil.rmtree(mim, ignore_errors=True)
            mim.mkdir()
            for source in sources:
                (mim / source.name).symlink_to(Path("..", "..", source.name))
            return
        mim = Path(self.build_lib, PACKAGE, ".mim")
        mim.mkdir(parents=True)
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, mim / source.name, ignore=JUNK)
            else:
                shutil.copy2(source, mim / source.name)


# Outside the clone, since files of an earlier build would end up in every later wheel.
build_folder = tempfile.mkdtemp(prefix=f"{PACKAGE}-build-")
atexit.register(shutil.rmtree, build_folder, ignore_errors=True)
extras = {name: requirements(name) for name in ("mminstall", "optional", "tests")}
readme = ROOT / "README.md"

setup(
    name=PACKAGE,
    version=version(),
    description="HCFormer: unified image segmentation with hierarchical clustering, for OpenMMLab",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="computer vision, image segmentation, panoptic segmentation, clustering, OpenMMLab",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in PYTHONS),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    python_requires=">=3.10",
    install_requires=requirements("runtime"),
    extras_require={**extras, "all": sorted({name for group in extras.values() for name in group})},
    cmdclass={"build_py": BuildWithMim},
    options={"build": {"build_base": build_folder}},
    zip_safe=False,
)
