"""Time calls side by side, measure their peak memory, and report both."""

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tabulate import tabulate
from torch.profiler import profile
from torch.utils.benchmark import timer

from hcformer_mm.utils.atomic_write import replacing
from hcformer_mm.version import __version__, installed_versions

Call = Callable[[], object]
Row = dict[str, Any]
Shape = tuple[int, int]
Case = tuple[dict[str, Any], dict[str, Call]]  # a setting and its calls by name


def measure(
    calls: Mapping[str, Call],
    setting: Mapping[str, str | int],
    *,
    repeats: int,
    warmup: int,
    baseline: int = 0,
    memory: bool = False,
    profile_rows: int | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Time calls in turn and return one row of statistics per call.

    Each round runs every call once, so a machine that slows down for a while slows all of them.
    (PyTorch's ``Timer`` would run one call many times, and twice before each measurement; only its
    clock is used, which waits for the accelerator.) ``ratio`` is the median over the rounds of a
    call's time divided by the baseline's. Memory peaks and profiles take one more call each.

    Raises:
        RuntimeError: A call fails.
    """
    where = ", ".join(f"{key} {value}" for key, value in setting.items())
    print("timing", where, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + repeats):
        for name, call in calls.items():
            start = timer()
            try:
                call()
            except Exception as error:
                raise RuntimeError(f"{name} does not run ({where}): {error}") from error
            seconds[name].append(timer() - start)
    rows = []
    reference = list(seconds.values())[baseline][warmup:]
    for name, all_times in seconds.items():
        times = all_times[warmup:]
        ratio = median(x / y for x, y in zip(times, reference, strict=True))
        numbers = {"median": median(times), "min": min(times), "max": max(times)}
        numbers = {f"{key} (ms)": 1e3 * value for key, value in numbers.items()}
        rows.append({"name": name, **setting, **numbers, "ratio": ratio, "seconds": times})
    if memory:
        add_peaks(rows, "extra", [peak_extra(call, device) for call in calls.values()], baseline)
    if profile_rows:
        for row, call in zip(rows, calls.values(), strict=True):
            with profile() as profiler:
                call()
            key = f"self_{'cpu' if device == 'cpu' else 'device'}_time_total"
            table = profiler.key_averages().table(sort_by=key, row_limit=profile_rows)
            row["profile"] = f"{row['name']}, {where}:\n\n```\n{table}\n```"
    return rows


def add_peaks(rows: list[Row], kind: str, peaks: list[int], baseline: int) -> None:
    """Add peak memory (bytes) and its ratio to the baseline's to the rows of one setting."""
    for row, peak in zip(rows, peaks, strict=True):
        row |= {f"peak {kind} (MiB)": peak / 2**20, f"{kind} ratio": peak / peaks[baseline]}


def peak_extra(call: Call, device: str = "cpu") -> int:
    """Peak bytes that PyTorch's allocator hands out during a call, beyond those before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as profiler:
        call()
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    return _peak(event["args"] for event in sorted(memory, key=lambda event: event["ts"]))


def _peak(events: Iterable[Mapping[str, Any]]) -> int:
    """Peak bytes of the profiler's memory events on the CPU, given in order of time.

    Bytes are tracked by address: the profiler also reports frees of memory allocated before it
    started, sometimes with the size of an older allocation at that address.
    """
    live: dict[int, int] = {}
    held = peak = 0
    for event in events:
        if event["Device Type"] == 0 and event["Bytes"] > 0:
            live[event["Addr"]] = event["Bytes"]
            held += event["Bytes"]
            peak = max(peak, held)
        elif event["Device Type"] == 0:
            held -= live.pop(event["Addr"], 0)
    return peak


def peak_resident() -> int:
    """Peak bytes of physical memory of this process.

    The peak never falls, so each measurement needs a fresh process; ``getrusage()`` would report
    the peak of its parent.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        raise RuntimeError(f"expected Linux, where {status} contains the peak memory")
    (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def environment(device: str = "cpu") -> dict[str, str]:
    """Return hardware and versions by name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    found = {"CPU": f"{cpu}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"}
    if device != "cpu":
        found["GPU"] = torch.cuda.get_device_name(device)
    found |= {"Python": platform.python_version(), "torch": torch.__version__}
    return found | installed_versions() | {"hcformer_mm": __version__}


def as_table(rows: Iterable[Row], floatfmt: str = ".3f") -> str:
    """Render rows as a table of Markdown, without the times of single rounds and profiles."""
    shown = [{k: v for k, v in row.items() if k not in ("seconds", "profile")} for row in rows]
    return tabulate(shown, headers="keys", tablefmt="pipe", floatfmt=floatfmt)


def as_markdown(report: Mapping[str, Any]) -> str:
    """Render a report: command, conditions, table and profiles."""
    rows = report["results"]
    note = (
        "Counted, not measured; times are *estimated*: every operator takes as long as the slowest "
        "of its launches, its bytes at the memory's bandwidth and its operations at peak."
    )
    if "baseline" in report:
        note = (
            f"Ratios are to {report['baseline']} in the same setting: the median over the rounds "
            "of the ratio of the two times of a round."
        )
    parts = [
        f"```\n{report['command']}\n```",
        "\n".join(f"- {name}: {value}" for name, value in report["conditions"].items()),
        as_table(rows),
        note,
    ]
    return "\n\n".join([*parts, *(row["profile"] for row in rows if "profile" in row)]) + "\n"


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report atomically, as Markdown (``*.md``) or JSON."""
    text = as_markdown(report) if path.suffix == ".md" else json.dumps(report, indent=2) + "\n"
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
