import pytest
import torch

from hcformer_mm.models.utils.label_maps import present_labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int32])
def test_labels_are_those_of_unique(dtype):
    generator = torch.Generator().manual_seed(0)
    for first, end in ((0, 5), (3, 9), (0, 1), (7, 7), (200, 256)):
        label_map = torch.randint(0, 12, (1, 6, 7), generator=generator).to(dtype)
        label_map[0, 0, :2] = 255
        labels = label_map.long().unique()
        expected = labels[(labels >= first) & (labels < end)]
        assert torch.equal(present_labels(label_map, first, end), expected)


def test_other_labels_are_none():
    label_map = torch.tensor([-(2**40), -3, -2, -1, 3, 4, 2**40])
    assert present_labels(label_map, 0, 3).tolist() == []
    assert present_labels(label_map, -2, 4).tolist() == [-2, -1, 3]
    assert present_labels(torch.zeros(1, 0, 4, dtype=torch.long), 0, 3).tolist() == []
