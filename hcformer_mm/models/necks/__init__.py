"""Necks between a clustering backbone and its head."""

from .transformer_encoder_neck import TransformerEncoderNeck

__all__ = ["TransformerEncoderNeck"]
