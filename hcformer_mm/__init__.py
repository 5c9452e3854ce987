"""HCFormer: hierarchical clustering segmentation for OpenMMLab."""

import sys

from .utils.debug_prints import drop_debug_prints
from .version import __version__, check_versions

# The doctor reports unsupported versions itself, and which libraries cannot be imported.
if "hcformer_mm.doctor" not in sys.orig_argv:
    check_versions()
    drop_debug_prints()

__all__ = ["__version__"]
