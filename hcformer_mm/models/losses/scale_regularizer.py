"""The regularizer of the clustering scales (paper, Sec. 4.1)."""

import torch
from torch import Tensor

from ...structures.clustered_features import ClusteredFeatures


def scale_losses(features: ClusteredFeatures, weight: float) -> dict[str, Tensor]:
    r"""Scale regularizer, :math:`\lambda_{reg} \sum_i |s^{(i)}|`, as an entry of a head's losses.

    Args:
        features: Feature maps with their clustering.
        weight: :math:`\lambda_{reg}`.

    Returns:
        A dict with the scalar ``loss_scale``; empty if no level is clustered.
    """
    if not features.scales:
        return {}
    return {"loss_scale": weight * torch.cat(features.scales).abs().sum()}
