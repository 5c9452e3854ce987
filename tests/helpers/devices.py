"""Devices on which tests run, and the figures of those on a GPU."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.measure import as_table, environment
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

DRAWN = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.rand_like, torch.randn_like),
    *(Tensor.uniform_, Tensor.normal_, Tensor.random_),
}


class DrawnOnCPU(TorchFunctionMode):
    """Random numbers are the same on each device: the CPU draws them, wherever none is named."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function not in DRAWN or kwargs.get("device") is not None:
            return function(*args, **kwargs)
        if function.__name__.endswith("_"):
            target, *others = args
            drawn = function(torch.empty_like(target, device="cpu"), *others, **kwargs)
            with torch.no_grad():
                return target.copy_(drawn)
        requires_grad = kwargs.pop("requires_grad", False)
        drawn = function(*args, **kwargs, device="cpu")
        device = (
            args[0].device if function.__name__.endswith("_like") else torch.get_default_device()
        )
        return drawn.to(device).requires_grad_(requires_grad)


@contextmanager
def full_float32() -> Iterator[None]:
    """Leave TF32 out, which rounds to ten bits."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def made_on(device: torch.device) -> Iterator[None]:
    """Tensors and modules that are made without naming a device are on this one."""
    with device, DrawnOnCPU():
        yield


on_each_device = pytest.mark.usefixtures("device")


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Compare bit for bit on a CPU; to 1e-4 elsewhere, where sums have no fixed order."""
    tolerance = 0.0 if found.device.type == "cpu" else 1e-4
    scale = expected.detach().abs().max().item() if tolerance and expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def at_least(tolerance: float) -> float:
    """A tolerance in float32 that holds on the device of a test: off the CPU, 1e-4 or more."""
    return tolerance if torch.get_default_device().type == "cpu" else max(tolerance, 1e-4)


Tables = dict[str, list[dict[str, Any]]]


def write_figures(tables: Tables, folder: Path) -> str:
    """Write tables as ``report.json`` and ``report.md`` and return the latter."""
    conditions = environment(DEVICE if DEVICE and DEVICE.startswith("cuda") else "cpu")
    parts = ["\n".join(f"- {name}: {value}" for name, value in conditions.items())]
    for title, rows in tables.items():
        parts.append(f"{title}:\n\n{as_table(rows, '.3g')}")
    text = "\n\n".join(parts) + "\n"
    content = json.dumps(dict(device=DEVICE, conditions=conditions, tables=tables), indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("report.md", text), ("report.json", f"{content}\n")):
        with replacing(folder / name) as unfinished:
            unfinished.write_text(data, encoding="utf-8")
    return text
