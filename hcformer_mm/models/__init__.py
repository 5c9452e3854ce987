"""Models: the clustering module, backbones around it, and the heads that read it."""

from .backbones import HCBackbone
from .clustering import ClusteringModule
from .heads import HCFormerFusionHead, HCFormerHead

__all__ = ["ClusteringModule", "HCBackbone", "HCFormerFusionHead", "HCFormerHead"]
