from dataclasses import replace

import pytest
import torch
from torch.utils import _pytree as pytree

from hcformer_mm.structures.clustered_features import ClusteredFeatures
from hcformer_mm.structures.image_clusters import ImageClusters


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
    without = ClusteredFeatures(maps[:1], assignments=[], scales=[])
    assert without.assignments == without.scales == ()


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


def test_tensors_are_found_and_replaced():
    """As a pytree, with anything in place of the tensors, and as a dataclass, as in FSDP."""
    features = ClusteredFeatures(
        [torch.zeros(1)], assignments=assignments((5, 7), (3, 4)), scales=[torch.ones(1)] * 2
    )
    leaves, spec = pytree.tree_flatten([features])
    assert list(map(id, leaves)) == list(
        map(id, (*features, *features.assignments, *features.scales))
    )
    (numbered,) = pytree.tree_unflatten(range(5), spec)
    assert (numbered, numbered.feature_maps) == ((0,), (0,))
    assert (numbered.assignments, numbered.scales) == ((1, 2), (3, 4))
    assert type(numbered) is ClusteredFeatures
    replaced = replace(features, feature_maps=(torch.ones(2),))
    assert replaced[0] is replaced.feature_maps[0] and torch.equal(replaced[0], torch.ones(2))
    assert replaced.assignments == features.assignments


@pytest.mark.parametrize(
    ("sizes", "scales", "message"),
    [
        ([(4, 4), (8, 8)], [0, 0], r"finest first.*\(2, 2\) under \(4, 4\), got \(8, 8\)"),
        ([(4, 4)], [], "1 assignments and 0 scales"),
    ],
)
def test_levels_that_do_not_fit(sizes, scales, message):
    with pytest.raises(ValueError, match=message):
        ClusteredFeatures([], assignments=assignments(*sizes), scales=scales)


def clusters():
    """A 30×44 image, resized to 15×22 and padded to 16×24: two levels, finest at stride 4."""
    torch.manual_seed(0)
    return ImageClusters(
        assignments=(torch.rand(9, 4, 6), torch.rand(9, 2, 3)),
        stride=4,
        input_size=(15, 22),
        image_size=(30, 44),
    )


def test_labels_of_an_image_at_three_sizes():
    def enlarge(labels, factor):
        return labels.repeat_interleave(factor, 0).repeat_interleave(factor, 1)

    image = clusters()
    assert image.num_levels == 2
    sizes = (image.labels(size) for size in ("cells", "input", "image"))
    for cells, resized, original in zip(*sizes, strict=True):
        # The image shows every cell here, so clusters have equal numbers at all sizes.
        assert cells.shape == (4, 6)
        assert torch.equal(resized, enlarge(cells, 4)[:15, :22])
        assert torch.equal(original, enlarge(resized, 2))


def test_connected_labels_of_an_image_are_finer():
    image = clusters()
    for whole, parts in zip(image.labels(), image.labels(connected=True), strict=True):
        assert parts.max() >= whole.max()
        pairs = {*zip(parts.flatten().tolist(), whole.flatten().tolist(), strict=True)}
        assert len(pairs) == len(parts.unique())


def test_clusters_move():
    image = clusters()
    moved = image.to("meta")
    assert all(assignment.is_meta for assignment in moved.assignments)
    assert (moved.stride, moved.input_size) == (image.stride, image.input_size)
    assert torch.equal(image.cpu().assignments[0], image.assignments[0])
    assert image.to("cpu").assignments[0] is image.assignments[0]
    copied = image.to("cpu", copy=True).assignments[0]
    assert copied is not image.assignments[0] and torch.equal(copied, image.assignments[0])
