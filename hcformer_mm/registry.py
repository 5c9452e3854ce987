"""Child registries of ``hcformer_mm``: one for each kind of component that the package adds.

A scoped type name (``hcformer_mm.HCBackbone``) in any config imports the locations below by itself,
so no ``custom_imports`` is needed.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import Registry

__all__ = ["DATASETS", "HOOKS", "METRICS", "MODELS", "OPTIM_WRAPPERS", "TRANSFORMS", "VISUALIZERS"]

MODELS = Registry(
    "model", parent=MMENGINE_MODELS, scope="hcformer_mm", locations=["hcformer_mm.models"]
)
DATASETS = Registry(
    "dataset", parent=MMENGINE_DATASETS, scope="hcformer_mm", locations=["hcformer_mm.datasets"]
)
TRANSFORMS = Registry(
    "transform", parent=MMENGINE_TRANSFORMS, scope="hcformer_mm", locations=["hcformer_mm.datasets"]
)
METRICS = Registry(
    "metric", parent=MMENGINE_METRICS, scope="hcformer_mm", locations=["hcformer_mm.evaluation"]
)
HOOKS = Registry(
    "hook", parent=MMENGINE_HOOKS, scope="hcformer_mm", locations=["hcformer_mm.engine"]
)
VISUALIZERS = Registry(
    "visualizer",
    parent=MMENGINE_VISUALIZERS,
    scope="hcformer_mm",
    locations=["hcformer_mm.visualization.visualizer"],
)
OPTIM_WRAPPERS = Registry(
    "optimizer wrapper",
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope="hcformer_mm",
    locations=["hcformer_mm.engine"],
)
