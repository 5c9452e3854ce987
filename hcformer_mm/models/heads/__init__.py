"""Heads that group the coarsest cells into segments."""

from .clustered_decode_head import ClusteredDecodeHead, HCASPPHead, HCFCNHead, HCPSPHead
from .hcformer_fusion_head import HCFormerFusionHead
from .hcformer_head import HCFormerHead
from .hcformer_seg_head import HCFormerSegHead

__all__ = [
    "ClusteredDecodeHead",
    "HCASPPHead",
    "HCFCNHead",
    "HCFormerFusionHead",
    "HCFormerHead",
    "HCFormerSegHead",
    "HCPSPHead",
]
