"""SegmentTracker: ids of objects that stay the same over the frames of a video."""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

MAX_SIDE = 512
"""Masks are compared at every n-th pixel, so that their longer side has at most so many."""


class _Tracks(NamedTuple):
    """What was last seen of each track: tensors of one row a track."""

    ids: Tensor
    elapsed: Tensor
    labels: Tensor
    embeddings: Tensor
    masks: Tensor
    centers: Tensor
    velocities: Tensor


class SegmentTracker:
    r"""Gives the segments of successive frames the ids of the objects that they show.

    Tracks and segments are matched one to one, so that the sum of their similarities is highest:

    .. math::
        S = w_e \cos(e, e') + w_m \mathrm{IoU}(m + t v, m') + w_c [c = c'],

    where :math:`e` is the query embedding, :math:`m` the mask, :math:`c` the class, and :math:`v`
    the velocity of the mask's center, which moves the mask for the :math:`t` frames since it was
    seen. It is the mean of the last step and of the velocity before, which starts at 0. Pairs below
    ``min_similarity`` are not matched. The first term alone, on successive frames, is MinVIS
    (Huang et al., 2022, Sec. 3.2): the queries of a model that was trained on images follow objects
    by themselves.

    Args:
        weights: :math:`w_e`, :math:`w_m` and :math:`w_c`.
        min_similarity: Minimum similarity of a match. A segment without a match begins a track.
        memory: Frames for which a track waits for an object that is hidden or not found.

    Raises:
        ValueError: A weight or ``memory`` is negative.
    """

    def __init__(
        self,
        *,
        weights: tuple[float, float, float] = (1.0, 2.0, 0.5),
        min_similarity: float = 1.0,
        memory: int = 30,
    ) -> None:
        if min(*weights, memory) < 0:
            raise ValueError(
                f"expected weights and memory of at least 0, got {weights} and {memory}"
            )
        self._weights, self._min_similarity, self._memory = weights, min_similarity, memory
        self._tracks: _Tracks | None = None
        self._size: tuple[int, ...] | None = None
        self._born = 0

    def update(self, masks: Tensor, labels: Tensor, embeddings: Tensor) -> Tensor:
        """Match the segments of the next frame with the tracks.

        Of the tensors, which are on one device, only the similarities are read back.

        Args:
            masks: ``(N, H, W)`` bool.
            labels: Class of each segment, ``(N,)``.
            embeddings: Embedding of the query of each segment, ``(N, C)``.

        Returns:
            Id of the track of each segment, ``(N,)`` int64, on the CPU; from 1, in order of birth.

        Raises:
            ValueError: The frame differs in size from those before.
        """
        size = tuple(masks.shape[1:])
        self._size = self._size or size
        if size != self._size:
            raise ValueError(
                f"expected frames of one size, got another one, {size} after {self._size}; track "
                "each video by its own tracker"
            )
        stride = -(-max(size) // MAX_SIDE)
        masks = masks[:, ::stride, ::stride]
        centers = _centers(masks)
        seen = _Tracks(
            # What the assignment determines stays on the CPU.
            torch.zeros(len(labels), dtype=torch.int64),
            torch.ones(len(labels)),
            labels,
            F.normalize(embeddings, dim=1),
            masks,
            centers,
            torch.zeros_like(centers),
        )
        tracks = self._tracks or _Tracks(*(field[:0] for field in seen))
        similarity = self._similarity(tracks, seen).cpu()
        rows, columns = map(
            torch.from_numpy, linear_sum_assignment(similarity.numpy(), maximize=True)
        )
        alike = similarity[rows, columns] >= self._min_similarity
        rows, columns = rows[alike], columns[alike]
        seen.ids[columns] = tracks.ids[rows]
        born = seen.ids == 0
        seen.ids[born] = self._born + torch.arange(1, 1 + int(born.sum()))
        self._born += int(born.sum())
        frames = tracks.elapsed[rows, None].to(centers)
        steps = (centers[columns] - tracks.centers[rows]) / frames
        before = tracks.velocities[rows]
        # A sliver between the pixels that are compared has no center, and moves on as before.
        seen.velocities[columns] = (before + steps.where(steps.isfinite(), before)) / 2
        waiting = tracks.elapsed <= self._memory
        waiting[rows] = False
        (lost,) = waiting.nonzero(as_tuple=True)
        tracks = tracks._replace(elapsed=tracks.elapsed + 1)
        self._tracks = _Tracks(
            *(torch.cat([new, old[lost]]) for new, old in zip(seen, tracks, strict=True))
        )
        return seen.ids

    def _similarity(self, tracks: _Tracks, seen: _Tracks) -> Tensor:
        """Similarity of each track with each segment, ``(T, N)``."""
        steps = tracks.velocities * tracks.elapsed[:, None].to(tracks.velocities)
        terms = (
            tracks.embeddings @ seen.embeddings.T,
            _ious(_moved(tracks.masks, steps), seen.masks),
            (tracks.labels[:, None] == seen.labels).float(),
        )
        return torch.stack([w * term for w, term in zip(self._weights, terms, strict=True)]).sum(0)


def _centers(masks: Tensor) -> Tensor:
    """Mean row and column of the pixels of each mask, ``(N, 2)``; NaN of an empty one."""
    profiles = [masks.sum(2).float(), masks.sum(1).float()]  # by row and by column
    sums = [one @ torch.arange(one.shape[1]).to(one) for one in profiles]
    return torch.stack(sums, 1) / profiles[0].sum(1)[:, None]


def _moved(masks: Tensor, steps: Tensor) -> Tensor:
    """Masks ``(N, H, W)``, each moved by so many rows and columns, ``(N, 2)``."""
    sources = [
        torch.arange(side, device=masks.device) - step.round().long()[:, None]
        for side, step in zip(masks.shape[1:], steps.T, strict=True)
    ]
    inside = [(at >= 0) & (at < side) for at, side in zip(sources, masks.shape[1:], strict=True)]
    rows, columns = (at.where(ok, 0) for at, ok in zip(sources, inside, strict=True))
    numbers = torch.arange(len(masks), device=masks.device)[:, None, None]
    moved = masks[numbers, rows[:, :, None], columns[:, None, :]]
    return moved & inside[0][:, :, None] & inside[1][:, None, :]


def _ious(masks: Tensor, others: Tensor) -> Tensor:
    """IoU of each mask with each other mask, ``(N, M)``; 0 where both are empty."""
    a, b = (one.flatten(1).float() for one in (masks, others))
    common = a @ b.T
    return common / (a.sum(1)[:, None] + b.sum(1) - common).clamp_min(1)
