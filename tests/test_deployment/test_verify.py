"""Comparison of an exported model with the eager one, on functions in their place."""

import pytest
import torch

from hcformer_mm.deployment.verify import (
    IMAGES,
    TOLERANCE,
    TRIALS,
    Comparison,
    agrees,
    as_text,
    compare,
    time_both,
)

SHAPE = (8, 6)


def noise(shape, batch_size=1, seed=0):
    return torch.randn(batch_size, 3, *shape, generator=torch.Generator().manual_seed(seed))


def model(function):
    """Give a function the inputs of an ExportableModel."""
    function.example = lambda *args: [noise(*args)]
    return function


@model
def smooth(image):
    return {"mean": image.mean(dim=(2, 3)), "image": 100 * image}


def scaled(factor, name="image"):
    """Multiply one output of the eager model by a wrong factor."""

    def exported(image):
        outputs = smooth(image)
        return {**outputs, name: factor * outputs[name]}

    return exported


def test_equal():
    comparisons = compare(scaled(1 + TOLERANCE / 2), smooth, SHAPE)
    assert [c.seed for c in comparisons] == list(range(IMAGES))
    assert agrees(comparisons)
    image = noise(SHAPE, seed=1)
    assert comparisons[1].scales["image"] == pytest.approx(100 * image.abs().max().item())
    assert comparisons[1].ratio("image") == pytest.approx(TOLERANCE / 2, rel=1e-3)
    assert comparisons[1].ratio("mean") == 0
    assert all(c.sensitivity == 0 for c in comparisons)


@pytest.mark.parametrize("name", ["mean", "image"])
def test_different(name):
    """Differences are relative to the scale of the output, not of the image."""
    comparisons = compare(scaled(1 + 2 * TOLERANCE, name), smooth, SHAPE)
    assert not agrees(comparisons)
    assert all(c.conclusive and not c.equal for c in comparisons)
    # A smooth model changes as little as the image.
    assert all(0 < c.sensitivity < 1e-4 for c in comparisons)


def test_not_a_number_differs():
    assert not agrees(compare(scaled(float("nan")), smooth, SHAPE))


@model
def jumping(image):
    """Return a step between images that differ by rounding, and a constant for the first image."""
    step = (image.double() * 1e7).sum().round() % 2
    steady = noise(SHAPE, seed=0)[0, 0, 0, 0]
    known = (image[0, 0, 0, 0] - steady).abs() < 1e-3
    return {"step": torch.where(known, 0.5, step)[None]}


def test_images_at_the_threshold_are_inconclusive():
    """One conclusive image is needed, and an error on it counts."""
    flipped = {"calls": 0}

    def exported(image):
        flipped["calls"] += 1
        outputs = jumping(image)
        return outputs if flipped["calls"] == 1 else {"step": 1 - outputs["step"]}

    comparisons = compare(exported, jumping, SHAPE)
    assert len(comparisons) == TRIALS
    assert [c.conclusive for c in comparisons] == [True] + [False] * (TRIALS - 1)
    assert agrees(comparisons)
    assert not agrees(comparisons[1:])
    text = as_text(comparisons, time_both(exported, jumping, SHAPE, repeats=1))
    assert f"8x6: 1 of 1 images equal to {TOLERANCE:g}; {TRIALS - 1} more are inconclusive" in text


def test_maps_of_classes_differ_by_their_share_of_pixels():
    """Instances may come in another order, and sorted scores are compared."""
    scores = torch.tensor([[0.5, 0.25, 0.75]])

    @model
    def results(image):
        labels = torch.arange(3)[None]
        return dict(panoptic=torch.zeros(1, 50, 100).int(), scores=scores, labels=labels)

    def exported(image):
        outputs = results(image)
        outputs["panoptic"][0, 0, :wrong] = 1000
        return outputs | dict(scores=scores.flip(-1), labels=outputs["labels"].flip(-1))

    for wrong, equal in ((4, True), (6, False)):
        comparisons = compare(exported, results, SHAPE)
        assert list(comparisons[0].differences) == ["panoptic", "scores"]
        assert comparisons[0].ratio("panoptic") == pytest.approx(wrong / 5000)
        assert comparisons[0].ratio("scores") == 0
        assert agrees(comparisons) == equal


def test_outputs_must_fit():
    with pytest.raises(ValueError, match=r"expected outputs .*'mean': \(1, 3\).* got \{'mean'"):
        compare(lambda image: {"mean": smooth(image)["mean"]}, smooth, SHAPE)


def test_text_has_the_worst_image():
    comparisons = [
        Comparison(SHAPE, seed, {"masks": difference}, {"masks": 2.0})
        for seed, difference in enumerate((1e-4, 6e-4, 2e-4))
    ]
    times = time_both(smooth, smooth, SHAPE, repeats=2)
    text = as_text(comparisons, times)
    row = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert row == ["8x6", "masks", "6.0e-04", "2", "3.0e-04"]
    assert "3 of 3 images equal to 0.001" in text
    assert f"{times.ratio:.2f} times as long" in text
