"""How much memory a call takes: two peaks, of PyTorch's allocator and of a whole process.

``extra``: the most bytes that PyTorch's allocator has handed out at a time during the call, over
what it had handed out before. It is exact, counts every temporary tensor inside operators and in
the backward pass, and is the same in every run. It does not see what libraries allocate by
themselves, such as the scratch space of oneDNN.

``resident``: the most physical memory that a process has ever held, everything included: the
interpreter, the libraries, the weights. A process cannot take its peak back, so each thing that is
measured gets a process of its own.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Measurement

_CPU = 0


def peak_extra(call: Callable[[], object]) -> int:
    """The most bytes of CPU memory that PyTorch holds for a call at a time.

    Args:
        call: What is measured; call it before, so that what is kept for later is not counted. What
            it returns is counted.

    Returns:
        Bytes. Freeing what was there before the call does not lower them.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    memory.sort(key=lambda event: event["ts"])
    return _peak(event["args"] for event in memory)


def _peak(events: Iterable[Mapping[str, Any]]) -> int:
    """Peak of the profiler's events, in the order in which they happened.

    Bytes are summed up by address: of what was allocated outside the profile, the profiler reports
    the freeing alone, and at times with the size of something older at the same address.
    """
    live: dict[int, int] = {}
    held = peak = 0
    for event in events:
        if event["Device Type"] != _CPU:
            continue
        if event["Bytes"] > 0:
            live[event["Addr"]] = event["Bytes"]
            held += event["Bytes"]
            peak = max(peak, held)
        else:
            held -= live.pop(event["Addr"], 0)
    return peak


def with_peak_extra(
    measurements: Iterable[Measurement], calls: Mapping[str, Callable[[], object]]
) -> list[Measurement]:
    """Add the peaks ``extra`` to what :func:`~benchmarks.timing.time_in_turn` returned.

    They are taken apart from the times, as profiling slows calls down.

    Args:
        measurements: Times of the calls.
        calls: The same calls by name.
    """
    return [replace(m, peaks={**m.peaks, "extra": peak_extra(calls[m.name])}) for m in measurements]


def peak_resident(function: Callable[..., object], *args: object) -> int:
    """The most physical memory of a fresh process that imports and calls a function.

    Args:
        function: A function of a module, so that another process can import it.
        args: Its arguments, which must be picklable.

    Returns:
        Bytes.

    Raises:
        RuntimeError: The process was killed, or this is no Linux, which alone tells the peak of a
            process apart from that of its parent.
        Exception: What the function raised.
    """
    # Not a fork: that would begin with the memory of this process.
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_call_and_tell, function, *args).result()


def _call_and_tell(function: Callable[..., object], *args: object) -> int:
    function(*args)
    # The kernel counts ru_maxrss of getrusage() on from the parent process.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        raise RuntimeError(
            "expected /proc/self/status to tell peaks of memory, as on Linux"
        ) from None
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024
