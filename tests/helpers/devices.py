"""Devices on which tests run, and the figures of those on a GPU."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tabulate import tabulate

from benchmarks.measure import environment
from hcformer_mm.utils.atomic_write import replacing

VARIABLE = "HCFORMER_MM_TEST_DEVICE"
NO_GPU = f"this machine has no GPU; {VARIABLE}=cpu runs the same on its CPU, with small shapes"
REPORT = Path("work_dirs/gpu")


def _device_under_test() -> str | None:
    """The device of tests marked ``gpu``; None if there is none."""
    if name := os.environ.get(VARIABLE):
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


DEVICE = _device_under_test()
_UNDER_TEST = [pytest.param(DEVICE, marks=pytest.mark.gpu)] if DEVICE else []
# A CPU that stands in for a GPU runs no test twice.
DEVICES = _UNDER_TEST if DEVICE == "cpu" else ["cpu", *_UNDER_TEST]
"""Parameters of the fixture ``device``."""

Tables = dict[str, list[dict[str, Any]]]


def write_figures(tables: Tables, folder: Path) -> str:
    """Write tables as ``report.json`` and ``report.md`` and return the latter."""
    conditions = environment(DEVICE if DEVICE and DEVICE.startswith("cuda") else "cpu")
    parts = ["\n".join(f"- {name}: {value}" for name, value in conditions.items())]
    for title, rows in tables.items():
        parts.append(f"{title}:\n\n{_markdown(rows)}")
    text = "\n\n".join(parts) + "\n"
    content = json.dumps(dict(device=DEVICE, conditions=conditions, tables=tables), indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("report.md", text), ("report.json", f"{content}\n")):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(data, encoding="utf-8")
    return text


def _markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [{k: v for k, v in row.items() if k not in ("seconds", "profile")} for row in rows]
    return tabulate(shown, headers="keys", tablefmt="pipe", floatfmt=".3g")
