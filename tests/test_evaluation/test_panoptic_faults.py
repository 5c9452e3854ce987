"""Kinds of faults of panoptic predictions: drawn maps, sets of pixels, and sums."""

import math
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hcformer_mm.evaluation.functional.superpixels import majority_map
from hcformer_mm.evaluation.measures.panoptic_faults import (
    BACKGROUND,
    BELOW_THRESHOLD,
    INEXACT,
    KINDS,
    MISSED,
    SPLIT_OR_MERGED,
    WRONG_CLASS,
    fault_losses,
    panoptic_faults,
)
from hcformer_mm.evaluation.measures.panoptic_quality import (
    PanopticTruth,
    panoptic_counts,
    pq_groups,
    total_counts,
)
from tests.helpers.label_maps import SIZES

SPLIT = SPLIT_OR_MERGED
DISC, BOX, SKY = 10, 11, 20
CATEGORIES = {
    DISC: dict(id=DISC, isthing=1),
    BOX: dict(id=BOX, isthing=1),
    SKY: dict(id=SKY, isthing=0),
}
LETTERS = dict(d=DISC, b=BOX, s=SKY)


def drawn(row):
    """One row of pixels: ``dDbs.`` are two discs, a box, sky, and void."""
    ids = np.array([[0 if letter == "." else ord(letter) for letter in row]])
    return ids, {ord(letter): LETTERS[letter.lower()] for letter in {*row} - {"."}}


def panoptic_truth(ids, categories, crowds=()):
    infos = {
        i: dict(category_id=category, iscrowd=int(i in crowds), area=int((ids == i).sum()))
        for i, category in categories.items()
    }
    return PanopticTruth(ids, ~np.isin(ids, [i for i in infos if i not in crowds]), infos)


@pytest.mark.parametrize(
    ("truth", "prediction", "missed", "false"),
    [
        ("ddssss", "ddssss", dict(d=INEXACT, s=INEXACT), {}),  # which lose nothing
        ("ddssss", "ssssss", dict(d=MISSED, s=INEXACT), {}),
        ("ssssss", "ddssss", dict(s=INEXACT), dict(d=BACKGROUND)),
        ("ddssss", "bbssss", dict(d=WRONG_CLASS, s=INEXACT), dict(b=WRONG_CLASS)),
        # An IoU of 1/2 is neither a match nor a wrong class.
        ("ddddss", "ddbbss", dict(d=INEXACT, s=INEXACT), dict(d=INEXACT, b=BACKGROUND)),
        ("ddddss", "bbbdss", dict(d=WRONG_CLASS, s=INEXACT), dict(d=INEXACT, b=WRONG_CLASS)),
        ("ddddss", "ddDDss", dict(d=SPLIT, s=INEXACT), dict.fromkeys("dD", SPLIT)),
        ("ddddss", "dddDss", dict(d=INEXACT, s=INEXACT), dict(D=SPLIT)),
        ("ddDDss", "ddddss", dict.fromkeys("dD", SPLIT) | dict(s=INEXACT), dict(d=SPLIT)),
        ("dddDss", "ddddss", dict(d=INEXACT, D=SPLIT, s=INEXACT), {}),
        # The union of the parts has an IoU of 4/8 with the disc; each part alone has 2/8.
        ("dddddddd", "dd....DD", dict(d=INEXACT), dict.fromkeys("dD", INEXACT)),
        # Half of a part is not most of it.
        (
            "d" * 8 + "s" * 6,
            "ddddDD..DDssss",
            dict(d=INEXACT, s=INEXACT),
            dict.fromkeys("dD", INEXACT),
        ),
        # What overlaps only a segment that matches another one is not inexact.
        ("d" * 7 + "D" * 7, "d" * 10 + "." * 4, dict(d=INEXACT, D=MISSED), {}),
        (
            "d" * 10 + "s" * 10,
            "d" * 7 + "D" * 7 + "s" * 6,
            dict(d=INEXACT, s=INEXACT),
            dict(D=BACKGROUND),
        ),
        # An IoU of 1/10 is inexact, 1/11 is not.
        ("d" * 10, "d" + "." * 9, dict(d=INEXACT), dict(d=INEXACT)),
        ("d" * 11, "d" + "." * 10, dict(d=MISSED), dict(d=BACKGROUND)),
        # Void is no part of a predicted segment, and what is mostly in void is not false.
        ("dd..ssss", "bbbbssss", dict(d=WRONG_CLASS, s=INEXACT), dict(b=WRONG_CLASS)),
        ("d...ssss", "bbbbssss", dict(d=WRONG_CLASS, s=INEXACT), {}),
        ("d...ssss", "bbbbs...", dict(d=WRONG_CLASS, s=INEXACT), dict(s=INEXACT)),
    ],
)
def test_kinds(truth, prediction, missed, false):
    true = drawn(truth)
    faults = panoptic_faults(drawn(prediction), true, panoptic_truth(*true))
    assert {chr(one.true): one.kind for one in faults if one.true is not None} == missed
    assert {chr(one.found): one.kind for one in faults if one.true is None} == false


