"""Times, peaks of memory and reports, against values computed by hand."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from benchmarks import measure

MIB = 2**20
NUMBERS = MIB // 4  # float32 of a MiB


@pytest.fixture
def worker(monkeypatch):
    """Makes calls that take given durations on a clock that moves only when somebody works."""
    now, log = [0.0], []
    monkeypatch.setattr(measure, "timer", lambda: now[0])

    def make(name, *durations):
        durations = iter(durations)

        def work():
            log.append(name)
            now[0] += next(durations)

        return work

    make.log = log
    return make


def test_times_in_turn(worker):
    """A machine that slows down threefold in the third round changes no ratio."""
    calls = {"x": worker("x", 100, 4, 6, 9), "y": worker("y", 200, 1, 3, 3)}
    x, y = measure.measure(calls, {"threads": 2}, repeats=3, warmup=1, baseline=1)
    assert worker.log == ["x", "y"] * 4
    assert x == {
        "name": "x",
        "threads": 2,
        "median (ms)": 6000,
        "min (ms)": 4000,
        "max (ms)": 9000,
        "ratio": 3,  # of 4, 2 and 3; the ratio of the medians is 2
        "seconds": [4, 6, 9],
    }
    assert y["ratio"] == 1 and y["seconds"] == [1, 3, 3]


def test_calls_that_fail_are_named():
    with pytest.raises(RuntimeError, match=r"half does not run \(shape 1x2, threads 1\): .*zero"):
        measure.measure({"half": lambda: 1 / 0}, dict(shape="1x2", threads=1), repeats=1, warmup=0)


def test_memory_and_profiles(device):
    large = torch.ones(256, 256)
    large @ large  # a GPU's library allocates its workspace once
    calls = {"one": lambda: large @ large, "two": lambda: (large @ large, large @ large)}
    one, two = measure.measure(
        calls, {}, repeats=1, warmup=1, memory=True, profile_rows=1, device=str(device)
    )
    assert one["peak extra (MiB)"] == 0.25 and two["peak extra (MiB)"] == 0.5
    assert (one["extra ratio"], two["extra ratio"]) == (1, 2)
    if device.type == "cpu":  # a GPU's kernel may be listed before its operator
        assert "aten::mm" in two["profile"] and "aten::matmul" not in two["profile"]


def test_peak_of_what_is_held_at_a_time():
    held = [torch.empty(16 * NUMBERS)]

    def call():
        held.clear()  # freed, but not of this call
        first = torch.empty(NUMBERS)
        second = torch.empty(3 * NUMBERS)
        del first, second
        return torch.empty(2 * NUMBERS)

    assert measure.peak_extra(call) == 4 * MIB


def test_peak_of_the_backward_pass():
    class Wasteful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            torch.empty(8 * NUMBERS)
            return gradient

    x, gradient = torch.ones(NUMBERS, requires_grad=True), torch.ones(NUMBERS)

    def call():
        return torch.autograd.grad(Wasteful.apply(x), x, gradient)

    call()
    assert 9 * MIB <= measure.peak_extra(call) < 9.01 * MIB  # with the output


def test_peaks_on_a_gpu(monkeypatch):
    """PyTorch's allocator reports the peak since it was reset."""
    log, call = [], lambda: log.append("call")
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", log.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10)
    assert measure.peak_extra(call, "cuda:1") == 7 and log == ["cuda:1", "call"]


def test_the_clock_waits_for_the_gpu(monkeypatch):
    log = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: log.append("wait"))
    calls = {"x": lambda: log.append("x"), "y": lambda: log.append("y")}
    measure.measure(calls, {}, repeats=1, warmup=0)
    assert log == ["wait", "x", "wait", "wait", "y", "wait"]


def test_peak_of_events():
    """Memory from before does not count when it is freed, nor does that of other devices."""

    def event(size, address, device=0):
        return {"Device Type": device, "Bytes": size, "Addr": address}

    events = [event(10, 1), event(-7, 9), event(5, 2), event(-10, 1), event(99, 3, 1), event(3, 1)]
    assert measure._peak(events) == 15


def hold(mebibytes):
    torch.ones(mebibytes * NUMBERS)
    return measure.peak_resident()


def test_peak_of_a_process():
    ours = torch.ones(600 * NUMBERS)  # must not count
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        little, much = (process.submit(hold, number).result() for number in (1, 301))
    del ours
    assert 250 * MIB < much - little < 350 * MIB


def test_reports(tmp_path):
    rows = [
        {"name": "x", "shape": "64x96", "median (ms)": 1.6, "ratio": 1.0, "seconds": [0.0016]},
        {"name": "y", "shape": "64x96", "median (ms)": 0.8, "ratio": 0.5, "profile": "mm of y"},
    ]
    conditions = measure.environment()
    assert conditions["torch"] == torch.__version__
    assert " cores, " in conditions["CPU"] and any("mmdet" in name for name in conditions)
    report = dict(command="python x.py", conditions=conditions, baseline="x", results=rows)
    for name in ("new/report.json", "report.md"):
        measure.write_report(tmp_path / name, report)
    assert json.loads((tmp_path / "new/report.json").read_text()) == report
    text = (tmp_path / "report.md").read_text()
    assert "python x.py" in text and f"- torch: {torch.__version__}" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| y ")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["y", "64x96", "0.800", "0.500"]
    assert text.endswith("\n\nmm of y\n")

    report["baseline"] = object()  # JSON cannot hold it
    with pytest.raises(TypeError):
        measure.write_report(tmp_path / "new/report.json", report)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"]
