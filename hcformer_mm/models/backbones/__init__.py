"""Backbones that cluster."""

from .hc_backbone import HCBackbone

__all__ = ["HCBackbone"]
