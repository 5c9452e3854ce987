"""What runs beside training and testing."""

from .class_check_hook import ClassCheckHook
from .cluster_record_hook import ClusterRecordHook
from .cluster_visualization_hook import ClusterVisualizationHook
from .fast_inference_hook import FastInferenceHook
from .fast_training_hook import FastTrainingHook
from .gloo import set_up_gloo

__all__ = [
    "ClassCheckHook",
    "ClusterRecordHook",
    "ClusterVisualizationHook",
    "FastInferenceHook",
    "FastTrainingHook",
    "set_up_gloo",
]
