"""What runs beside training and testing."""

from .class_check_hook import ClassCheckHook
from .gloo import set_up_gloo

__all__ = ["ClassCheckHook", "set_up_gloo"]
