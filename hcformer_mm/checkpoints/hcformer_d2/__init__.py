"""Checkpoints of the released implementation, there and back."""

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
