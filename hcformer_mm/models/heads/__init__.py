"""Heads that group the coarsest cells into segments."""

from .hcformer_fusion_head import HCFormerFusionHead
from .hcformer_head import HCFormerHead

__all__ = ["HCFormerFusionHead", "HCFormerHead"]
