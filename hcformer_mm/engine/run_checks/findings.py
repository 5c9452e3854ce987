"""What the checks of a run have found."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...datasets.checks import Fault
from ...utils.errors import InputError


@dataclass
class Findings:
    """Sentences about a run.

    Attributes:
        faults: What makes the run useless or wrong.
        warnings: What the user may have meant.
    """

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, faults: Iterable[Fault], tool: str) -> None:
        """Add a sentence for each kind of fault of each file.

        Args:
            faults: Faults of annotations or images.
            tool: Name of the tool that lists all of them.
        """
        groups = defaultdict(list)
        for fault in faults:
            groups[fault.kind, fault.file if fault.file.suffix == ".json" else None].append(fault)
        for some in groups.values():
            more = ""
            if len(some) > 1:
                more = (
                    f" ({len(some)} faults of this kind; tools/dataset_converters/{tool}.py lists "
                    "them)"
                )
            sentences = dict(error=self.faults, warning=self.warnings).get(some[0].severity)
            if sentences is not None:
                sentences.append(f"{some[0]}{more}")

    def refuse(self) -> None:
        """Refuse the run if there are faults.

        Raises:
            InputError: All faults, one a line.
        """
        if len(self.faults) == 1:
            raise InputError(self.faults[0])
        if self.faults:
            raise InputError("\n- ".join((f"{len(self.faults)} faults:", *self.faults)))
