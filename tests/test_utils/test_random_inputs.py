"""Random images have the bands that a model takes."""

import pytest
from torch import nn

from hcformer_mm.utils.random_inputs import image_bands, random_image


@pytest.mark.parametrize(
    ("channels", "bands"), [([3, 8], 3), ([5, 8], 5), ([1], 1), ([8, 3], 3), ([], 3)]
)
def test_bands_of_the_stem(channels, bands):
    model = nn.Sequential(*(nn.Conv2d(number, 8, 1) for number in channels))
    assert image_bands(model) == bands
    assert random_image(model, (4, 6))["inputs"][0].shape == (bands, 4, 6)
