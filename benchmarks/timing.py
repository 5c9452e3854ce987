"""Timing several things side by side: rounds, statistics, profiles and their report.

Nothing here knows of models: what is timed is a function without arguments.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from hcformer_mm.utils.atomic_write import replacing
from hcformer_mm.version import __version__, installed_versions

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Measurement:
    """How long one thing took in one setting, and how much memory.

    Attributes:
        name: What was timed.
        setting: Under what conditions, such as ``{"shape": "512x512", "threads": 2}``.
        seconds: Wall-clock time of every round, in the order of the rounds.
        peaks: Peaks of memory in bytes, by kind; see :mod:`~benchmarks.memory`.
    """

    name: str
    setting: Mapping[str, str | int]
    seconds: tuple[float, ...]
    peaks: Mapping[str, int] = field(default_factory=dict)

    def ratio(self, baseline: "Measurement") -> float:
        """How many times as long as ``baseline`` this took: the median of the rounds' ratios.

        What slows the machine down for a while slows down a whole round. It leaves the ratios of
        the rounds alone, where the ratio of two medians may compare different rounds.

        Raises:
            ValueError: The two were not timed in the same number of rounds.
        """
        if len(self.seconds) != len(baseline.seconds):
            raise ValueError(
                f"expected rounds of {self.name} and {baseline.name} side by side, got "
                f"{len(self.seconds)} and {len(baseline.seconds)}"
            )
        return median(x / y for x, y in zip(self.seconds, baseline.seconds, strict=True))


def time_in_turn(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    setting: Mapping[str, str | int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """Time functions in turn, so that a drift of the machine meets all of them alike.

    Args:
        calls: Functions by name. Every round calls each of them once, in this order.
        repeats: Rounds that count.
        warmup: Rounds before those.
        setting: What the measurements say of their conditions.
        clock: A clock in seconds.

    Returns:
        One measurement per function.

    Raises:
        ValueError: There is nothing to time, or the numbers of rounds are out of range.
    """
    if not calls or repeats < 1 or warmup < 0:
        raise ValueError(
            "expected something to time, repeats >= 1 and warmup >= 0, got "
            f"{list(calls)}, {repeats} and {warmup}"
        )
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            start = clock()
            call()
            elapsed = clock() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return [Measurement(name, setting or {}, tuple(seconds[name])) for name in calls]


def summarize(measurements: Sequence[Measurement], baseline: str) -> list[dict[str, Any]]:
    """Statistics of measurements, as rows of a table.

    Args:
        measurements: What :func:`time_in_turn` returned, of any number of settings.
        baseline: Name of what the others are compared with, in every setting anew.

    Returns:
        A row per measurement: ``name``, the setting, ``median_s``, ``min_s``, ``max_s``, ``ratio``
        (see :meth:`Measurement.ratio`) and ``seconds``; for a peak of memory such as ``extra`` also
        ``extra_bytes`` and ``extra_ratio``.

    Raises:
        ValueError: A setting was not measured with the baseline.
    """
    rows: list[dict[str, Any]] = []
    for measurement in measurements:
        partners = [
            m for m in measurements if m.name == baseline and m.setting == measurement.setting
        ]
        if not partners:
            raise ValueError(
                f"expected a measurement of the baseline {baseline!r} in the setting "
                f"{dict(measurement.setting)}, got only {measurement.name!r}"
            )
        rows.append(
            dict(
                name=measurement.name,
                **measurement.setting,
                median_s=median(measurement.seconds),
                min_s=min(measurement.seconds),
                max_s=max(measurement.seconds),
                ratio=measurement.ratio(partners[0]),
                seconds=list(measurement.seconds),
            )
        )
        for kind, peak in measurement.peaks.items():
            rows[-1][f"{kind}_bytes"] = peak
            rows[-1][f"{kind}_ratio"] = peak / partners[0].peaks[kind]
    return rows


def top_operators(call: Callable[[], object], limit: int) -> list[dict[str, Any]]:
    """The operators on which a call spends most of its time, by PyTorch's profiler.

    Args:
        call: What is profiled; call it before, so that what happens only once is not counted.
        limit: Number of operators.

    Returns:
        A row per operator, the slowest first: ``operator``, ``calls``, ``self_s`` (time in the
        operator without those that it calls) and ``share`` (of the sum over all operators).
    """
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    events = sorted(
        profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True
    )
    total = sum(event.self_cpu_time_total for event in events)
    return [
        dict(
            operator=event.key,
            calls=event.count,
            self_s=event.self_cpu_time_total / 1e6,
            share=event.self_cpu_time_total / total,
        )
        for event in events[:limit]
    ]


def environment() -> dict[str, str]:
    """What times depend on besides the thing that is timed: machine and versions."""
    return {
        "CPU": f"{_cpu_name()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        **installed_versions(),
        "hcformer_mm": __version__,
    }


def _cpu_name() -> str:
    """Name of the processor; Python knows little more than its architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def as_markdown(report: Mapping[str, Any]) -> str:
    """A report as text that reads well on a screen too.

    Args:
        report: ``command`` (the command line), ``conditions`` (texts by name), ``baseline``,
            ``results`` (of :func:`summarize`, all of the same columns) and ``profiles``: rows of
            ``name``, the setting and ``operators`` (of :func:`top_operators`).

    Returns:
        Markdown: the command, the conditions, a table of times, and a table per profile.
    """
    parts = [
        f"```\n{report['command']}\n```",
        "\n".join(f"- {name}: {value}" for name, value in report["conditions"].items()),
        _times(report["results"]),
        f"Ratios are to {report['baseline']}, in the same setting: the median over the rounds of "
        "the ratio of the two times of a round.",
    ]
    for row in report["profiles"]:
        setting = (f"{key} {row[key]}" for key in row if key not in ("name", "operators"))
        parts += [", ".join([row["name"], *setting]) + ":", _operators(row["operators"])]
    return "\n\n".join(parts) + "\n"


