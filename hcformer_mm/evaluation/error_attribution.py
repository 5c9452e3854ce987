"""Error attribution ("blame"): how much segmentation quality each part of a model loses.

A segmentation is made in stages: the stem fixes the cells of the finest map, each level merges them
into clusters, and the head labels the coarsest clusters. An oracle gives each cell or cluster of a
stage the ground-truth label of most of its pixels; the remaining loss is due to the partition, not
to labeling. The losses from stage to stage telescope: they add up to the loss of the model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tabulate import tabulate

GROUND_TRUTH, CELLS, PREDICTION = "ground_truth", "cells", "prediction"
"""First, second and last stage; the levels, ``level_1`` and so on, lie between."""

STEM, CLASSIFICATION, DECODING = "stem", "classification", "decoding"


def level_name(level: int) -> str:
    """Name of the stage, and of the share, of a level counted from 1."""
    return f"level_{level}"


@dataclass(frozen=True)
class ErrorAttribution:
    """Split of the loss of one quality figure among the parts of a model.

    Attributes:
        figure: Name of the figure, such as ``PQ``.
        stages: Value of the figure at each stage: the ground truth itself, oracle labels on the
            cells, oracle labels on the clusters of each level, finest first, and the model's
            prediction.
        faults: Split of the share of classification by kind of fault, to which it adds up; empty
            for a figure that is no sum over segments. See
            :mod:`~hcformer_mm.evaluation.measures.panoptic_faults`.

    Raises:
        ValueError: ``stages`` has other names or another order.
    """

    figure: str
    stages: Mapping[str, float]
    faults: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = tuple(self.stages)
        levels = tuple(level_name(level) for level in range(1, len(names) - 2))
        expected = (GROUND_TRUTH, CELLS, *levels, PREDICTION)
        if names != expected:
            raise ValueError(f"expected the stages {expected}, got {names}")

    @property
    def shares(self) -> dict[str, float]:
        """Loss of each part: ``stem``, ``level_1`` and so on, and ``classification``.

        Shares add up to :attr:`total`. A share may be negative; see ``docs/look_inside.md``.
        """
        values = list(self.stages.values())
        names = (STEM, *list(self.stages)[2:-1], CLASSIFICATION)
        return {name: values[i] - values[i + 1] for i, name in enumerate(names)}

    @property
    def decoding(self) -> float:
        """Loss of stem and levels together, which remains with oracle labels on all clusters."""
        return self.stages[GROUND_TRUTH] - list(self.stages.values())[-2]

    @property
    def total(self) -> float:
        """Loss of the model: 100 minus its figure if annotations are consistent."""
        return self.stages[GROUND_TRUTH] - self.stages[PREDICTION]

    def __str__(self) -> str:
        *parts, (_, classification) = self.shares.items()
        faults = f" ({_listed(self.faults)})" if self.faults else ""
        return (
            f"{self.figure} {self.stages[PREDICTION]:.1f}: decoding costs {self.decoding:.1f} "
            f"({_listed(dict(parts))}); classification costs {classification:.1f}{faults}"
        )


def _listed(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {loss:.1f}" for name, loss in losses.items())


def attribution_table(attributions: Iterable[ErrorAttribution]) -> str:
    """Format attributions as a table: a row per figure, a column per part of the model."""
    rows = [
        {
            "": attribution.figure,
            "reached": attribution.stages[PREDICTION],
            "lost": attribution.total,
            DECODING: attribution.decoding,
            **{name.replace("_", " "): loss for name, loss in attribution.shares.items()},
        }
        for attribution in attributions
    ]
    return tabulate(rows, headers="keys", floatfmt=".1f")


def fault_table(attributions: Iterable[ErrorAttribution]) -> str:
    """Format the splits of classification: a row per figure that has one, a column per kind."""
    rows = [
        {
            "": attribution.figure,
            CLASSIFICATION: attribution.shares[CLASSIFICATION],
            **{name.replace("_", " "): loss for name, loss in attribution.faults.items()},
        }
        for attribution in attributions
        if attribution.faults
    ]
    return tabulate(rows, headers="keys", floatfmt=".1f")
