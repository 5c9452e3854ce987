"""The sentence of refused input survives the way to the tool."""

import pytest
from torch.utils.data import DataLoader, Dataset

from hcformer_mm.utils.errors import InputError

SENTENCE = "expected a class: 300, got a/map.png"


class Refusing(Dataset):
    """A dataset without a readable item."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError(SENTENCE)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_message_is_the_sentence_alone(num_workers):
    with pytest.raises(InputError) as raised:
        next(iter(DataLoader(Refusing(), num_workers=num_workers)))
    assert str(raised.value) == SENTENCE
