"""A fault of a data set, and how much it matters."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, get_args

from ...utils.progress import progress

Severity = Literal["error", "warning", "note"]
SEVERITIES = get_args(Severity)
Finding = tuple[str, str]
"""Kind and message of a fault, whose file is known elsewhere."""

WARNINGS = frozenset(
    {
        "all void",
        "annotation id 0",
        "annotation without image",
        "area",
        "box",
        "box outside the image",
        "empty box",
        "empty mask",
        "file in several images",
        "image of another suffix",
        "image without annotation",
        "map without image",
        "one class",
        "short polygon",
        "stuff in parts",
        "too large to check",
    }
)
NOTES = frozenset({"class without pixels", "crowds only", "image without objects", "no segments"})

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Fault:
    """A fault of one file.

    Attributes:
        kind: Kind of the fault, for a summary.
        file: The faulty file.
        message: What was found, with ids, what was expected, and what MMDetection or
            MMSegmentation does with it.
    """

    kind: str
    file: Path
    message: str

    @property
    def severity(self) -> Severity:
        """What the fault does, which depends on its kind alone.

        An ``'error'`` stops training or evaluation, or makes them wrong without a message. A
        ``'warning'`` is left out of training, or changes scores a little. A ``'note'`` is right as
        it is.
        """
        if self.kind in WARNINGS:
            return "warning"
        return "note" if self.kind in NOTES else "error"

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


def faults_of(file: Path, findings: Iterator[Finding]) -> list[Fault]:
    """Faults of one file."""
    return [Fault(kind, file, message) for kind, message in findings]


def run_each(check: Callable[[T], R], tasks: Sequence[T], num_workers: int) -> Iterator[R]:
    """Yield the result of each task, in order, with a progress bar.

    Args:
        check: What is done with a task; it can be pickled.
        tasks: What to check.
        num_workers: Processes that check; 1 checks in this process.

    Raises:
        ValueError: ``num_workers`` is below 1.
    """
    if num_workers < 1:
        raise ValueError(f"expected num_workers of at least 1, got {num_workers}")
    if num_workers == 1:
        yield from progress(map(check, tasks), len(tasks), "check files")
    else:
        with ProcessPoolExecutor(num_workers) as pool:
            results = pool.map(check, tasks, chunksize=16)
            yield from progress(results, len(tasks), "check files")
