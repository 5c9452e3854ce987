"""Whether an exported model says what the model says, and how fast it is.

The masked decoder compares mask logits with a threshold, and lets a query without any cell look at
all of them. A logit within rounding of the threshold may fall on either side of it, and the outputs
jump: on some images two exact computations are far apart. So where an exported model differs, the
model itself is asked how far it moves when the image is disturbed by no more than rounding, and if
that is as far, nothing can be learned from this image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor
from torch.utils.benchmark import timer

from .export import Runner

TOLERANCE = 1e-3
"""The largest difference of an output over its largest magnitude."""

ROUNDING = 1e-6
"""Standard deviation of the factors, around 1, by which an image is disturbed."""

DISTURBANCES = 8
IMAGES = 3
TRIALS = 12


@dataclass(frozen=True)
class Comparison:
    """How far an exported model is from the model on an image.

    Attributes:
        shape: Height and width of the image.
        seed: Seed of the image.
        differences: The largest difference in each output.
        scales: The largest magnitude of each output of the model.
        unrest: How far the model itself moves under rounding: the largest ratio of any output; None
            where it was not asked, as nothing differs.
    """

    shape: tuple[int, int]
    seed: int
    differences: Mapping[str, float]
    scales: Mapping[str, float]
    unrest: float | None = None

    def ratio(self, output: str) -> float:
        """The largest difference in an output over its scale."""
        return self.differences[output] / (self.scales[output] or 1.0)

    @property
    def equal(self) -> bool:
        """Whether all outputs agree."""
        return all(self.ratio(output) <= TOLERANCE for output in self.scales)

    @property
    def undecided(self) -> bool:
        """Whether the model itself moves too far for the difference to say anything."""
        return not self.equal and self.unrest is not None and self.unrest > TOLERANCE


def compare(
    exported: Runner,
    eager: Callable[[Tensor], dict[str, Tensor]],
    shape: tuple[int, int],
    *,
    batch_size: int = 1,
) -> list[Comparison]:
    """Compare an exported model with the model on normalized images of noise.

    Args:
        exported: What :func:`~hcformer_mm.deployment.export.load_exported` returns.
        eager: The :class:`~hcformer_mm.deployment.export.ExportableModel` that was exported.
        shape: Height and width of the images.
        batch_size: Number of images at a time.

    Returns:
        Comparisons of :data:`IMAGES` images that decide something, and of those without a decision
        before them; there may be fewer that decide after :data:`TRIALS`.

    Raises:
        ValueError: The two do not return outputs of the same names and shapes.
    """
    comparisons: list[Comparison] = []
    for seed in range(TRIALS):
        image = noise(shape, batch_size, seed)
        expected, got = _run(eager, image), exported(image)
        _check_outputs(expected, got)
        differences = {name: _largest(got[name] - value) for name, value in expected.items()}
        scales = {name: _largest(value) for name, value in expected.items()}
        comparison = Comparison(shape, seed, differences, scales)
        if not comparison.equal:
            unrest = _unrest(eager, image, expected)
            comparison = Comparison(shape, seed, differences, scales, unrest)
        comparisons.append(comparison)
        if sum(not c.undecided for c in comparisons) == IMAGES:
            break
    return comparisons


def agrees(comparisons: Sequence[Comparison]) -> bool:
    """Whether there were images that decide, and the models agree on all of those."""
    decided = [comparison for comparison in comparisons if not comparison.undecided]
    return bool(decided) and all(comparison.equal for comparison in decided)


def noise(shape: tuple[int, int], batch_size: int = 1, seed: int = 0) -> Tensor:
    """Normalised images ``(B, 3, H, W)`` of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 3, *shape, generator=generator)


def _run(eager: Callable[[Tensor], dict[str, Tensor]], image: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return eager(image)


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def _check_outputs(expected: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    wanted, found = ({name: tuple(x.shape) for name, x in xs.items()} for xs in (expected, got))
    if wanted != found:
        raise ValueError(f"expected outputs {wanted} of the exported model, got {found}")


def _unrest(
    eager: Callable[[Tensor], dict[str, Tensor]], image: Tensor, expected: dict[str, Tensor]
) -> float:
    """How far the outputs move, over their scale, when the image is disturbed by rounding."""
    generator = torch.Generator().manual_seed(0)
    moved = 0.0
    for _ in range(DISTURBANCES):
        factors = 1 + ROUNDING * torch.randn(image.shape, generator=generator)
        for name, value in _run(eager, image * factors).items():
            change = _largest(value - expected[name]) / (_largest(expected[name]) or 1.0)
            moved = max(moved, change)
    return moved


class Times(NamedTuple):
    """Median times of one call in seconds, and the median over the rounds of exported / eager."""

    eager: float
    exported: float
    ratio: float


def time_both(
    exported: Runner,
    eager: Callable[[Tensor], dict[str, Tensor]],
    shape: tuple[int, int],
    *,
    batch_size: int = 1,
    repeats: int = 5,
) -> Times:
    """Time an exported model and the model in turn, after one warm-up round.

    Args:
        exported: As in :func:`compare`.
        eager: As in :func:`compare`.
        shape: Height and width of the images.
        batch_size: Number of images at a time.
        repeats: Rounds that count.
    """
    image = noise(shape, batch_size)
    rounds = []
    for _ in range(1 + repeats):
        start = timer()
        _run(eager, image)
        middle = timer()
        exported(image)
        rounds.append((middle - start, timer() - middle))
    eager_s, exported_s = zip(*rounds[1:], strict=True)
    ratio = median(y / x for x, y in rounds[1:])
    return Times(median(eager_s), median(exported_s), ratio)


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def as_text(comparisons: Sequence[Comparison], times: Times) -> str:
    """What was compared and timed for one shape, in Markdown.

    Args:
        comparisons: Of :func:`compare`.
        times: Of :func:`time_both`.
    """
    shape = _size(comparisons[0].shape)
    decided = [c for c in comparisons if not c.undecided]
    rows = []
    for output in comparisons[0].scales:
        ratios = {c.ratio(output): c for c in decided or comparisons}
        worst = ratios[max(ratios)]
        rows.append(
            {
                "image": shape,
                "output": output,
                "largest difference": f"{worst.differences[output]:.1e}",
                "largest value": f"{worst.scales[output]:.3g}",
                "ratio": f"{worst.ratio(output):.1e}",
            }
        )
    parts = [tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)]
    equal = sum(c.equal for c in decided)
    parts.append(f"{shape}: {equal} of {len(decided)} images equal to {TOLERANCE:g}")
    unrest = [c.unrest for c in comparisons if c.undecided and c.unrest is not None]
    if unrest:
        parts[-1] += (
            f"; {len(unrest)} more decide nothing, as the model itself moves by {min(unrest):.1e} "
            f"to {max(unrest):.1e} when they are disturbed by {ROUNDING:g}"
        )
    parts.append(
        f"{shape}: eager {1e3 * times.eager:.1f} ms, exported {1e3 * times.exported:.1f} ms, "
        f"{times.ratio:.2f} times as long"
    )
    return "\n\n".join(parts)
