"""Numbers of the command line are refused with their range."""

from argparse import ArgumentTypeError
from math import inf

import pytest

from hcformer_mm.utils.arguments import number


def test_numbers_in_range():
    assert [number(int, 0, 3)(text) for text in ("0", "3")] == [0, 3]
    assert number(int, 1)("1000000") == 1000000
    assert number(float, 0, 1)("1e-3") == 0.001


@pytest.mark.parametrize(
    ("kind", "most", "text", "what"),
    [
        (int, inf, "0", "an integer from 1 on"),
        (int, 3, "4", "an integer from 1 to 3"),
        (int, 3, "1.5", "an integer from 1 to 3"),
        (float, inf, "nan", "a number from 1 on"),
        (float, 3, "inf", "a number from 1 to 3"),
        (float, 3, "", "a number from 1 to 3"),
    ],
)
def test_numbers_out_of_range(kind, most, text, what):
    with pytest.raises(ArgumentTypeError, match=f"expected {what}, got '{text}'"):
        number(kind, 1, most)(text)
