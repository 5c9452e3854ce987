"""Pixels of any depth become 8 bits, as the bits of the file say."""

import warnings

import numpy as np
import pytest

from hcformer_mm.utils.images import to_uint8


@pytest.mark.parametrize("bits", [10, 12, 14, 15])
@pytest.mark.parametrize("dtype", [np.uint16, np.dtype(">u2"), np.int32])
def test_bits_of_a_sensor_are_stretched(bits, dtype):
    image = np.array([[0, 2**bits - 1], [2 ** (bits - 1), 2 ** (bits - 8)]], dtype)
    with pytest.warns(UserWarning, match=rf"at most {2**bits - 1}: they are read as {bits} bits"):
        found = to_uint8(image)
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 255], [128, 1]]


def test_full_and_small_ranges_are_read_as_opencv_reads_them():
    random = np.random.default_rng(0)
    full = random.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    full[0, 0] = 65535
    eight = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (to_uint8(full) == full // 256).all()
        assert to_uint8(eight) is eight
        assert (to_uint8(eight.astype(np.uint16)) == eight).all()
        assert not to_uint8(np.zeros((2, 2), np.uint16)).any()
        assert to_uint8(np.zeros((0, 2), np.uint16)).shape == (0, 2)
        assert to_uint8(np.array([[True, False]])).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (np.zeros((2, 2), np.float32), "8- or 16-bit integers, got float32"),
        (np.array([[-1, 3]], np.int16), "values from -1 to 3"),
        (np.array([[70000, 3]], np.int32), "values from 3 to 70000"),
    ],
)
def test_other_values_are_refused(image, problem):
    with pytest.raises(ValueError, match=problem):
        to_uint8(image)