def test_segments_that_lower_thresholds_would_find():
    """A missed disc and an inexact box are among the candidates; a disc of wrong class is one too.

    The sky of the prediction and of the candidates matches.
    """
    truth, prediction, candidates = "ddbbbbDDDssssssss", "ssbb..BBBssssssss", "ddbbbbDDDssssssss"
    true = drawn(truth)
    kinds = {}
    for told in (False, True):
        likely = drawn(candidates) if told else None
        faults = panoptic_faults(drawn(prediction), true, panoptic_truth(*true), likely)
        kinds[told] = {chr(one.true): one.kind for one in faults if one.true is not None}
    assert kinds[False] == dict(d=MISSED, b=INEXACT, D=WRONG_CLASS, s=INEXACT)
    assert kinds[True] == kinds[False] | dict(d=BELOW_THRESHOLD, b=BELOW_THRESHOLD)


def shares(prediction, oracle, truth, categories=CATEGORIES, candidates=None):
    """PQ with oracle labels, PQ of the prediction, and losses of an image by kind."""
    counts = [panoptic_counts(*segments, truth) for segments in (prediction, oracle)]
    faults = panoptic_faults(prediction, oracle, truth, candidates)
    (losses,) = fault_losses([faults], counts[:1], counts[1:], categories)
    reached = [100 * pq_groups(stat, categories)["All"]["pq"] for stat in counts]
    return reached[1], reached[0], losses


def test_shares_of_a_drawn_map():
    """A disc of 4 pixels, a box of 4 and sky; the box is predicted as a disc.

    Discs have a match of IoU 3/4 and a false alarm: D = 1 + 1/2, and a loss of (1/4 + 1/2) / D, of
    1/6 by the outline and 1/3 by the class. The box is missed: D = 1/2 and a loss of 1. The mean
    over three classes is a PQ of 50, with 100/3 (1/3 + 1) lost by the class and 100/3 · 1/6 by the
    outline.

    Perfect clusters lose nothing. The other ones lose 1/4 of the disc, which matches, and 1/5 of
    the box, which is of wrong class.
    """
    true, prediction = drawn("ddddbbbbssss"), drawn("ddd.DDDDssss")
    truth = panoptic_truth(*true)
    best, reached, losses = shares(prediction, true, truth)
    assert (best, reached) == pytest.approx((100, 50))
    expected = dict.fromkeys(KINDS, 0.0) | {WRONG_CLASS: 400 / 9, INEXACT: 50 / 9}
    assert losses == pytest.approx(expected)
    best, reached, losses = shares(prediction, drawn("dddbbbbbssss"), truth)
    assert (best, reached) == pytest.approx((85, 50))
    expected |= {WRONG_CLASS: 400 / 9 - 20 / 3, INEXACT: 50 / 9 - 25 / 3}
    assert losses == pytest.approx(expected)


def test_losses_of_images_are_those_of_the_whole_set():
    """Two missed discs of three: D = 1 + 2/2, and each image with one loses 25 of 100."""
    true, missed = drawn("ddd..."), drawn("......")
    truth = panoptic_truth(*true)
    given = [true, missed, missed]
    images = [panoptic_faults(one, true, truth) for one in given]
    counts = [panoptic_counts(*one, truth) for one in given]
    oracle = [panoptic_counts(*true, truth)] * 3
    losses = [image[MISSED] for image in fault_losses(images, counts, oracle, CATEGORIES)]
    assert losses == pytest.approx([0, 25, 25])
    assert fault_losses(images, counts, oracle, {BOX})[1][MISSED] == 0  # of boxes


def pixels(ids, segments):
    return {(y, x) for y, x in zip(*np.nonzero(np.isin(ids, list(segments))), strict=True)}


def iou(first, second):
    return len(first & second) / len(first | second) if first | second else 0


