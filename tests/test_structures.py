import pytest
import torch

from hcformer_mm.structures import ClusteredFeatures


def assignments(*sizes):
    return [torch.zeros(1, 9, *size) for size in sizes]


def test_is_a_tuple_with_a_clustering():
    maps = [torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 4, 4)]
    scales = [torch.ones(1)]
    features = ClusteredFeatures(maps, assignments=assignments((8, 8)), scales=scales)
    assert isinstance(features, tuple)
    assert len(features) == 2
    assert features[-1] is maps[1]
    assert features.scales == (scales[0],)
    assert [a.shape[-1] for a in features.assignments] == [8]


def test_without_clustering():
    features = ClusteredFeatures([torch.zeros(1, 4, 8, 8)], assignments=[], scales=[])
    assert features.assignments == features.scales == ()


def test_is_not_rebuilt_without_its_clustering():
    with pytest.raises(TypeError, match="assignments"):
        ClusteredFeatures([torch.zeros(1, 4, 8, 8)])


def test_replace_keeps_the_clustering():
    features = ClusteredFeatures(
        [torch.zeros(1)], assignments=assignments((5, 7), (3, 4)), scales=[torch.ones(1)] * 2
    )
    replaced = features.replace([torch.ones(2)])
    assert torch.equal(replaced[0], torch.ones(2))
    assert replaced.assignments is features.assignments
    assert replaced.scales is features.scales


def test_levels_out_of_order():
    with pytest.raises(ValueError, match=r"finest first.*\(2, 2\) under \(4, 4\), got \(8, 8\)"):
        ClusteredFeatures([], assignments=assignments((4, 4), (8, 8)), scales=[0, 0])


def test_scales_missing():
    with pytest.raises(ValueError, match="1 assignments and 0 scales"):
        ClusteredFeatures([], assignments=assignments((4, 4)), scales=[])
