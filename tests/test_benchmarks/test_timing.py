"""Rounds, statistics and reports, against values computed by hand."""

import json
import re

import pytest
import torch

from benchmarks.timing import (
    Measurement,
    as_markdown,
    environment,
    summarize,
    time_in_turn,
    top_operators,
    write_report,
)


class Clock:
    """A clock that moves only when somebody works."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def worker(self, name, *durations):
        durations = iter(durations)

        def work():
            self.log.append(name)
            self.now += next(durations)

        return work


def test_times_in_turn_without_the_warm_up():
    clock = Clock()
    calls = {"a": clock.worker("a", 100.0, 1.0, 3.0), "b": clock.worker("b", 200.0, 4.0, 6.0)}
    a, b = time_in_turn(calls, repeats=2, warmup=1, setting={"threads": 2}, clock=clock)
    assert clock.log == ["a", "b"] * 3
    assert a == Measurement("a", {"threads": 2}, (1.0, 3.0))
    assert b == Measurement("b", {"threads": 2}, (4.0, 6.0))


@pytest.mark.parametrize(
    ("calls", "repeats", "warmup"), [({}, 1, 0), ({"a": int}, 0, 0), ({"a": int}, 1, -1)]
)
def test_rounds_out_of_range(calls, repeats, warmup):
    with pytest.raises(
        ValueError, match="expected something to time, repeats >= 1 and warmup >= 0"
    ):
        time_in_turn(calls, repeats=repeats, warmup=warmup)


def test_ratio_is_the_median_of_the_ratios_of_the_rounds():
    # A machine that slows down threefold from the second round on.
    baseline = Measurement("base", {}, (1.0, 3.0, 3.0))
    other = Measurement("other", {}, (4.0, 6.0, 9.0))
    assert other.ratio(baseline) == 3.0  # of 4, 2 and 3; the ratio of the medians is 2
    assert baseline.ratio(baseline) == 1.0


def test_ratio_needs_the_same_rounds():
    with pytest.raises(ValueError, match="expected rounds of x and y side by side, got 1 and 2"):
        Measurement("x", {}, (1.0,)).ratio(Measurement("y", {}, (1.0, 2.0)))


def test_summary():
    rows = summarize(
        [
            Measurement("x", {"threads": 1}, (4.0, 2.0, 9.0)),
            Measurement("y", {"threads": 1}, (2.0, 2.0, 3.0)),
            Measurement("x", {"threads": 2}, (1.0, 1.0)),
            Measurement("y", {"threads": 2}, (2.0, 4.0)),
        ],
        baseline="y",
    )
    assert rows[0] == dict(
        name="x",
        threads=1,
        median_s=4.0,
        min_s=2.0,
        max_s=9.0,
        ratio=2.0,  # of 2, 1 and 3
        seconds=[4.0, 2.0, 9.0],
    )
    assert [row["ratio"] for row in rows] == [2.0, 1.0, 0.375, 1.0]


def test_summary_of_memory():
    rows = summarize(
        [
            Measurement("x", {}, (1.0,), {"extra": 300, "resident": 1000}),
            Measurement("y", {}, (1.0,), {"extra": 200, "resident": 4000}),
        ],
        baseline="y",
    )
    assert [row["extra_bytes"] for row in rows] == [300, 200]
    assert [row["extra_ratio"] for row in rows] == [1.5, 1.0]
    assert [row["resident_ratio"] for row in rows] == [0.25, 1.0]


def test_summary_needs_the_baseline_in_every_setting():
    measurements = [Measurement("x", {"threads": n}, (1.0,)) for n in (1, 2)]
    measurements.append(Measurement("y", {"threads": 1}, (1.0,)))
    with pytest.raises(ValueError, match=r"baseline 'y' in the setting \{'threads': 2\}, got only"):
        summarize(measurements, baseline="y")


def test_profile_names_what_takes_long():
    large, small = torch.ones(256, 256), torch.ones(4)

    def work():
        for _ in range(5):
            large @ large
        small.add(1)

    work()
    (first, *rest) = top_operators(work, limit=3)
    assert (first["operator"], first["calls"]) == ("aten::mm", 5)
    assert 0.5 < first["share"] <= 1.0
    assert first["self_s"] > 0
    assert len(rest) == 2
    assert all(row["self_s"] <= first["self_s"] for row in rest)


def test_environment_says_where_times_come_from():
    found = environment()
    assert found["torch"] == torch.__version__
    assert any("mmdet" in name for name in found)
    assert re.fullmatch(r".+, \d+ cores, .+", found["CPU"])


@pytest.fixture
def report():
    setting = dict(shape="64x96", threads=1)
    measurements = [
        Measurement("x", setting, (0.002, 0.0012)),
        Measurement("y", setting, (0.001, 0.0012)),
    ]
    operators = [dict(operator="aten::mm", calls=5, self_s=0.0015, share=0.5)]
    return dict(
        command="python benchmark.py",
        conditions={"torch": "2.5"},
        baseline="x",
        results=summarize(measurements, "x"),
        profiles=[dict(name="y", **setting, operators=operators)],
    )


def cells(markdown, first):
    """The cells of the table row that begins with ``first``."""
    lines = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    (row,) = [line for line in lines if line[0].strip() == first]
    return [cell.strip() for cell in row]


def test_markdown(report):
    text = as_markdown(report)
    header = ["name", "shape", "threads", "median (ms)", "min (ms)", "max (ms)", "ratio"]
    assert cells(text, "name") == header
    assert cells(text, "x") == ["x", "64x96", "1", "1.60", "1.20", "2.00", "1.000"]
    assert cells(text, "y") == ["y", "64x96", "1", "1.10", "1.00", "1.20", "0.750"]
    assert cells(text, "aten::mm") == ["aten::mm", "5", "1.5", "50.0%"]
    assert "python benchmark.py" in text and "- torch: 2.5" in text
    assert "y, shape 64x96, threads 1:" in text


def test_markdown_of_memory(report):
    # The first row has less to say than others.
    more = dict(extra_bytes=3 * 2**20, extra_ratio=0.5, ns_per_pixel=12.345)
    report["results"][1] |= more
    text = as_markdown(report)
    assert cells(text, "name")[-3:] == ["peak extra (MiB)", "extra ratio", "ns/pixel"]
    assert cells(text, "y")[-3:] == ["3.0", "0.500", "12.35"]
    assert cells(text, "x")[-3:] == ["", "", ""]


def test_reports_are_written_whole(report, tmp_path):
    for name in ("new/report.json", "report.md"):
        write_report(tmp_path / name, report)
    assert json.loads((tmp_path / "new/report.json").read_text()) == report
    assert (tmp_path / "report.md").read_text() == as_markdown(report)

    report["baseline"] = object()  # what JSON cannot hold
    with pytest.raises(TypeError):
        write_report(tmp_path / "new/report.json", report)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"]
    assert "baseline" in json.loads((tmp_path / "new/report.json").read_text())


def test_reports_of_other_kinds_are_refused(report, tmp_path):
    with pytest.raises(ValueError, match=r"expected a file \*.json or \*.md"):
        write_report(tmp_path / "report.txt", report)
