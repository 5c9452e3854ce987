"""How large images are cut into tiles."""

import itertools

import numpy as np
import pytest
import torch

from hcformer_mm.apis.tiles import Tiling, spans


@pytest.mark.parametrize("length", [1, 31, 32, 33, 50, 64, 100, 257])
@pytest.mark.parametrize("overlap", [1, 7, 8, 16, 31])
def test_spans(length, overlap):
    found = spans(length, 32, overlap)
    sizes = {span.whole.stop - span.whole.start for span in found}
    assert sizes == {min(32, length)}
    covered = np.concatenate([np.arange(span.owned.start, span.owned.stop) for span in found])
    assert np.array_equal(covered, np.arange(length))
    assert len(found) == 1 + max(0, -(-(length - 32) // (32 - overlap)))  # the fewest
    weights = torch.zeros(length)
    for span in found:
        assert span.whole.start <= span.used.start <= span.owned.start
        assert span.owned.stop <= span.used.stop <= span.whole.stop
        weights[span.used] += span.weights()
    torch.testing.assert_close(weights, torch.ones(length))
    for one, other in itertools.pairwise(found):
        assert other.whole.start + overlap <= one.whole.stop
        assert one.after == other.before
        width = one.after.stop - one.after.start
        falling, rising = one.weights()[-width:], other.weights()[:width]
        torch.testing.assert_close(falling, rising.flip(0))
        assert width == overlap or (0 < width < overlap and overlap > 32 / 3)
        assert abs(one.after.stop + one.after.start - 2 * one.owned.stop) <= 1  # in the middle


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 64), r"expected tile_overlap from 1 to 63, .* \(64, 64\), got 64"),
        ((64, 0), "expected tile_overlap from 1 to 63"),
        (((96, 32), 40), "expected tile_overlap from 1 to 31"),
        ((0,), "expected tile_size of at least 2 pixels a side, got 0"),
        (((64, 1),), r"expected tile_size of at least 2 pixels a side, got \(64, 1\)"),
        (((64, 64, 3),), r"expected tile_size as a side or as height and width, got \(64, 64, 3\)"),
        ((64.5,), "expected tile_size as a side or as height and width, got 64.5"),
        ((64, 8.5), "expected tile_overlap from 1 to 63, .*, got 8.5"),
        (("64",), "expected tile_size as a side or as height and width, got 64"),
        ((64, 8, 1.5), "expected tile_iou_thr from 0 to 1, got 1.5"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiling(*arguments)


def test_numbers_of_numpy():
    assert Tiling(np.int64(64), np.int64(8)).shape == (64, 64)
    assert Tiling((np.int64(64), 32), 8).shape == (64, 32)
