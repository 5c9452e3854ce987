"""Models: the clustering module, the backbone around it, and necks and heads that read clusters."""

from .backbones import HCBackbone
from .heads import (
    ClusteredDecodeHead,
    HCASPPHead,
    HCFCNHead,
    HCFormerFusionHead,
    HCFormerHead,
    HCFormerSegHead,
    HCPSPHead,
)
from .layers.clustering import ClusteringModule
from .necks import TransformerEncoderNeck
from .test_time_augs import HCFormerTTAModel

__all__ = [
    "ClusteredDecodeHead",
    "ClusteringModule",
    "HCASPPHead",
    "HCBackbone",
    "HCFCNHead",
    "HCFormerFusionHead",
    "HCFormerHead",
    "HCFormerSegHead",
    "HCFormerTTAModel",
    "HCPSPHead",
    "TransformerEncoderNeck",
]