# How a column is named and written; others are written as they are.
_COLUMNS = {
    "median_s": ("median (ms)", lambda value: f"{1e3 * value:.2f}"),
    "min_s": ("min (ms)", lambda value: f"{1e3 * value:.2f}"),
    "max_s": ("max (ms)", lambda value: f"{1e3 * value:.2f}"),
    "ratio": ("ratio", lambda value: f"{value:.3f}"),
    "ns_per_pixel": ("ns/pixel", lambda value: f"{value:.2f}"),
    "extra_bytes": ("peak extra (MiB)", lambda value: f"{value / 2**20:.1f}"),
    "extra_ratio": ("extra ratio", lambda value: f"{value:.3f}"),
    "resident_bytes": ("peak resident (MiB)", lambda value: f"{value / 2**20:.1f}"),
    "resident_ratio": ("resident ratio", lambda value: f"{value:.3f}"),
}


def _times(rows: Rows) -> str:
    table = []
    for row in rows:
        cells = {}
        for key, value in row.items():
            if key != "seconds":
                name, write = _COLUMNS.get(key, (key, str))
                cells[name] = write(value)
        table.append(cells)
    return _table(table)


def _operators(rows: Rows) -> str:
    table = [
        {
            "operator": row["operator"],
            "calls": row["calls"],
            "self (ms)": f"{1e3 * row['self_s']:.1f}",
            "share": f"{row['share']:.1%}",
        }
        for row in rows
    ]
    return _table(table)


def _table(table: Rows) -> str:
    keys = dict.fromkeys(key for row in table for key in row)
    align = ["right" if key.endswith(("(ms)", "(MiB)", "/pixel")) else "left" for key in keys]
    # What a row says as text stays text: as numbers, 0.500 would lose its zeros.
    return tabulate(table, headers="keys", tablefmt="pipe", disable_numparse=True, colalign=align)


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report of :func:`as_markdown`, as JSON or Markdown, the whole of it or nothing.

    Raises:
        ValueError: The file ends neither in .json nor in .md.
    """
    if path.suffix not in (".json", ".md"):
        raise ValueError(f"expected a file *.json or *.md, got {str(path)!r}")
    markdown = path.suffix == ".md"
    text = as_markdown(report) if markdown else json.dumps(report, indent=2) + "\n"
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
