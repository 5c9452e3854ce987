"""What is timed side by side computes the same."""

from pathlib import Path

import pytest
import torch

from benchmarks.operators import OPERATORS, load_listings, operator_cases

REFERENCE = Path(__file__).parents[1] / "helpers/reference.py"
SHAPE = (64, 96)
LAYOUTS = ("contiguous", "channels-last")
NUMBERS = dict(listings=load_listings(REFERENCE), channels=(3,), queries=6)


def outputs(operator, one, **options):
    cases = list(operator_cases(operator, SHAPE, passes=[one], **NUMBERS, **options))
    return [(c.setting, {name: call() for name, call in c.calls.items()}) for c in cases]


def test_clustering():
    # Listing 1 differs where the parent lies at the border of the coarse map.
    inside = (..., slice(2, -2), slice(2, -2))
    found = outputs("clustering", "forward", strides=[4, 8])
    assert [setting["stride"] for setting, _ in found] == [4, 8]
    for setting, results in found:
        listing, *others = results.values()
        size = [side // setting["stride"] for side in SHAPE]
        assert listing.shape == (1, 9, *size)
        assert not listing.requires_grad
        for other in others:
            torch.testing.assert_close(other[inside], listing[inside], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("one", ["forward", "forward+backward"])
def test_decoding(one):
    ((_, results),) = outputs("decoding", one, strides=[16])
    names = {f"{n}, {layout}" for n in ("listing", "ours") for layout in LAYOUTS}
    assert set(results) == names
    for layout in LAYOUTS:
        # Random gradients come in the memory of the output, and are others in other memory.
        if one == "forward+backward":
            assert [g.shape for g in results[f"ours, {layout}"]] == [(1, 3, 2, 3), (1, 9, 4, 6)]
        else:
            ours, listing = results[f"ours, {layout}"], results[f"listing, {layout}"]
            torch.testing.assert_close(ours, listing)


def test_deformable_convolutions():
    ((_, results),) = outputs("deform", "forward")
    expected = results["mmcv, contiguous"]
    assert [y.shape[1] for y in expected] == [128, 512, 256, 1024, 512, 2048]
    for name in ("torchvision, contiguous", "ours, contiguous", "ours, channels-last"):
        torch.testing.assert_close(results[name], expected, rtol=1e-3, atol=1e-3)
    plain = results["plain convolutions, contiguous"]
    assert [y.shape for y in plain] == [y.shape for y in expected]
    assert not torch.allclose(plain[0], expected[0], rtol=1e-2, atol=1e-2)


def test_gradients_of_deformable_convolutions():
    ((_, results),) = outputs("deform", "forward+backward")
    # Of a map, offsets and a modulation per layer, and of weight and bias.
    assert [len(gradients) for gradients in results.values()] == [6 * 5] * 6
    for name, gradients in results.items():
        plain = name.startswith("plain")
        assert [g is None for g in gradients] == [False, plain, plain] * 6 + [False] * 12


def test_post_processing():
    ((setting, results),) = outputs("post-processing", "forward+backward")
    assert (setting["pass"], setting["channels"]) == ("forward", 6)
    segments = results["mmdet"].sem_seg
    assert torch.equal(results["ours"].sem_seg, segments)
    segments = segments[segments != 133]  # without void
    assert len(segments.unique()) == 6  # every query has won its place


def test_compiled():
    (case,) = operator_cases(
        "decoding", (32, 32), passes=["forward"], strides=[8], compiled=True, **NUMBERS
    )
    torch.testing.assert_close(
        case.calls["ours compiled, channels-last"](), case.calls["ours, channels-last"]()
    )


def test_seeds():
    first, again, other = (
        next(iter(operator_cases("decoding", SHAPE, seed=seed, **NUMBERS))).calls[
            "ours, contiguous"
        ]()
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("operator", OPERATORS)
def test_sizes_are_whole_at_every_stride(operator):
    with pytest.raises(ValueError, match=r"expected a shape \(H, W\) of multiples of 32, got"):
        next(iter(operator_cases(operator, (64, 90), **NUMBERS)))


def test_listings_come_with_a_clone(tmp_path):
    with pytest.raises(ValueError, match=r"listings of the paper in .*reference.py, found no such"):
        load_listings(tmp_path / "reference.py")
