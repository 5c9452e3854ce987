"""Pretrained weights: whether a module loads them, and the names of timm's."""

from collections.abc import Iterator
from typing import Any

from mmengine.model import PretrainedInit
from torch import nn

TIMM_MODEL = "timm_model"
"""Attribute of OpenMMLab's ``TIMMBackbone`` that holds timm's model."""


def is_pretrained(module: nn.Module) -> bool:
    """Whether the module's ``init_cfg``, one or a list of them, loads a checkpoint."""
    cfgs = getattr(module, "init_cfg", None) or []
    kinds = [cfg.get("type") for cfg in ([cfgs] if isinstance(cfgs, dict) else cfgs)]
    return "Pretrained" in kinds or PretrainedInit in kinds


def timm_names(source: str) -> Iterator[str]:
    """Yield the names that a tensor of timm's own file may have in a ``TIMMBackbone``.

    Feature extractors of timm join the names of a container and its child by an underscore, or hold
    the model as ``model``.
    """
    for name in (source, source.replace(".", "_", 1), f"model.{source}"):
        yield f"{TIMM_MODEL}.{name}"


def rename_timm_weights(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Before loading, rename tensors of timm's own files; a hook for a ``TIMMBackbone``."""
    own = module.state_dict()
    for source in [name for name in state_dict if name.startswith(prefix)]:
        name = source.removeprefix(prefix)
        target = next((target for target in timm_names(name) if target in own), None)
        if name not in own and target is not None:
            state_dict[prefix + target] = state_dict.pop(source)