def slow_kinds(ids, categories, truth, candidates):
    """Kinds of missed and false segments by sets of pixels, from their definition."""
    void = pixels(truth.segments, {0})
    true = {i: pixels(truth.segments, {i}) for i in truth.categories}
    found, likely = (
        {i: pixels(array, {i}) - void for i in names if pixels(array, {i})}
        for array, names in ((ids, categories), candidates)
    )

    def matched(segments, names):
        return {
            (i, j)
            for i in true
            for j in segments
            if truth.categories[i] == names[j] and iou(true[i], segments[j]) > 0.5
        }

    hits, known = matched(found, categories), {i for i, _ in matched(likely, candidates[1])}
    matching = {i for i, _ in hits}, {j for _, j in hits}

    def is_wrong(i, j):
        return truth.categories[i] != categories[j] and iou(true[i], found[j]) > 0.5

    def is_near(i, j):
        free = i not in matching[0] and j not in matching[1]
        return free and truth.categories[i] == categories[j] and iou(true[i], found[j]) >= 0.1

    divided = [set(), set()]
    for side, wholes, parts, names in (
        (0, true, found, (truth.categories, categories)),
        (1, found, true, (categories, truth.categories)),
    ):
        for whole, area in wholes.items():
            inside = [
                part
                for part, own in parts.items()
                if names[1][part] == names[0][whole] and 2 * len(own & area) > len(own)
            ]
            union = set().union(*(parts[part] for part in inside))
            if len(inside) > 1 and iou(union, area) > 0.5:
                divided[side].add(whole)
                divided[1 - side].update(inside)

    missed, false = {}, {}
    for i in true.keys() - matching[0]:
        wrong, near = (any(test(i, j) for j in found) for test in (is_wrong, is_near))
        rest = INEXACT if near else MISSED
        rest = BELOW_THRESHOLD if i in known else rest
        missed[i] = WRONG_CLASS if wrong else SPLIT if i in divided[0] else rest
    for j in found.keys() - matching[1]:
        wrong, near = (any(test(i, j) for i in true) for test in (is_wrong, is_near))
        rest = INEXACT if near else BACKGROUND
        false[j] = WRONG_CLASS if wrong else SPLIT if j in divided[1] else rest
    return missed, false


IDS = st.sampled_from([0, 1, 2, 3, 4, 2**24 - 1])  # 0 is void


@st.composite
def drawings(draw, size):
    """Truth, prediction, candidates and clusters of an image, of few segments."""
    truth, ids, likely, clusters = (draw(arrays(np.int64, size, elements=IDS)) for _ in range(4))
    if draw(st.booleans()):  # a prediction like the truth, with many matches
        ids = np.where(ids > 2, truth, ids)
    category = st.sampled_from(sorted(CATEGORIES))

    def categories(array):
        return {i: draw(category) for i in np.unique(array).tolist() if i}

    named = categories(truth)
    crowds = {i for i in named if draw(st.sampled_from([False, False, True]))}
    guess = categories(ids)
    guess |= {i: named[i] for i in guess if i in named and draw(st.booleans())}
    candidates = likely, categories(likely)
    return panoptic_truth(truth, named, crowds), (ids, guess), candidates, clusters


def oracle_of(truth, clusters):
    unlabeled = ~np.isin(truth.segments, list(truth.infos))
    return majority_map(clusters, truth.segments, ignore=unlabeled, void=0), truth.categories


@given(SIZES.flatmap(drawings))
def test_kinds_are_those_of_sets(image):
    truth, prediction, candidates, clusters = image
    faults = panoptic_faults(prediction, oracle_of(truth, clusters), truth, candidates)
    missed, false = slow_kinds(*prediction, truth, candidates)
    assert {one.true: one.kind for one in faults if one.found is None} == missed
    mine = {one.found: one.kind for one in faults if one.true is None}
    assert mine.items() <= false.items()  # others are mostly void or crowd
    counts = panoptic_counts(*prediction, truth).pq_per_cat.values()
    assert len(mine) == sum(one.fp for one in counts)
    hits = [one for one in faults if one.true is not None and one.found is not None]
    assert len(hits) == sum(one.tp for one in counts) and {one.kind for one in hits} <= {INEXACT}


@given(st.lists(SIZES.flatmap(drawings), min_size=1, max_size=3), st.booleans())
def test_losses_add_up_to_the_share_of_classification(given_images, told):
    """For PQ of all classes, of things and of stuff, if there are true segments at all."""
    images, counts = [], {"prediction": [], "oracle": []}
    for truth, prediction, candidates, clusters in given_images:
        oracle = oracle_of(truth, clusters)
        likely = candidates if told else None
        images.append(panoptic_faults(prediction, oracle, truth, likely))
        counts["prediction"].append(panoptic_counts(*prediction, truth))
        counts["oracle"].append(panoptic_counts(*oracle, truth))
    reached = {stage: pq_groups(total_counts(c), CATEGORIES) for stage, c in counts.items()}
    groups = dict(All=CATEGORIES, Things={DISC, BOX}, Stuff={SKY})
    for group, categories in groups.items():
        losses = fault_losses(images, counts["prediction"], counts["oracle"], categories)
        total = math.fsum(chain.from_iterable(image.values() for image in losses))
        assert math.isfinite(total)
        if reached["oracle"][group]["n"]:
            share = reached["oracle"][group]["pq"] - reached["prediction"][group]["pq"]
            assert total == pytest.approx(100 * share, abs=1e-9)
