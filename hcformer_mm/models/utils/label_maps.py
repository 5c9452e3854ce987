"""Labels of label maps."""

import torch
from torch import Tensor


def present_labels(label_map: Tensor, first: int, end: int) -> Tensor:
    """Find the labels from ``first`` to ``end - 1`` that a label map contains.

    ``torch.unique`` sorts all pixels, which takes several times as long.

    Args:
        label_map: Labels of any integer dtype and shape.
        first: First label to look for.
        end: Label after the last one to look for.

    Returns:
        Labels ``(N,)`` in ascending order, int64.
    """
    # All other labels fall into the last place: from the right, or, as index -1, from the left.
    places = (label_map.long() - first).clamp(-1, end - first).flatten()
    present = torch.zeros(end - first + 1, dtype=torch.bool, device=label_map.device)
    return present.index_fill_(0, places, True)[:-1].nonzero()[:, 0] + first
