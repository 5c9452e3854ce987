"""Test-time augmentation."""

from .hcformer_tta import HCFormerTTAModel

__all__ = ["HCFormerTTAModel"]
