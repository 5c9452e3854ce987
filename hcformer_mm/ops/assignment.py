"""Soft assignment of fine pixels to coarse cells: eq. (3) in a 3×3 neighborhood."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .bands import bands, is_eager_cpu
from .feature_projection import (
    NORM_EPS,
    FeatureProjection,
    ProjectedBand,
    gather_channels,
    project,
    project_features,
)
from .neighborhood import (
    NUM_CANDIDATES,
    candidate_rows,
    candidate_values,
    channels_first,
    channels_last,
    coarse_size,
    pad_border,
    parent_rows,
    repeat_for_children,
)
from .neighborhood_products import neighborhood_av, neighborhood_av_transpose, neighborhood_qk
from .precision import autocast_off, full_precision

SCALE_EPS = 1e-8
"""Added to ``|scale|``: a scale of zero then gives the hard assignment of eq. (2), not NaN."""


def soft_assign(fine: Tensor, coarse: Tensor, scale: Tensor | float) -> Tensor:
    r"""Assign every fine pixel softly to the 3×3 coarse cells around its parent, eq. (3).

    .. math:: A = \mathrm{Softmax}_\mathrm{row}(F^\top F_d \,/\, |s|)

    The parent of pixel ``(y, x)`` is the cell ``(y // 2, x // 2)``; the candidates are row-major. A
    candidate outside the coarse map has weight 0, whatever the features are. Similarities and
    softmax are computed in float32 or wider, because division by a small scale would amplify the
    rounding errors of half precision.

    Args:
        fine: Features before downsampling, ``(B, C, H, W)``, of unit norm over C, any H, W ≥ 1.
        coarse: Features after downsampling, ``(B, C, ⌈H/2⌉, ⌈W/2⌉)``, of unit norm over C.
        scale: The scale s; a number or a tensor of one element.

    Returns:
        The assignment ``(B, 9, H, W)`` in the dtype of ``fine`` and channels-last memory. It sums
        to 1 over dim 1.

    Raises:
        ValueError: Shapes, dtypes or devices do not match, or ``scale`` has several elements.

    Example:
        >>> fine = torch.nn.functional.normalize(torch.randn(2, 16, 5, 7), dim=1)
        >>> coarse = torch.nn.functional.normalize(torch.randn(2, 16, 3, 4), dim=1)
        >>> soft_assign(fine, coarse, 0.1).shape
        torch.Size([2, 9, 5, 7])
    """
    _check_maps(fine, coarse)
    if fine.shape[1] != coarse.shape[1] or fine.dtype != coarse.dtype:
        raise ValueError(
            "expected fine and coarse features of equal channels and dtype, got "
            f"{tuple(fine.shape)} of {fine.dtype} and {tuple(coarse.shape)} of {coarse.dtype}"
        )
    with autocast_off(fine.device.type):
        pixels = full_precision(channels_last(fine))
        cells = pad_border(full_precision(channels_last(coarse)))
        divisor = _divisor(_scale_tensor(scale, pixels), pixels.dtype)
        return channels_first(_assign(pixels, cells, divisor, _exclusions(cells)).to(fine.dtype))


def soft_assign_maps(
    fine: Tensor,
    coarse: Tensor,
    scale: Tensor | float,
    fine_projection: FeatureProjection,
    coarse_projection: FeatureProjection,
) -> Tensor:
    """Project two maps to unit-norm features, then assign them as :func:`soft_assign` does.

    On CPUs, the fine features are computed band by band and never stored for the whole map.

    Args:
        fine: Map before downsampling, ``(B, C, H, W)``, any H, W ≥ 1.
        coarse: Map after downsampling, ``(B, C', ⌈H/2⌉, ⌈W/2⌉)``.
        scale: The scale s; a number or a tensor of one element.
        fine_projection: Weights that project the C channels of ``fine``.
        coarse_projection: Weights that project the C' channels of ``coarse``.

    Returns:
        The assignment ``(B, 9, H, W)`` in the dtype of the weights and channels-last memory.

    Raises:
        ValueError: Shapes or devices do not match, or ``scale`` has several elements.
    """
    _check_maps(fine, coarse)
    for x, projection in ((fine, fine_projection), (coarse, coarse_projection)):
        channels = len(projection.norm_weight)
        if x.shape[1] != channels:
            raise ValueError(f"expected a map (B, {channels}, H, W), got {tuple(x.shape)}")
    scale = _scale_tensor(scale, full_precision(fine_projection.norm_weight))
    maps = fine.permute(0, 2, 3, 1), coarse.permute(0, 2, 3, 1)
    weights = *fine_projection[:3], *coarse_projection[:3]
    eps = fine_projection.eps, coarse_projection.eps
    with autocast_off(fine.device.type):
        if len(bands(maps[0], backward=True)) > 1:
            assignment = _BandedAssignment.apply(eps, *maps, scale, *weights)[0]
        else:
            assignment = _assign_maps(eps, *maps, scale, *weights)
        return channels_first(assignment)


def _assign(pixels: Tensor, cells: Tensor, divisor: Tensor, exclusions: Tensor) -> Tensor:
    """Eq. (3) for features ``(B, H, W, C)`` and padded cells ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``.

    ``divisor`` of the similarities is one number, or one for every pixel, ``(B, H, W, 1)``;
    ``exclusions`` are those of the cells.
    """
    similarity = neighborhood_qk(pixels, cells)
    exclusions = repeat_for_children(exclusions, *similarity.shape[1:3])
    return _softmax(torch.addcdiv(exclusions, similarity, divisor))


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the candidates of ``(B, H, W, 9)``."""
    if not is_eager_cpu(logits):
        return logits.softmax(dim=-1)
    # PyTorch vectorizes over pixels, but not over nine adjacent numbers.
    return logits.flatten(0, 2).t().softmax(dim=0).t().contiguous().view(logits.shape)


def _divisor(scale: Tensor, dtype: torch.dtype) -> Tensor:
    return SCALE_EPS + scale.to(dtype).abs()


def _exclusions(cells: Tensor) -> Tensor:
    """Summands ``(1, h, w, 9)`` of the logits for padded cells ``(B, h + 2, w + 2, C)``.

    They are -∞ for the candidates outside the map, otherwise 0.
    """
    inside = full_precision(cells.new_zeros(1, cells.shape[1] - 2, cells.shape[2] - 2))
    return candidate_values(inside, border=-torch.inf)


def _assign_maps(
    eps: tuple[float, float], fine: Tensor, coarse: Tensor, scale: Tensor, *weights: Tensor
) -> Tensor:
    """Eq. (3) for maps ``(B, H, W, C)`` and ``(B, ⌈H/2⌉, ⌈W/2⌉, C')``.

    ``weights`` holds the three tensors of the fine projection, then those of the coarse one.
    """
    fine_projection, coarse_projection = _projections(eps, weights)
    cells = pad_border(full_precision(project_features(coarse, coarse_projection)))
    pixels = full_precision(project(fine, fine_projection))
    # Dividing nine similarities by the length of a pixel moves less memory than normalizing it.
    lengths = torch.linalg.vector_norm(pixels, dim=-1, keepdim=True).clamp_min(NORM_EPS)
    divisor = lengths * _divisor(scale, pixels.dtype)
    return _assign(pixels, cells, divisor, _exclusions(cells)).to(weights[0].dtype)


def _projections(
    eps: tuple[float, float], weights: Sequence[Tensor]
) -> tuple[FeatureProjection, FeatureProjection]:
    fine = FeatureProjection(weights[0], weights[1], weights[2], eps[0])
    return fine, FeatureProjection(weights[3], weights[4], weights[5], eps[1])


class _BandedAssignment(torch.autograd.Function):
    """:func:`_assign_maps` band by band; the backward pass recomputes the fine features."""

    @staticmethod
    def forward(
        eps: tuple[float, float],
        fine: Tensor,
        coarse: Tensor,
        scale: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the assignment, and features and lengths of the cells for the backward pass."""
        fine_projection, coarse_projection = _projections(eps, weights)
        cells = weights[0].new_empty(*coarse.shape[:3], len(coarse_projection.projection))
        lengths = weights[0].new_empty(*coarse.shape[:3], 1)
        for place in bands(coarse):
            band = ProjectedBand(coarse[place], coarse_projection)
            cells[place], lengths[place] = band.features, band.lengths
        del band
        cells = pad_border(cells)
        exclusions = _exclusions(cells)
        divisor = _divisor(scale, exclusions.dtype)
        assignment = weights[0].new_empty(*fine.shape[:3], NUM_CANDIDATES)
        for images, rows in bands(fine):
            pixels = gather_channels(fine[images, rows])
            features = full_precision(project_features(pixels, fine_projection))
            candidates = full_precision(cells[images, candidate_rows(rows)])
            assignment[images, rows] = _assign(
                features, candidates, divisor, exclusions[:, parent_rows(rows)]
            )
        return assignment, cells, lengths

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.eps, *tensors = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:  # the function that read the assignment returned no gradient
            return (None,) * len(ctx.needs_input_grad)
        assignment, cells, lengths, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[1:]
        with autocast_off(grad.device.type):
            if torch.is_grad_enabled():  # create_graph=True: record every step
                chosen = [x for x, need in zip(inputs, needed, strict=True) if need]
                output = _assign_maps(ctx.eps, *inputs)
                found = iter(torch.autograd.grad(output, chosen, grad, create_graph=True))
                return (None, *(next(found) if need else None for need in needed))
            return (None, *_gradients(ctx.eps, inputs, needed, assignment, cells, lengths, grad))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], eps: tuple[float, float], *inputs: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Assign one example after the other."""
        outputs = [
            _BandedAssignment.apply(
                eps,
                *(
                    x if dim is None else x.select(dim, example)
                    for x, dim in zip(inputs, in_dims[1:], strict=True)
                ),
            )
            for example in range(info.batch_size)
        ]
        return tuple(torch.stack(parts) for parts in zip(*outputs, strict=True)), (0, 0, 0)


def _gradients(
    eps: tuple[float, float],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    assignment: Tensor,
    cells: Tensor,
    lengths: Tensor,
    grad: Tensor,
) -> list[Tensor | None]:
    """Gradients with respect to the nine tensors of :func:`_assign_maps`; None where not needed.

    ``cells`` are the padded features of the coarse map, and ``lengths`` ``(B, h, w, 1)`` the norms
    of their projections; ``assignment`` and its gradient are ``(B, H, W, 9)``.
    """
    fine, coarse, scale, *weights = inputs
    fine_projection, coarse_projection = _projections(eps, weights)
    # A band writes its rows of the maps' gradients and adds to all other gradients.
    makers = (*[torch.empty_like] * 2, *[torch.zeros_like] * 7)
    totals = [make(x) if n else None for make, x, n in zip(makers, inputs, needed, strict=True)]
    grad_fine, grad_coarse, grad_scale, *grad_weights = totals
    dtype = torch.promote_types(cells.dtype, torch.float32)
    divisor = _divisor(scale, dtype)
    grad_cells = torch.zeros_like(cells, dtype=dtype)
    for images, rows in bands(fine, backward=True):
        place, candidates = (images, rows), (images, candidate_rows(rows))
        band = ProjectedBand(fine[place], fine_projection)
        shares, slope = assignment[place].to(dtype), grad[place].to(dtype)
        slope = slope - (shares * slope).sum(dim=-1, keepdim=True)
        if grad_scale is not None:
            # log(share) is the logit up to a constant per pixel, which the centered slope cancels.
            total = (slope * torch.xlogy(shares, shares)).sum()
            grad_scale -= (total / divisor * scale.sign()).to(scale.dtype)
        slope = slope.mul_(shares).div_(divisor)
        grad_cells[candidates] += neighborhood_av_transpose(band.features.to(dtype), slope)
        grad_features = neighborhood_av(cells[candidates].to(dtype), slope).to(cells.dtype)
        band.backward(grad_features, place, (grad_fine, *grad_weights[:3]))
        del band, grad_features  # before the next band allocates its own
    features, grad_cells = cells[:, 1:-1, 1:-1], grad_cells[:, 1:-1, 1:-1].to(cells.dtype)
    for place in bands(coarse, backward=True):
        band = ProjectedBand(
            coarse[place], coarse_projection, known=(features[place], lengths[place])
        )
        band.backward(grad_cells[place], place, (grad_coarse, *grad_weights[3:]))
        del band
    return totals


def _scale_tensor(scale: Tensor | float, like: Tensor) -> Tensor:
    if not isinstance(scale, Tensor):
        return like.new_full((1,), scale)
    if scale.numel() != 1:
        raise ValueError(f"expected one scale, got a tensor of shape {tuple(scale.shape)}")
    return scale


def _check_maps(fine: Tensor, coarse: Tensor) -> None:
    for name, x in (("fine", fine), ("coarse", coarse)):
        if x.dim() != 4 or 0 in x.shape[1:]:
            raise ValueError(
                f"expected {name} features (B, C, H, W) with C, H, W >= 1, got {tuple(x.shape)}"
            )
    if fine.shape[0] != coarse.shape[0] or fine.device != coarse.device:
        raise ValueError(
            "expected fine and coarse of one batch size and device, got "
            f"{tuple(fine.shape)} on {fine.device} and {tuple(coarse.shape)} on {coarse.device}"
        )
    expected = coarse_size(*fine.shape[-2:])
    if tuple(coarse.shape[-2:]) != expected:
        raise ValueError(
            f"expected coarse of (⌈H/2⌉, ⌈W/2⌉) = {expected}, got {tuple(coarse.shape[-2:])}"
        )
