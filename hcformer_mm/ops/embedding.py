"""Features of unit length, in which pixels are compared (paper, Sec. 2.2 and Fig. 2)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .bands import bands, gradients_with_graph

NORM_EPS = 1e-12
"""Length below which a feature is not made longer, as of ``torch.nn.functional.normalize``."""


class Embedding(NamedTuple):
    """Weights that turn a map into features.

    Attributes:
        weight: Of the layer normalisation, ``(C,)``.
        bias: Of the same.
        projection: Of the 1×1 convolution without bias, ``(C_F, C)``.
        eps: Of the layer normalisation.
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
    return F.normalize(_project(pixels, *embedding), dim=-1, eps=NORM_EPS)


def embed_by_bands(pixels: Tensor, embedding: Embedding) -> Tensor:
    """:func:`embed`, faster and in less memory."""
    parts = bands(pixels.shape, pixels.device)
    if len(parts) == 1:
        return embed(pixels, embedding)
    if torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in (pixels, *embedding)
    ):
        return _Embed.apply(pixels, *embedding)
    return torch.cat([embed(pixels[:, rows], embedding) for rows in parts], dim=1)


def _project(
    pixels: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, eps: float
) -> Tensor:
    pixels = F.layer_norm(pixels.to(weight.dtype), weight.shape, weight, bias, eps)
    # A 1×1 convolution on channels-last memory is one matrix product over all pixels.
    return F.linear(pixels, projection)


class _Embed(torch.autograd.Function):
    """:func:`embed` that keeps its features and their lengths alone, and normalises again."""

    @staticmethod
    def forward(
        ctx: Any, pixels: Tensor, weight: Tensor, bias: Tensor, projection: Tensor, eps: float
    ) -> Tensor:
        features = weight.new_empty(*pixels.shape[:3], len(projection))
        lengths = weight.new_empty(*pixels.shape[:3], 1)
        for rows in bands(pixels.shape, pixels.device):
            projected = _project(pixels[:, rows], weight, bias, projection, eps)
            length = torch.linalg.vector_norm(projected, dim=-1, keepdim=True)
            lengths[:, rows] = length.clamp_min_(NORM_EPS)
            features[:, rows] = projected.div_(length)
        ctx.save_for_backward(pixels, weight, bias, projection, features, lengths)
        ctx.eps = eps
        return features

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixels, weight, bias, projection, features, lengths = ctx.saved_tensors
        inputs = (pixels, weight, bias, projection)
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # somebody differentiates the gradient

            def whole(pixels: Tensor, weight: Tensor, bias: Tensor, projection: Tensor) -> Tensor:
                return embed(pixels, Embedding(weight, bias, projection, ctx.eps))

            return (*gradients_with_graph(whole, inputs, wanted[:4], grad), None)
        totals = [
            torch.zeros_like(x) if needed else None
            for x, needed in zip(inputs, wanted[:4], strict=True)
        ]
        grad_pixels, grad_weight, grad_bias, grad_projection = totals
        for rows in bands(pixels.shape, pixels.device):
            # The derivative of a unit vector is at right angles to it.
            feature, grad_rows = features[:, rows], grad[:, rows]
            along = (feature * grad_rows).sum(dim=-1, keepdim=True)
            grad_rows = (grad_rows - feature * along).div_(lengths[:, rows])
            band = pixels[:, rows].to(weight.dtype)
            normed, mean, deviation = torch.native_layer_norm(
                band, weight.shape, weight, bias, ctx.eps
            )
            if grad_projection is not None:
                grad_projection.addmm_(grad_rows.flatten(0, 2).T, normed.flatten(0, 2))
            if any(wanted[:3]):
                parts = torch.ops.aten.native_layer_norm_backward(
                    grad_rows @ projection,
                    *(band, weight.shape, mean, deviation, weight, bias),
                    list(wanted[:3]),
                )
                if grad_pixels is not None:
                    grad_pixels[:, rows] = parts[0]
                if grad_weight is not None:
                    grad_weight += parts[1]
                if grad_bias is not None:
                    grad_bias += parts[2]
        return (*totals, None)
