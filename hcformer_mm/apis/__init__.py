"""Inferencers: run a model on images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cluster_inferencer import ClusterInferencer
    from .hcformer_inferencer import HCFormerInferencer
    from .video_inferencer import VideoInferencer

__all__ = ["ClusterInferencer", "HCFormerInferencer", "VideoInferencer"]

_MODULES = {
    "ClusterInferencer": "cluster_inferencer",
    "HCFormerInferencer": "hcformer_inferencer",
    "VideoInferencer": "video_inferencer",
}


def __getattr__(name: str) -> Any:
    # On demand: they import mmdet and mmseg, which takes seconds that most tools can save.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
