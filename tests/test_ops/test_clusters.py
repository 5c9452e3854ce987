"""Hard labels of every level equal loops that follow each pixel."""

import itertools
import math
import time
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hcformer_mm.ops.clusters import (
    connected_parts,
    hard_assignment,
    hierarchical_clusters,
    relabel,
)
from tests.helpers import reference
from tests.test_ops.test_decoding import random_assignment

pytestmark = pytest.mark.usefixtures("device")

SIZES = [(1, 1), (1, 2), (1, 7), (5, 1), (2, 2), (3, 3), (4, 6), (7, 10), (13, 9)]


def random_hierarchy(batch: int, height: int, width: int, levels: int) -> list[Tensor]:
    """Soft assignments, finest first, exactly 0 outside the coarse map."""
    assignments = []
    for _ in range(levels):
        assignments.append(random_assignment(height, width, batch))
        height, width = (height + 1) // 2, (width + 1) // 2
    return assignments


def loop_best_cells(assignment: Tensor) -> list[int]:
    """First of the heaviest candidates of each fine cell, ``assignment`` (9, H, W)."""
    height, width = assignment.shape[-2:]
    best, weights = [-1] * (height * width), [-1.0] * (height * width)
    for y, x, k, cell in reference.candidates(height, width):
        weight, place = float(assignment[k, y, x]), y * width + x
        if weight > weights[place]:
            best[place], weights[place] = cell, weight
    return best


def loop_labels(assignments: list[Tensor], image: int, level: int) -> list[list[int]]:
    """Flat index of the level's cell that each cell of the finest map ends in."""
    height, width = assignments[0].shape[-2:]
    labels = list(range(height * width))
    for assignment in assignments[: level + 1]:
        best = loop_best_cells(assignment[image])
        labels = [best[label] for label in labels]
    return [labels[y * width : (y + 1) * width] for y in range(height)]


def different_pairs(some: Tensor, others: Tensor) -> set[tuple[int, int]]:
    return set(zip(some.flatten().tolist(), others.flatten().tolist(), strict=True))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_hard_assignment_equals_loop(height: int, width: int) -> None:
    assignment = random_hierarchy(2, height, width, 1)[0]
    expected = [loop_labels([assignment], image, 0) for image in range(2)]

    result = hard_assignment(assignment)

    assert result.dtype == torch.int64
    assert result.tolist() == expected


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, float("nan")])
def test_choice_is_inside_whatever_the_weights(value: float) -> None:
    # All nine candidates tie, those out of bounds included: the first one inside wins.
    result = hard_assignment(torch.full((1, 9, 3, 5), value))[0]
    #   coarse map 2×3; parents of the columns 0..4: 0 0 1 1 2, first candidate: parent - 1 or 0
    assert result.tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]


def test_heavy_weight_outside_is_ignored() -> None:
    assignment = torch.zeros(1, 9, 2, 2)
    assignment[:, 0] = 1.0  # above and to the left of the only coarse cell
    assert hard_assignment(assignment).tolist() == [[[0, 0], [0, 0]]]


def test_half_precision_and_channels_last() -> None:
    assignment = random_hierarchy(2, 6, 9, 1)[0].half()
    expected = hard_assignment(assignment)
    channels_last = assignment.to(memory_format=torch.channels_last)
    assert torch.equal(hard_assignment(channels_last), expected)


def check_nested(labels: tuple[Tensor, ...]) -> None:
    for finer, coarser in itertools.pairwise(labels):
        for some, others in zip(finer, coarser, strict=True):
            assert len(different_pairs(some, others)) == len(some.unique()), "two parents"


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_hierarchy_equals_loop(height: int, width: int) -> None:
    assignments = random_hierarchy(2, height, width, 3)
    sparse = hierarchical_clusters(assignments, dense=False)
    dense = hierarchical_clusters(assignments)
    assert len(sparse) == len(dense) == 3
    for level, labels in enumerate(sparse):
        assert labels.tolist() == [loop_labels(assignments, image, level) for image in range(2)]
        for image in range(2):  # dense labels keep the order of the cells and leave no gaps
            assert torch.equal(dense[level][image], labels[image].unique(return_inverse=True)[1])
    check_nested(sparse)
    check_nested(dense)


