"""Folders of this package's files. Only the standard library is imported, for the doctor."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = PACKAGE / ".mim"

RESOURCES = _INSTALLED if _INSTALLED.is_dir() else PACKAGE.parent
"""Folder that holds ``configs`` and ``tools``: in the installed package, else in the clone."""
