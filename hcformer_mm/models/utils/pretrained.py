"""Check whether a module's weights come from a checkpoint."""

from mmengine.model import PretrainedInit
from torch import nn


def is_pretrained(module: nn.Module) -> bool:
    """Whether the module's ``init_cfg``, one or a list of them, loads a checkpoint."""
    cfgs = getattr(module, "init_cfg", None) or []
    kinds = [cfg.get("type") for cfg in ([cfgs] if isinstance(cfgs, dict) else cfgs)]
    return "Pretrained" in kinds or PretrainedInit in kinds
