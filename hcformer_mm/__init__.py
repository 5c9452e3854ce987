"""HCFormer: hierarchical clustering segmentation for OpenMMLab."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .utils.debug_prints import drop_debug_prints
from .utils.threads import spin_briefly
from .version import __version__, check_versions

spin_briefly()  # before MMEngine imports torch
# The doctor reports unsupported versions itself, and which libraries cannot be imported.
if "hcformer_mm.doctor" not in sys.orig_argv:
    check_versions()
    drop_debug_prints()

if TYPE_CHECKING:
    from .apis.hub import create_model, list_models

__all__ = ["__version__", "create_model", "list_models"]


def __getattr__(name: str) -> Any:
    # On demand: OpenMMLab takes seconds to import.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".apis.hub", __name__), name)
