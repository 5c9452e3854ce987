"""Extensions of MMEngine's runner: hooks, the command line, and gloo without GPUs."""

from .dist import set_up_gloo
from .hooks.checkpoint_check_hook import CheckpointCheckHook
from .hooks.cluster_record_hook import ClusterRecordHook
from .hooks.cluster_visualization_hook import ClusterVisualizationHook
from .hooks.data_check_hook import DataCheckHook
from .hooks.fast_inference_hook import FastInferenceHook
from .hooks.fast_training_hook import FastTrainingHook
from .hooks.finite_loss_hook import FiniteLossHook
from .hooks.resumable_checkpoint_hook import ResumableCheckpointHook
from .mixed_precision import BFloat16OptimWrapper

ClassCheckHook = DataCheckHook

__all__ = [
    "BFloat16OptimWrapper",
    "CheckpointCheckHook",
    "ClassCheckHook",
    "ClusterRecordHook",
    "ClusterVisualizationHook",
    "DataCheckHook",
    "FastInferenceHook",
    "FastTrainingHook",
    "FiniteLossHook",
    "ResumableCheckpointHook",
    "set_up_gloo",
]
