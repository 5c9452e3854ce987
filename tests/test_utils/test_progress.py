"""Progress on terminals and in logs."""

import io
import sys

import pytest

from hcformer_mm.utils.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_log_gets_one_line(kind, monkeypatch):
    monkeypatch.setattr(sys, "stderr", kind())
    assert list(progress(range(5000), desc="check")) == list(range(5000))
    written = sys.stderr.getvalue()
    assert "check: 100%" in written and "5000/5000" in written
    if kind is io.StringIO:
        assert written.count("\n") == 1 and "\r" not in written and len(written) < 100
    else:
        assert written.startswith("\rcheck:   0%")


def test_items_of_unknown_number(capsys):
    assert list(progress(iter("abc"))) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("3it [")
    assert list(progress(iter("abc"), total=3)) == ["a", "b", "c"]
    assert "3/3" in capsys.readouterr().err
    assert list(progress([])) == []
