import pytest
import torch
from mmdet.models.layers import SinePositionalEncoding

from hcformer_mm.models.layers.positional_encoding import GridEncoding
from tests.helpers.devices import at_least, on_each_device


@on_each_device
@pytest.mark.parametrize("size", [(25, 42), (1, 1), (7, 1), (1, 6), (3, 3)])
@pytest.mark.parametrize(
    "options",
    [
        dict(normalize=True),
        dict(normalize=False),
        dict(normalize=True, offset=-0.5, scale=3.0, temperature=20, eps=0.1),
        dict(normalize=False, offset=2.0),
    ],
    ids=str,
)
def test_equals_mmdets_without_padding(options, size):
    expected = SinePositionalEncoding(6, **options)(torch.zeros(2, *size))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        encoded = GridEncoding(6, **options)(torch.ones(2, 5, *size, dtype=dtype))
        assert encoded.shape == (1, size[0] * size[1], 12)
        torch.testing.assert_close(
            encoded, expected[:1].flatten(2).transpose(1, 2), rtol=0, atol=at_least(2e-6)
        )


def test_is_of_float32_whatever_the_default():
    expected = GridEncoding(6)(torch.ones(1, 1, 3, 4))
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        encoded = GridEncoding(6)(torch.ones(1, 1, 3, 4))
    finally:
        torch.set_default_dtype(default)
    assert encoded.dtype == torch.float32
    assert torch.equal(encoded, expected)


def test_has_no_parameters():
    assert not GridEncoding(6, normalize=True).state_dict()
