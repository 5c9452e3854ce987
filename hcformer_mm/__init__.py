"""HCFormer: hierarchical clustering segmentation for OpenMMLab."""

import sys

from .version import __version__, check_versions

# The doctor reports unsupported versions itself, with every other problem.
if "hcformer_mm.doctor" not in sys.orig_argv:
    check_versions()

__all__ = ["__version__"]
