"""Features of unit length, in which pixels are compared (paper, Sec. 2.2 and Fig. 2)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPS = 1e-12
"""Length below which a feature is not made longer, as of ``torch.nn.functional.normalize``."""


class Embedding(NamedTuple):
    """Weights that turn a map into features.

    Attributes:
        weight: Of the layer normalization, ``(C,)``.
        bias: Of the same.
        projection: Of the 1×1 convolution without bias, ``(C_F, C)``.
        eps: Of the layer normalization.
    """

    weight: Tensor
    bias: Tensor
    projection: Tensor
    eps: float


def embed(pixels: Tensor, embedding: Embedding) -> Tensor:
    """Normalise over the channels, project, and scale to unit length.

    Args:
        pixels: Map ``(B, H, W, C)`` of any floating type.
        embedding: Weights, in whose type is computed.

    Returns:
        Features ``(B, H, W, C_F)``.
    """
    weight, bias, projection, eps = embedding
    pixels = F.layer_norm(pixels.to(weight.dtype), weight.shape, weight, bias, eps)
    # A 1×1 convolution on channels-last memory is one matrix product over all pixels.
    return F.normalize(F.linear(pixels, projection), dim=-1, eps=NORM_EPS)


class Gradients:
    """Gradients of :func:`embed`, added up over bands of a map.

    Args:
        pixels: The whole map, ``(B, H, W, C)``.
        embedding: Weights.
        wanted: Whether gradients are wanted of the map and of the three weights.

    Attributes:
        totals: These gradients, None where not wanted.
    """

    def __init__(self, pixels: Tensor, embedding: Embedding, wanted: tuple[bool, ...]) -> None:
        # Every pixel is in one band, and every band has its share of a weight's gradient.
        makers = (torch.empty_like, torch.zeros_like, torch.zeros_like, torch.zeros_like)
        self.totals = [
            make(x) if needed else None
            for make, x, needed in zip(makers, (pixels, *embedding[:3]), wanted, strict=True)
        ]


class Band:
    """Features of some rows of a map, with what their derivatives need.

    Args:
        pixels: The rows, ``(B, r, W, C)``.
        embedding: Weights.
        known: Features and lengths of these rows, where they are known.

    Attributes:
        features: :func:`embed` of them, ``(B, r, W, C_F)``.
        lengths: Of what was projected, ``(B, r, W, 1)``.
    """

    def __init__(
        self, pixels: Tensor, embedding: Embedding, known: tuple[Tensor, Tensor] | None = None
    ) -> None:
        weight, bias, projection, eps = embedding
        self._embedding = embedding
        self._pixels = pixels.to(weight.dtype)
        self._normed, *self._moments = torch.native_layer_norm(
            self._pixels, weight.shape, weight, bias, eps
        )
        if known is not None:
            self.features, self.lengths = known
            return
        projected = F.linear(self._normed, projection)
        lengths = torch.linalg.vector_norm(projected, dim=-1, keepdim=True)
        self.lengths = lengths.clamp_min_(NORM_EPS)
        self.features = projected.div_(self.lengths)

    def backward(self, grad: Tensor, place: tuple[slice, slice], gradients: Gradients) -> None:
        """Add the gradients of these rows, for the gradient of their features; once.

        Args:
            grad: ``(B, r, W, C_F)``.
            place: Images and rows of the map that these are.
            gradients: What they are added to.
        """
        grad_pixels, grad_weight, grad_bias, grad_projection = gradients.totals
        weight, bias, projection, _ = self._embedding
        # The derivative of a unit vector is at right angles to it.
        along = (self.features * grad).sum(dim=-1, keepdim=True)
        grad = torch.addcmul(grad, self.features, along, value=-1).div_(self.lengths)
        if grad_projection is not None:
            grad_projection.addmm_(grad.flatten(0, 2).T, self._normed.flatten(0, 2))
        del self._normed  # the largest of what a band holds
        wanted = [total is not None for total in gradients.totals[:3]]
        if not any(wanted):
            return
        parts = torch.ops.aten.native_layer_norm_backward(
            grad @ projection,
            *(self._pixels, weight.shape, *self._moments, weight, bias, wanted),
        )
        if grad_pixels is not None:
            grad_pixels[place] = parts[0]
        if grad_weight is not None:
            grad_weight += parts[1]
        if grad_bias is not None:
            grad_bias += parts[2]
