"""Strategies of hypothesis for label maps."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7)) | st.sampled_from([(1, 40), (40, 1)])

VALUES = {
    # Few labels, negative ones, and the ends of the range of a type.
    np.uint8: st.sampled_from([0, 1, 2, 254, 255]),
    np.uint16: st.sampled_from([0, 3, 255, 256, 65535]),
    np.int32: st.integers(-2, 2) | st.sampled_from([-(2**31), 2**31 - 1, 2**24]),
    np.int64: st.integers(-2, 2) | st.sampled_from([-(2**63), 2**63 - 1, 2**40]),
}


def label_maps(size):
    """Label maps ``(H, W)`` of a size, of any integer type."""
    return st.sampled_from(sorted(VALUES, key=str)).flatmap(
        lambda dtype: arrays(dtype, size, elements=VALUES[dtype])
    )


PAIRS = SIZES.flatmap(lambda size: st.tuples(label_maps(size), label_maps(size)))
"""Two label maps of one size."""
