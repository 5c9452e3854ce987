"""Peaks of memory, against sizes counted by hand."""

import pytest
import torch

from benchmarks.memory import _peak, peak_extra, peak_resident, with_peak_extra
from benchmarks.timing import Measurement

MIB = 2**20
NUMBERS = MIB // 4  # float32 of a MiB


def test_counts_what_is_held_at_a_time():
    def call():
        first = torch.empty(NUMBERS)
        second = torch.empty(3 * NUMBERS)
        del first, second
        return torch.empty(2 * NUMBERS)

    assert peak_extra(call) == 4 * MIB


def test_counts_temporary_tensors_of_the_backward_pass():
    class Wasteful(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            torch.empty(8 * NUMBERS)
            return gradient

    x = torch.ones(NUMBERS, requires_grad=True)
    gradient = torch.ones(NUMBERS)

    def call():
        return torch.autograd.grad(Wasteful.apply(x), x, gradient)

    call()
    # The output is held while the backward pass runs.
    assert 9 * MIB <= peak_extra(call) < 9.01 * MIB


def test_is_over_what_was_there_before():
    held = [torch.empty(16 * NUMBERS)]

    def call():
        held.clear()
        return torch.empty(NUMBERS)

    assert peak_extra(call) == MIB


def test_what_was_allocated_outside_the_profile_is_not_taken_off():
    def event(size, address, device=0):
        return {"Device Type": device, "Bytes": size, "Addr": address}

    events = [event(10, 1), event(-7, 9), event(5, 2), event(-10, 1), event(99, 3, 1), event(3, 1)]
    assert _peak(events) == 15


def test_peaks_join_measurements():
    calls = {"a": lambda: torch.empty(NUMBERS), "b": lambda: torch.empty(2 * NUMBERS)}
    measured = [Measurement("b", {}, (1.0,), {"resident": 7}), Measurement("a", {}, (1.0,))]
    peaks = [m.peaks for m in with_peak_extra(measured, calls)]
    assert peaks == [{"resident": 7, "extra": 2 * MIB}, {"extra": MIB}]


def hold(mebibytes):
    torch.ones(mebibytes * NUMBERS)


def test_resident_memory_is_of_a_process_of_its_own():
    # More than what is measured: the peak of this process must not count.
    ours = torch.ones(600 * NUMBERS)
    little = peak_resident(hold, 1)
    del ours
    much = peak_resident(hold, 301)
    assert 250 * MIB < much - little < 350 * MIB


def fail(message):
    raise ValueError(message)


def test_failures_of_the_process_come_back():
    with pytest.raises(ValueError, match="out of something"):
        peak_resident(fail, "out of something")
