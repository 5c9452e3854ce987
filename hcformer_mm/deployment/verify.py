"""Check that an exported model returns what the eager model returns, and compare their speed.

The masked decoder compares mask logits with a threshold, and lets a query without any cell attend
to all cells. A logit within rounding of the threshold may fall on either side of it, and then the
outputs jump: on some images two correct computations differ a lot. Where an exported model differs,
the eager model therefore runs again on copies of the image that differ only by rounding. If its own
outputs change by more than the tolerance, the image is inconclusive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.benchmark import timer

from .export import ExportableModel, Runner

TOLERANCE = 1e-3
"""Largest allowed difference of an output, relative to its largest magnitude; of maps of classes
and segments, the largest share of pixels that differ."""

ROUNDING = 1e-6
"""Standard deviation of the factors around 1 that perturb an image."""

PERTURBATIONS = 8
IMAGES = 3
TRIALS = 12


@dataclass(frozen=True)
class Comparison:
    """Difference between an exported model and the eager model on a batch of noise.

    Attributes:
        shape: Height and width of the images.
        seed: Seed of the noise.
        differences: Largest difference in each output; of integers, the share that differ.
        scales: Largest magnitude of each output of the eager model; 1 for integers.
        sensitivity: Largest change of any eager output under rounding of the images, relative to
            its scale; 0 if it was not measured, because the models agree.
    """

    shape: tuple[int, int]
    seed: int
    differences: Mapping[str, float]
    scales: Mapping[str, float]
    sensitivity: float = 0.0

    def ratio(self, output: str) -> float:
        """Return the largest difference in an output relative to its scale."""
        return self.differences[output] / (self.scales[output] or 1.0)

    @property
    def equal(self) -> bool:
        """Whether all outputs agree within :data:`TOLERANCE`."""
        return all(self.ratio(output) <= TOLERANCE for output in self.scales)

    @property
    def conclusive(self) -> bool:
        """Whether the outputs agree, or differ although rounding hardly changes them."""
        return self.equal or self.sensitivity <= TOLERANCE


@torch.inference_mode()
def compare(
    exported: Runner,
    eager: ExportableModel,
    shape: tuple[int, int],
    *,
    batch_size: int = 1,
) -> list[Comparison]:
    """Compare an exported model with the eager model on noise.

    Args:
        exported: Result of :func:`~hcformer_mm.deployment.export.load_exported`.
        eager: The :class:`~hcformer_mm.deployment.export.ExportableModel` that was exported.
        shape: Height and width of the images.
        batch_size: Number of images in a batch.

    Returns:
        A comparison for every batch, until :data:`IMAGES` are conclusive or :data:`TRIALS` are
        done.

    Raises:
        ValueError: The outputs differ in names or shapes.
    """
    comparisons: list[Comparison] = []
    for seed in range(TRIALS):
        inputs = eager.example(shape, batch_size, seed)
        expected, got = _comparable(eager(*inputs)), _comparable(exported(*inputs))
        wanted, found = ({name: tuple(x.shape) for name, x in y.items()} for y in (expected, got))
        if wanted != found:
            raise ValueError(f"expected outputs {wanted} of the exported model, got {found}")
        differences = {name: _difference(got[name], value) for name, value in expected.items()}
        scales = {name: _scale(value) for name, value in expected.items()}
        comparison = Comparison(shape, seed, differences, scales)
        if not comparison.equal:
            sensitivity = _sensitivity(eager, inputs, expected)
            comparison = replace(comparison, sensitivity=sensitivity)
        comparisons.append(comparison)
        if sum(c.conclusive for c in comparisons) == IMAGES:
            break
    return comparisons


def agrees(comparisons: Sequence[Comparison]) -> bool:
    """Return whether there are conclusive comparisons, and the models agree in all of them."""
    conclusive = [c for c in comparisons if c.conclusive]
    return bool(conclusive) and all(c.equal for c in conclusive)


def _comparable(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs without those of single instances, whose order depends on rounding; sorted scores."""
    unordered = ("boxes", "labels", "mask_index", "masks")
    kept = {name: x for name, x in outputs.items() if name not in unordered}
    if "scores" in kept:
        kept["scores"] = kept["scores"].sort(-1).values
    return kept


def _difference(x: Tensor, y: Tensor) -> float:
    apart = (x - y).abs().max() if y.is_floating_point() else (x != y).float().mean()
    return apart.item()


def _scale(x: Tensor) -> float:
    return x.abs().max().item() if x.is_floating_point() else 1.0


def _sensitivity(
    eager: ExportableModel, inputs: list[Tensor], expected: dict[str, Tensor]
) -> float:
    """Return the largest relative change of any output when the image is perturbed by rounding."""
    generator = torch.Generator().manual_seed(0)
    image, *size = inputs
    if image.dtype == torch.uint8:
        image = eager.normalize(image)
    changes = [0.0]
    for _ in range(PERTURBATIONS):
        factors = 1 + ROUNDING * torch.randn(image.shape, generator=generator)
        for name, value in _comparable(eager(image * factors, *size)).items():
            wanted = expected[name]
            changes.append(_difference(value, wanted) / (_scale(wanted) or 1.0))
    return max(changes)


class Times(NamedTuple):
    """Median times of one call in seconds, and the median over the rounds of exported / eager."""

    eager: float
    exported: float
    ratio: float


@torch.inference_mode()
def time_both(
    exported: Runner,
    eager: ExportableModel,
    shape: tuple[int, int],
    *,
    batch_size: int = 1,
    repeats: int = 5,
) -> Times:
    """Time the eager and the exported model in turn, after one warm-up round.

    Args:
        exported: As in :func:`compare`.
        eager: As in :func:`compare`.
        shape: Height and width of the images.
        batch_size: Number of images in a batch.
        repeats: Number of timed rounds.
    """
    inputs = eager.example(shape, batch_size)
    rounds = []
    for _ in range(1 + repeats):
        start = timer()
        eager(*inputs)
        middle = timer()
        exported(*inputs)
        rounds.append((middle - start, timer() - middle))
    eager_s, exported_s = zip(*rounds[1:], strict=True)
    ratio = median(y / x for x, y in rounds[1:])
    return Times(median(eager_s), median(exported_s), ratio)


def as_text(comparisons: Sequence[Comparison], times: Times) -> str:
    """Return a report on one shape in Markdown: the worst image of every output, and the times."""
    height, width = comparisons[0].shape
    shape = f"{height}x{width}"
    conclusive = [c for c in comparisons if c.conclusive]
    rows = []
    for output in comparisons[0].scales:
        worst = max(conclusive or comparisons, key=lambda c: c.ratio(output))
        rows.append(
            {
                "image": shape,
                "output": output,
                "largest difference": f"{worst.differences[output]:.1e}",
                "largest value": f"{worst.scales[output]:.3g}",
                "ratio": f"{worst.ratio(output):.1e}",
            }
        )
    table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
    equal = sum(c.equal for c in conclusive)
    summary = f"{shape}: {equal} of {len(conclusive)} images equal to {TOLERANCE:g}"
    if changes := [c.sensitivity for c in comparisons if not c.conclusive]:
        summary += (
            f"; {len(changes)} more are inconclusive: rounding of {ROUNDING:g} in the image alone "
            f"changes the outputs by {min(changes):.1e} to {max(changes):.1e}"
        )
    speed = (
        f"{shape}: eager {1e3 * times.eager:.1f} ms, exported {1e3 * times.exported:.1f} ms, "
        f"{times.ratio:.2f} times as long"
    )
    return f"{table}\n\n{summary}\n\n{speed}"
