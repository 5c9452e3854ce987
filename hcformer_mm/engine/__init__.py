"""What runs beside training and testing."""

from .class_check_hook import ClassCheckHook
from .cluster_record_hook import ClusterRecordHook
from .gloo import set_up_gloo

__all__ = ["ClassCheckHook", "ClusterRecordHook", "set_up_gloo"]
