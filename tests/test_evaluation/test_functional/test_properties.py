"""Superpixel scores of label maps of every size, type and value, against slow references."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.metrics import contingency_table

from hcformer_mm.evaluation.functional import superpixels
from tests.helpers import reference
from tests.helpers.label_maps import PAIRS, SIZES, label_maps

EMPTY = [(0, 0), (0, 3), (3, 0)]


def renamed(labels):
    """The same clusters, numbered from 0."""
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].reshape(labels.shape))


@given(PAIRS)
def test_scores_are_those_of_sets_and_loops(pair):
    labels, truth = pair
    ours, theirs = renamed(labels), renamed(truth)
    for form in ("neubert-protzel", "levin"):
        error = superpixels.undersegmentation_error(labels, truth, form=form)
        assert error == pytest.approx(reference.undersegmentation_error(ours, theirs, form))
    table = contingency_table(theirs.numpy(), ours.numpy()).toarray()
    accuracy = superpixels.achievable_segmentation_accuracy(labels, truth)
    assert accuracy == pytest.approx(table.max(axis=0).sum() / labels.size)
    assert superpixels.compactness(labels) == pytest.approx(reference.compactness(ours))
    assert superpixels.number_of_clusters(labels) == table.shape[1]
    found, true = reference.boundary_pixels(ours), reference.boundary_pixels(theirs)
    for tolerance in (0, 1, 9):
        scores = superpixels.boundary_scores(labels, truth, tolerance=tolerance)
        for score, some, others in zip(scores, (true, found), (found, true), strict=True):
            expected = reference.boundary_hits(some, others, tolerance) if some else np.nan
            assert score == pytest.approx(expected, nan_ok=True)


@given(PAIRS, st.data())
def test_void_pixels_count_for_nothing(pair, data):
    """Scores depend on no label there, and are nan or the void label if all is void."""
    labels, truth = pair
    void = data.draw(arrays(np.bool_, labels.shape))
    other = np.where(void, truth.flat[0], truth)
    for name in ("undersegmentation_error", "achievable_segmentation_accuracy", "boundary_scores"):
        scores = [getattr(superpixels, name)(labels, t, ignore=void) for t in (truth, other)]
        assert np.array_equal(*scores, equal_nan=True)
        assert not void.all() or np.isnan(scores[0]).all()
    chosen = superpixels.majority_map(labels, truth, ignore=void, void=-7)
    for label in np.unique(labels):
        seen = truth[(labels == label) & ~void]
        values, counts = np.unique(seen, return_counts=True)
        best = values[counts.argmax()] if len(seen) else -7
        assert (chosen[labels == label] == best).all()
    assert not superpixels.undersegmentation_map(labels, truth, ignore=void)[void].any()


@given(SIZES.flatmap(lambda size: st.tuples(label_maps(size), arrays(np.uint8, (*size, 3)))))
def test_explained_variation_is_that_of_residuals(pair):
    labels, image = pair
    tensor = torch.from_numpy(image).permute(2, 0, 1).double()
    expected = reference.explained_variation(renamed(labels), tensor)
    found = superpixels.explained_variation(labels, image)
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)


@given(PAIRS, PAIRS)
def test_maps_of_other_sizes_and_types(pair, others):
    labels, truth = pair
    if labels.shape != others[1].shape:
        with pytest.raises(ValueError, match="expected clusters and ground truth of one size"):
            superpixels.overlaps(labels, others[1])
        with pytest.raises(ValueError, match="expected ignore as an integer or as a bool mask"):
            superpixels.overlaps(labels, truth, ignore=others[1] > 0)
    for wrong in (labels.astype(float), labels[None], np.zeros(EMPTY[labels.size % 3], int)):
        with pytest.raises(ValueError, match=r"expected \w+ as \(H, W\) integers"):
            superpixels.overlaps(labels, wrong)
        with pytest.raises(ValueError, match=r"expected labels as \(H, W\) integers"):
            superpixels.compactness(wrong)
