"""Blame: which part of a model loses how much of the quality of its segmentation.

A segmentation is made in stages. The stem says what a cell of the finest map is, each level of the
clustering merges cells, and the head names the coarsest clusters. Give the pieces of a stage to an
oracle, which names each by the ground truth that has most of its pixels, and what is then lost was
lost before the pieces were named. From stage to stage the losses telescope: they add up to that of
the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

GROUND_TRUTH, CELLS, PREDICTION = "ground_truth", "cells", "prediction"
"""First, second and last stage; the levels, ``level_1`` and so on, lie between."""

STEM, CLASSIFICATION, DECODING = "stem", "classification", "decoding"


def level_name(level: int) -> str:
    """Name of the stage, and of the share, of a level counted from 1."""
    return f"level_{level}"


@dataclass(frozen=True)
class Blame:
    """How the loss of one figure of quality splits.

    Attributes:
        figure: Its name.
        stages: Its value at each stage: the ground truth itself, oracle labels on the cells, oracle
            labels on the clusters of each level, finest first, and the model's prediction.
    """

    figure: str
    stages: Mapping[str, float]

    def __post_init__(self) -> None:
        names = tuple(self.stages)
        levels = tuple(level_name(level) for level in range(1, len(names) - 2))
        expected = (GROUND_TRUTH, CELLS, *levels, PREDICTION)
        if names != expected:
            raise ValueError(f"expected the stages {expected}, got {names}")

    @property
    def shares(self) -> dict[str, float]:
        """What each part costs: ``stem``, ``level_1`` and so on, and ``classification``.

        They add up to :attr:`total`. A share may be below 0; see ``docs/look_inside.md``.
        """
        values = list(self.stages.values())
        names = (STEM, *list(self.stages)[2:-1], CLASSIFICATION)
        return {
            name: before - after
            for name, before, after in zip(names, values[:-1], values[1:], strict=True)
        }

    @property
    def decoding(self) -> float:
        """What stem and levels cost together: what is lost if every cluster is named well."""
        return self.stages[GROUND_TRUTH] - list(self.stages.values())[-2]

    @property
    def total(self) -> float:
        """What is lost altogether: 100 less the model's figure, where annotations are sound."""
        return self.stages[GROUND_TRUTH] - self.stages[PREDICTION]

    def __str__(self) -> str:
        *parts, (_, classification) = self.shares.items()
        listed = ", ".join(f"{name.replace('_', ' ')} {loss:.1f}" for name, loss in parts)
        return (
            f"{self.figure} {self.stages[PREDICTION]:.1f}: decoding costs {self.decoding:.1f} "
            f"({listed}); classification costs {classification:.1f}"
        )