@pytest.mark.parametrize(
    ("image_size", "stride"),
    [((1, 1), 4), ((3, 30), 4), ((17, 22), 4), ((28, 40), 4), ((25, 37), 4), ((7, 9), 1)],
)
@pytest.mark.parametrize("dense", [True, False])
def test_image_labels_are_those_of_the_cells(
    image_size: tuple[int, int], stride: int, dense: bool
) -> None:
    assignments = random_hierarchy(2, 7, 10, 3)
    cells = hierarchical_clusters(assignments, dense=False)

    result = hierarchical_clusters(assignments, image_size=image_size, stride=stride, dense=dense)

    for level in range(3):
        expected = torch.empty(2, *image_size, dtype=torch.long)
        for y, x in itertools.product(*map(range, image_size)):
            expected[:, y, x] = cells[level][:, y // stride, x // stride]
        if dense:  # clusters that the image does not show are not counted
            for image in range(2):
                expected[image] = torch.unique(expected[image], return_inverse=True)[1]
        assert torch.equal(result[level], expected)


def test_relabel_by_hand() -> None:
    labels = torch.tensor([[7, 3, 7], [0, 9, 2]])
    assert relabel(labels).tolist() == [[1, 0, 1], [0, 2, 1]]
    assert relabel(labels.to(torch.uint8)).dtype == torch.int64
    assert relabel(torch.empty(2, 0, 4, dtype=torch.int32)).shape == (2, 0, 4)


@pytest.mark.parametrize("options", [{}, dict(connected=True), dict(output_size=(1365, 2731))])
def test_large_image_is_fast(options: dict) -> None:
    """A 2048×1024 image at stride 4 with three levels, in well under a second."""
    torch.manual_seed(0)
    assignments = [torch.rand(1, 9, 256 >> i, 512 >> i) for i in range(3)]
    seconds = []
    for _ in range(3):  # best of three: another process may take the core
        start = time.perf_counter()
        labels = hierarchical_clusters(assignments, image_size=(1024, 2048), stride=4, **options)
        seconds.append(time.perf_counter() - start)
    assert labels[-1].shape[1:] == options.get("output_size", (1024, 2048))
    assert min(seconds) < 1


@pytest.mark.parametrize("shape", [(9, 4, 4), (1, 8, 4, 4), (1, 9, 0, 4)])
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected assignment of \(B, 9, H, W\)"):
        hard_assignment(torch.zeros(shape))


def test_wrong_hierarchy() -> None:
    fine, coarse = random_hierarchy(1, 5, 6, 2)
    with pytest.raises(ValueError, match=r"expected assignments\[1\] of \(1, 9, 2, 2\), half"):
        hierarchical_clusters([coarse, fine])
    with pytest.raises(ValueError, match="got none"):
        hierarchical_clusters([])
    with pytest.raises(ValueError, match="got a tensor"):
        hierarchical_clusters(fine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(image_size=(21, 24), stride=4), r"at most \(20, 24\)"),
        (dict(image_size=(20, 24)), "expected stride >= 1"),
        (dict(stride=4), "expected image_size together with stride"),
        (dict(output_size=(4, 4)), r"expected image_size .*output_size=\(4, 4\) only"),
    ],
)
def test_wrong_image_size(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hierarchical_clusters(random_hierarchy(1, 5, 6, 2), **options)


@pytest.mark.parametrize("labels", [torch.rand(1, 3), torch.ones(1, 3) > 0, torch.tensor([[-1]])])
def test_wrong_labels(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        relabel(labels)


def loop_parts(labels: list[list[int]]) -> list[list[int]]:
    """Connected parts by flooding from each pixel that no part has yet."""
    height, width = len(labels), len(labels[0])
    parts = [[-1] * width for _ in range(height)]
    number = 0
    for y, x in itertools.product(range(height), range(width)):
        if parts[y][x] >= 0:
            continue
        parts[y][x], pending = number, [(y, x)]
        while pending:
            v, u = pending.pop()
            for b, a in ((v - 1, u), (v + 1, u), (v, u - 1), (v, u + 1)):
                inside = 0 <= b < height and 0 <= a < width
                if inside and parts[b][a] < 0 and labels[b][a] == labels[y][x]:
                    parts[b][a] = number
                    pending.append((b, a))
        number += 1
    return parts


def test_connected_parts_by_hand() -> None:
    labels = torch.tensor([[[4, 4, 0, 4], [0, 4, 0, 4], [4, 0, 0, 0]]])
    # 4s: one part on the left, one on the right, one below, which only a corner joins.
    assert connected_parts(labels).tolist() == [[[0, 0, 1, 2], [3, 0, 1, 2], [4, 1, 1, 1]]]


@pytest.mark.parametrize("stride", [None, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_connected_parts_equal_flooding_and_are_nested(
    height: int, width: int, stride: int | None
) -> None:
    assignments = random_hierarchy(2, height, width, 3)
    place = {}
    if stride is not None:  # some cells show no pixel
        image_size = (stride * height, stride * width)
        place = dict(stride=stride, image_size=image_size, output_size=(height + 2, 2 * width))
    parts = hierarchical_clusters(assignments, **place, connected=True)
    for some, others in zip(hierarchical_clusters(assignments, **place), parts, strict=True):
        assert others.tolist() == [loop_parts(image) for image in some.tolist()]
    check_nested(parts)


@pytest.mark.parametrize("seed", range(5))
def test_connected_parts_of_noise_and_of_a_spiral(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    noise = torch.randint(2, (2, 23, 31), generator=random, device="cpu")
    assert connected_parts(noise).tolist() == [loop_parts(image) for image in noise.tolist()]
    winding = torch.zeros(1, 4 * seed + 3, 20, dtype=torch.uint8)
    winding[:, ::2] = 1
    winding[:, 1::4, -1] = winding[:, 3::4, 0] = 1
    assert connected_parts(winding).tolist() == [loop_parts(winding[0].tolist())]
    assert connected_parts(noise[:0]).shape == (0, 23, 31)


@pytest.mark.parametrize("output_size", [(1, 1), (17, 22), (34, 11), (9, 50)])
def test_labels_of_the_size_before_resizing(output_size: tuple[int, int]) -> None:
    stride, image_size = 4, (17, 22)
    assignments = random_hierarchy(2, 7, 10, 3)
    input_labels = hierarchical_clusters(
        assignments, image_size=image_size, stride=stride, dense=False
    )
    place = dict(image_size=image_size, stride=stride, output_size=output_size)

    result = hierarchical_clusters(assignments, **place, dense=False)
    dense = hierarchical_clusters(assignments, **place)

    for level, labels in enumerate(input_labels):
        expected = torch.empty(2, *output_size, dtype=torch.long)
        for y, x in itertools.product(*map(range, output_size)):
            # The pixel of the resized image that the center of (y, x) falls on.
            v = math.floor(Fraction(2 * y + 1, 2) * Fraction(image_size[0], output_size[0]))
            u = math.floor(Fraction(2 * x + 1, 2) * Fraction(image_size[1], output_size[1]))
            expected[:, y, x] = labels[:, v, u]
        assert torch.equal(result[level], expected)
        for image in range(2):
            assert torch.equal(dense[level][image], expected[image].unique(return_inverse=True)[1])
