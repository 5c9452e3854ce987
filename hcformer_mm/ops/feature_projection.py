"""Unit-norm features by which pixels and cells are compared (paper, Sec. 2.2 and Fig. 2)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPS = 1e-12
"""Lower bound of the norm in the division: the default of ``torch.nn.functional.normalize``."""


class FeatureProjection(NamedTuple):
    """Weights of the layer normalization and the 1×1 projection in front of the L2 norm.

    Attributes:
        norm_weight: Weight of the layer normalization, ``(C,)``.
        norm_bias: Bias of the layer normalization, ``(C,)``.
        projection: Weight of the 1×1 convolution, which has no bias, ``(C_F, C)``.
        eps: Epsilon of the layer normalization.
    """

    norm_weight: Tensor
    norm_bias: Tensor
    projection: Tensor
    eps: float


def project(pixels: Tensor, weights: FeatureProjection) -> Tensor:
    """Normalize over the channels and project.

    Args:
        pixels: Map ``(B, H, W, C)`` of any floating-point dtype.
        weights: Weights; the computation runs in their dtype.

    Returns:
        Projections ``(B, H, W, C_F)``.
    """
    norm_weight, norm_bias, projection, eps = weights
    pixels = pixels.to(norm_weight.dtype)
    pixels = F.layer_norm(pixels, norm_weight.shape, norm_weight, norm_bias, eps)
    # On channels-last memory a 1×1 convolution is one matrix product over all pixels.
    return F.linear(pixels, projection)


def project_features(pixels: Tensor, weights: FeatureProjection) -> Tensor:
    """Unit-norm features ``(B, H, W, C_F)``: the results of :func:`project` over their lengths."""
    projected = project(pixels, weights)
    return F.normalize(projected, dim=-1, eps=_norm_eps(projected.dtype))


def _norm_eps(dtype: torch.dtype) -> float:
    """Return :data:`NORM_EPS`, or the smallest normal number of a dtype in which that is 0."""
    return max(NORM_EPS, torch.finfo(dtype).tiny)


def gather_channels(pixels: Tensor) -> Tensor:
    """Rows of a map ``(B, r, W, C)`` with the channels of a pixel adjacent; copied unless they are.

    PyTorch transposes whole matrices faster than maps or parts of matrices.
    """
    flat = pixels.flatten(0, 2)
    if not flat.is_contiguous():
        flat = flat.t().contiguous().t().contiguous()
    return flat.view(pixels.shape)


class ProjectedBand:
    """Features of some rows of a map, with the intermediate results that their gradients need.

    Args:
        pixels: The rows, ``(B, r, W, C)``.
        weights: Weights.
        known: ``features`` and ``lengths``, if they have been computed already.

    Attributes:
        features: :func:`project_features` of the rows, ``(B, r, W, C_F)``.
        lengths: Norms of the projections, ``(B, r, W, 1)``, at least :data:`NORM_EPS`.
    """

    def __init__(
        self,
        pixels: Tensor,
        weights: FeatureProjection,
        known: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        norm_weight, norm_bias, projection, eps = weights
        self._weights = weights
        self._pixels = gather_channels(pixels).to(norm_weight.dtype)
        self._normed, *self._moments = torch.native_layer_norm(
            self._pixels, norm_weight.shape, norm_weight, norm_bias, eps
        )
        if known is not None:
            self.features, self.lengths = known
            return
        projected = F.linear(self._normed, projection)
        lengths = torch.linalg.vector_norm(projected, dim=-1, keepdim=True)
        self.lengths = lengths.clamp_min_(_norm_eps(lengths.dtype))
        self.features = projected.div_(self.lengths)

    def backward(
        self, grad: Tensor, place: tuple[slice, slice], totals: Sequence[Tensor | None]
    ) -> None:
        """Add the gradients of these rows to ``totals``; call it once only, as it frees memory.

        Args:
            grad: Gradient of the features, ``(B, r, W, C_F)``.
            place: Images and rows of the map that the band covers.
            totals: Gradients of the whole map and of the three weights, None where not needed.
        """
        grad_pixels, grad_weight, grad_bias, grad_projection = totals
        norm_weight, norm_bias, projection, _ = self._weights
        # The derivative of a unit vector is orthogonal to it.
        parallel = (self.features * grad).sum(dim=-1, keepdim=True)
        grad = torch.addcmul(grad, self.features, parallel, value=-1).div_(self.lengths)
        if grad_projection is not None:
            grad_projection.addmm_(grad.flatten(0, 2).T, self._normed.flatten(0, 2))
        del self._normed  # the largest tensor of a band
        needed = [total is not None for total in totals[:3]]
        if not any(needed):
            return
        parts = torch.ops.aten.native_layer_norm_backward(
            grad @ projection,
            *(self._pixels, norm_weight.shape, *self._moments, norm_weight, norm_bias, needed),
        )
        if grad_pixels is not None:
            found = parts[0]
            if grad_pixels.stride(-1) != 1:  # as in gather_channels()
                found = found.flatten(0, 2).t().contiguous().t().view(found.shape)
            grad_pixels[place] = found
        if grad_weight is not None:
            grad_weight += parts[1]
        if grad_bias is not None:
            grad_bias += parts[2]
