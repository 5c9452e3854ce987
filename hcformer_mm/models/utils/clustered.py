"""What necks and heads ask of clustered features."""

from typing import Any

import torch
from torch import Tensor

from ...structures.clustered_features import ClusteredFeatures


def require_clustering(features: Any) -> ClusteredFeatures:
    """The features themselves, if they carry a clustering.

    Raises:
        TypeError: They do not; the message says how to get some.
    """
    if not isinstance(features, ClusteredFeatures):
        raise TypeError(
            f"expected ClusteredFeatures of an HCBackbone, got {type(features).__name__}; wrap the "
            "backbone: backbone=dict(type='hcformer_mm.HCBackbone', backbone=dict(...))"
        )
    return features


def scale_losses(features: ClusteredFeatures, weight: float) -> dict[str, Tensor]:
    r"""The scale regularizer, :math:`\lambda_{reg} \sum_i |s^{(i)}|` (paper, Sec. 4.1).

    Args:
        features: Feature maps with their clustering.
        weight: :math:`\lambda_{reg}`.

    Returns:
        ``loss_scale``, a scalar, to join a head's losses; nothing where nothing is clustered.
    """
    if not features.scales:
        return {}
    return {"loss_scale": weight * torch.cat(features.scales).abs().sum()}
