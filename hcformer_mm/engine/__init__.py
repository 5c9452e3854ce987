"""Extensions of MMEngine's runner: hooks, the command line, and gloo without GPUs."""

from .dist import set_up_gloo
from .hooks.class_check_hook import ClassCheckHook
from .hooks.cluster_record_hook import ClusterRecordHook
from .hooks.cluster_visualization_hook import ClusterVisualizationHook
from .hooks.fast_inference_hook import FastInferenceHook
from .hooks.fast_training_hook import FastTrainingHook

__all__ = [
    "ClassCheckHook",
    "ClusterRecordHook",
    "ClusterVisualizationHook",
    "FastInferenceHook",
    "FastTrainingHook",
    "set_up_gloo",
]
