"""Ids of objects over the frames of a video."""

import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hcformer_mm.models.utils import segment_tracker
from hcformer_mm.models.utils.segment_tracker import SegmentTracker
from tests.helpers.moving_shapes import kept_share, moving_shapes

OBJECTS = 4


def track_truth(seed, *, noise=0.5, missing=0.1, device="cpu", **options):
    """Pairs (object, id) of each frame, from true masks, noisy embeddings and lost segments."""
    generator = torch.Generator().manual_seed(seed)

    def directions():
        return F.normalize(torch.randn(OBJECTS, 32, generator=generator), dim=1)

    tracker, own, frames = SegmentTracker(**options), directions(), []
    for frame in moving_shapes(seed, things=OBJECTS, size=(128, 128)):
        visible = torch.from_numpy(frame.masks.sum((1, 2))) >= 30
        found = visible & (torch.rand(OBJECTS, generator=generator) >= missing)
        order = torch.randperm(OBJECTS, generator=generator)
        order = order[found[order]]
        segments = (torch.from_numpy(frame.masks), torch.from_numpy(frame.labels))
        embeddings = own + noise * directions()
        ids = tracker.update(*(one[order].to(device) for one in (*segments, embeddings)))
        frames.append(list(zip(order.tolist(), ids.tolist(), strict=True)))
    return frames


@pytest.mark.parametrize("seed", range(4))
def test_ids_stay_through_crossings(seed):
    """With a tenth of the segments missing, and the others in random order."""
    assert kept_share(track_truth(seed)) >= 0.95


def test_embeddings_keep_ids_that_masks_lose():
    shares = [
        np.mean([kept_share(track_truth(seed, **options)) for seed in (0, 2)])
        for options in ({}, dict(weights=(0, 1, 0), min_similarity=0.2))
    ]
    assert shares[0] > shares[1] + 0.05


def test_ids_are_the_same_on_each_device(device):
    assert track_truth(0, device=device) == track_truth(0)


def square(row, column, size=8):
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[0, max(row, 0) : row + size, max(column, 0) : column + size] = True
    return mask


LABEL, EMBEDDING = torch.tensor([2]), torch.ones(1, 3)


