"""Checkpoints of the released implementation, there and back."""

from .convert import Conversion, convert, revert
from .files import Report, convert_file, revert_file
from .variant import Variant, choose_config, find_variant, variant_of_config

__all__ = [
    "Conversion",
    "Report",
    "Variant",
    "choose_config",
    "convert",
    "convert_file",
    "find_variant",
    "revert",
    "revert_file",
    "variant_of_config",
]
