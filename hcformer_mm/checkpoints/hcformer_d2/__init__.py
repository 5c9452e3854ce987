"""Conversion of checkpoints from the released Detectron2 implementation, and back to it."""

from .architecture import Architecture, architecture_of_config, choose_config, find_architecture
from .convert import Conversion, convert, revert
from .files import Report, convert_file, revert_file

__all__ = [
    "Architecture",
    "Conversion",
    "Report",
    "architecture_of_config",
    "choose_config",
    "convert",
    "convert_file",
    "find_architecture",
    "revert",
    "revert_file",
]
