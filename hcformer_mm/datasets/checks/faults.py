"""A fault of a data set, and how much it matters."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

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
