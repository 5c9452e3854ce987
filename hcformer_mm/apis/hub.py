"""Models by name, as timm lists and creates them."""

from collections.abc import Mapping
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel

from ..utils.config import find_weights, read_config, zoo
from .inference import build_model, check_device


def list_models(pattern: str = "*") -> list[str]:
    """Return the names and aliases of the configs of this package, sorted.

    Args:
        pattern: Shell pattern of the names, such as ``'*swin*'``.
    """
    return sorted(matching(zoo(), pattern))


def create_model(
    name: str | Path,
    pretrained: str | Path | bool | None = None,
    *,
    device: str | torch.device = "cpu",
    cfg_options: Mapping[str, Any] | None = None,
) -> BaseModel:
    """Build the model of a config. Nothing is downloaded.

    Args:
        name: One of :func:`list_models`, or another config that
            :func:`~hcformer_mm.utils.config.find_config` finds.
        pretrained: Path of a checkpoint, which is loaded with ``weights_only=True``; True loads the
            weights that come with this package, as those of ``hcformer_tiny_shapes`` do; None or
            False gives random weights.
        device: Device of the model.
        cfg_options: Overrides of the config, as ``--cfg-options`` gives them.

    Returns:
        The detector or segmentor in evaluation mode; ``dataset_meta`` has its classes.

    Raises:
        ValueError: No such config or device, the checkpoint does not fit it, or ``pretrained`` is
            True and no weights come with this package.
        FileNotFoundError: No such checkpoint.
    """
    config = read_config(name, cfg_options)
    check_device(device)
    weights = find_weights(config) if pretrained is True else pretrained or None
    return build_model(config, weights, device=device)