@pytest.mark.parametrize("stride", [1, 2])
def test_similarity_is_its_formula(stride, monkeypatch):
    """Against loops over pairs and pixels."""
    monkeypatch.setattr(segment_tracker, "MAX_SIDE", 40 // stride)
    generator = torch.Generator().manual_seed(0)
    weights = (0.7, 1.3, 0.4)
    tracker = SegmentTracker(weights=weights, min_similarity=0)
    embeddings = torch.randn(3, 2, 5, generator=generator)
    first, second = (
        torch.cat([square(4 + t, 5 + 2 * t), square(28, 26 - 3 * t)]) for t in (0, 2 * stride)
    )
    labels = torch.tensor([0, 1])
    for masks, embedding in zip((first, second), embeddings, strict=False):
        tracker.update(masks, labels, embedding)
    third = torch.cat([square(5, 9), square(20, 20, 12)])
    found = segment_tracker._Tracks(
        *(torch.zeros(2), torch.ones(2), torch.tensor([1, 1]), F.normalize(embeddings[2], dim=1)),
        *(third[:, ::stride, ::stride], torch.zeros(2, 2), torch.zeros(2, 2)),
    )
    similarity = tracker._similarity(tracker._tracks, found)
    # Half of the first step, in cells of stride × stride pixels.
    for i, step in enumerate([(1, 2), (0, -3)]):
        for j in range(2):
            seen, other = second[i, ::stride, ::stride], third[j, ::stride, ::stride]
            moved = {(y + step[0], x + step[1]) for y, x in seen.nonzero().tolist()}
            pixels = set(map(tuple, other.nonzero().tolist()))
            expected = (
                weights[0] * F.cosine_similarity(embeddings[1, i], embeddings[2, j], dim=0)
                + weights[1] * len(moved & pixels) / len(moved | pixels)
                + weights[2] * (labels[i] == 1)
            )
            assert similarity[i, j].item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_mask_moves_on_while_it_is_not_seen():
    tracker = SegmentTracker(weights=(0, 1, 0), min_similarity=0.3)
    for row, column in [(2, 30), (5, 28), (8, 26)]:
        assert tracker.update(square(row, column), LABEL, EMBEDDING).tolist() == [1]
    nothing = (square(0, 0)[:0], LABEL[:0], EMBEDDING[:0])
    assert tracker.update(*nothing).tolist() == []
    assert tracker.update(square(14, 22), LABEL, EMBEDDING).tolist() == [1]


def test_velocity_is_per_frame():
    """Four rows in two frames; an empty mask, of a small segment, keeps the velocity."""
    tracker = SegmentTracker(weights=(1, 0, 0), min_similarity=0.5)
    tracker.update(square(4, 4), LABEL, EMBEDDING)
    tracker.update(square(0, 0)[:0], LABEL[:0], EMBEDDING[:0])
    tracker.update(square(8, 4), LABEL, EMBEDDING)
    assert tracker._tracks.velocities.tolist() == [[1, 0]]
    for mask in (torch.zeros_like(square(0, 0)), square(12, 4)):
        tracker.update(mask, LABEL, EMBEDDING)
        assert tracker._tracks.velocities.tolist() == [[1, 0]]


@pytest.mark.parametrize(("min_similarity", "expected"), [(0.5, 1), (0.51, 2)])
def test_similarity_at_its_minimum_is_a_match(min_similarity, expected):
    tracker = SegmentTracker(weights=(0, 1, 0), min_similarity=min_similarity)
    tracker.update(square(0, 0), LABEL, EMBEDDING)
    assert tracker.update(square(-4, 0), LABEL, EMBEDDING).tolist() == [expected]


@pytest.mark.parametrize(("missed", "expected"), [(3, 1), (4, 2)])
def test_tracks_wait_for_as_many_frames_as_they_should(missed, expected):
    tracker = SegmentTracker(memory=3)
    tracker.update(square(4, 4), LABEL, EMBEDDING)
    for _ in range(missed):
        tracker.update(square(0, 0)[:0], LABEL[:0], EMBEDDING[:0])
    assert tracker.update(square(4, 4), LABEL, EMBEDDING).tolist() == [expected]


def test_one_object_gets_an_id_once():
    """The second of two alike segments begins a track, whatever the order."""
    tracker = SegmentTracker()
    for _ in range(2):  # nor does what was seen before the last frame match the other
        tracker.update(square(4, 4), LABEL, EMBEDDING)
    masks = torch.cat([square(6, 6), square(4, 4)])
    ids = tracker.update(masks, LABEL.repeat(2), EMBEDDING.repeat(2, 1))
    assert ids.tolist() == [2, 1]


def test_masks_that_leave_the_image_do_not_come_back_on_the_other_side():
    masks = torch.rand(5, 6, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    steps = torch.tensor([[0, 0], [2, -3], [-5, 8.4], [6, 0], [0, -40]])
    moved = segment_tracker._moved(masks, steps)
    for mask, (down, right), result in zip(masks, steps.round().int().tolist(), moved, strict=True):
        expected = torch.zeros_like(mask)
        for row, column in mask.nonzero().tolist():
            if 0 <= row + down < 6 and 0 <= column + right < 9:
                expected[row + down, column + right] = True
        assert torch.equal(result, expected)


def test_refusals():
    with pytest.raises(ValueError, match=r"expected weights and memory of at least 0, got .*-1"):
        SegmentTracker(memory=-1)


@pytest.mark.parametrize("size", [(39, 40), (41, 40), (80, 80), (79, 80)])
def test_frames_of_another_size_are_refused(size, monkeypatch):
    """Also where as many of their rows and columns are compared."""
    monkeypatch.setattr(segment_tracker, "MAX_SIDE", 40)
    tracker = SegmentTracker()
    tracker.update(square(4, 4), LABEL, EMBEDDING)
    message = re.escape(f"expected frames of one size, got another one, {size} after (40, 40);")
    with pytest.raises(ValueError, match=message):
        tracker.update(torch.ones(1, *size, dtype=torch.bool), LABEL, EMBEDDING)
