"""Arguments of command lines are refused with what was expected."""

from argparse import ArgumentParser, ArgumentTypeError
from math import inf

import pytest

from hcformer_mm.utils.arguments import add_cfg_options, number


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


def test_overrides_of_a_config(capsys):
    parser = ArgumentParser()
    add_cfg_options(parser)
    given = ["--cfg-options", "a.b=1", "c=x=y", "--cfg-options", "d=[1,2]"]
    assert parser.parse_args(given).cfg_options == {"a.b": 1, "c": "x=y", "d": [1, 2]}
    with pytest.raises(SystemExit):
        parser.parse_args(["--cfg-options", "a=1", "b"])
    assert "argument --cfg-options: expected key=value, got 'b'" in capsys.readouterr().err
