"""Videos of figures of the Shapes set that move over a still ground and cross each other."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from hcformer_mm.datasets.shapes_generator import FIGURES, STUFF_TEXTURES
from hcformer_mm.datasets.shapes_generator.layout import SceneLayout, Thing
from hcformer_mm.datasets.shapes_generator.painting import paint


@dataclass(frozen=True)
class Frame:
    """A frame of a video and its objects.

    Attributes:
        image: ``(H, W, 3)`` uint8, BGR.
        masks: Visible pixels of each object, ``(N, H, W)`` bool; empty if it is hidden.
        labels: Class of each object, ``(N,)``.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]


def moving_shapes(
    seed: int, *, frames: int = 60, things: int = 4, size: tuple[int, int] = (256, 256)
) -> Iterator[Frame]:
    """Figures of random classes that change sides, two by two in lanes, or from lane to lane.

    They pass each other near the middle, one behind the other; the one of the highest index is in
    front.

    Args:
        seed: Seed of ground, figures and paths.
        frames: Number of frames.
        things: Number of figures.
        size: Height and width in pixels.
    """
    rng = np.random.RandomState(seed)
    height, width = size
    still = _ground(seed, size)
    labels = rng.randint(0, len(FIGURES), things)
    diameters = min(size) * rng.uniform(0.22, 0.32, things)
    sprites = [
        _sprite(rng, label, diameter, size)
        for label, diameter in zip(labels.tolist(), diameters, strict=True)
    ]
    lanes = np.linspace(0.3, 0.7, -(-things // 2)).repeat(2)[:things]
    rows = height * (
        np.stack([lanes, rng.permutation(lanes)]) + rng.uniform(-0.05, 0.05, (2, things))
    )
    columns = width * np.stack([rng.uniform(low, low + 0.08, things) for low in (0.12, 0.8)])
    columns[:, ::2] = columns[::-1, ::2]  # every other one goes to the left
    for share in np.linspace(0, 1, frames):
        image = still.copy()
        owner = np.full(size, -1)
        for i, (colors, mask) in enumerate(sprites):
            row, column = (
                (1 - share) * ends[0, i] + share * ends[1, i] for ends in (rows, columns)
            )
            step = (round(row - height / 2), round(column - width / 2))
            moved = _shifted(mask, step)
            image[moved] = _shifted(colors, step)[moved]
            owner[moved] = i
        yield Frame(image, owner == np.arange(things)[:, None, None], labels)


def _ground(seed: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    rng = np.random.RandomState(seed)
    labels = np.zeros(size, np.int64)
    labels[:, size[1] // 2 :] = 1
    labels = (labels + seed) % len(STUFF_TEXTURES)
    return paint(rng, SceneLayout(labels, [], np.full(size, -1)))[..., ::-1]


def _sprite(rng, label, diameter, size):
    """Pixels and mask of a figure in the middle of an image."""
    y, x = np.mgrid[: size[0], : size[1]]
    u, v = (x - size[1] / 2) / (diameter / 2), (y - size[0] / 2) / (diameter / 2)
    outline = list(FIGURES.values())[label](rng, False)
    thing = Thing(label, outline(u, v), u, v, outline, 0.0)
    owner = np.where(thing.mask, 0, -1)
    ground = np.zeros(size, np.int64)
    return paint(rng, SceneLayout(ground, [thing], owner))[..., ::-1], thing.mask


def _shifted(array, step):
    """An array moved by rows and columns, which leaves False or 0 behind."""
    moved = np.roll(array, step, (0, 1))
    for axis, by in enumerate(step):
        edge = [slice(None)] * 2
        edge[axis] = slice(0, by) if by >= 0 else slice(by, None)
        moved[tuple(edge)] = 0
    return moved


def sights(masks, ids, truth, min_iou):
    """Pairs (object, id) of a frame: masks with such an IoU, or a larger one, with an object.

    Args:
        masks: Predicted masks, ``(N, H, W)`` bool.
        ids: Their ids.
        truth: Masks of the objects, ``(M, H, W)`` bool.
        min_iou: Above 0.5 a mask that covers two objects of one size shows neither.
    """
    common = (masks[:, None] & truth).sum((2, 3))
    ious = common / np.maximum((masks[:, None] | truth).sum((2, 3)), 1)
    rows, columns = linear_sum_assignment(ious, maximize=True)
    return [(int(j), ids[i]) for i, j in zip(rows, columns, strict=True) if ious[i, j] >= min_iou]


def switches(frames):
    """How often an object has another id than when it was last seen; see :func:`kept_share`."""
    last, number = {}, 0
    for thing, track in (pair for frame in frames for pair in frame):
        number += last.get(thing, track) != track
        last[thing] = track
    return number


def kept_share(frames):
    """Share of the sights of objects in which they have the id that is theirs most often.

    An id that several objects would claim belongs to the one that has it most often.

    Args:
        frames: Pairs (object, id) of each frame.
    """
    counts = Counter(pair for frame in frames for pair in frame)
    owners, objects = {}, set()
    for (thing, track), number in counts.most_common():
        if track not in owners and thing not in objects:
            owners[track] = number
            objects.add(thing)
    return sum(owners.values()) / sum(counts.values())
