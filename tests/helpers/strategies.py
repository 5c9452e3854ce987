"""Strategies of hypothesis for tensors: any size, memory layout and values."""

import torch
from hypothesis import strategies as st
from torch import Tensor

SIDES = st.integers(1, 9)
SIZES = st.one_of(
    st.tuples(SIDES, SIDES),
    st.tuples(st.just(1), st.integers(60, 120)),
    st.tuples(st.integers(60, 120), st.just(1)),
    st.just((1, 1)),
)
SCALES = st.one_of(
    st.floats(-4, 1).map(lambda exponent: 10**exponent),
    st.sampled_from([0.0, 1e-30, 1e-4, -1e-4, -10.0]),
)


def _lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; 4 dims."""
    if layout == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "every second":
        wide = torch.full((*x.shape[:3], 2 * x.shape[3]), torch.nan, dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x.contiguous()


LAYOUTS = st.sampled_from(["contiguous", "channels last", "transposed", "every second"])


@st.composite
def maps(
    draw: st.DrawFn,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    values: tuple[str, ...] = ("normal", "zero", "equal", "denormal"),
) -> Tensor:
    """A map (B, C, H, W) in any memory layout."""
    kind = draw(st.sampled_from(values))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(shape, generator=random, dtype=torch.float64)
    if kind == "zero":
        x = torch.zeros_like(x)
    elif kind == "equal":
        x = torch.ones_like(x)
    elif kind == "denormal":
        x = x * 1e-40
    elif kind == "large":
        x = x.clamp(-1, 1) * 1e4
    return _lay_out(x.to(dtype), draw(LAYOUTS))


def half(size: tuple[int, int]) -> tuple[int, int]:
    """Size of the coarse map."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2
