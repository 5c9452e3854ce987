"""Ground truth of label maps, of 8 and of 16 bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from hcformer_mm.datasets.ground_truth import open_ground_truth
from hcformer_mm.structures.panoptic import Classes
from tests.helpers.ground_truth import CLASSES, write_map
from tests.helpers.label_maps import SIZES


def test_label_maps(tmp_path: Path) -> None:
    write_map(tmp_path / "maps" / "a.png", [[0, 2, 255]])
    truth = open_ground_truth(tmp_path / "maps", CLASSES)
    panoptic = truth.read("elsewhere/a.jpg", (1, 3))
    assert panoptic.segments.tolist() == [[0, 2, 255]]
    assert panoptic.categories == {0: 0, 2: 2}
    assert panoptic.ignore.tolist() == [[False, False, True]]
    # A palette does not matter: pixels are indices.
    image = Image.fromarray(np.array([[0, 2, 1]], np.uint8), mode="P")
    image.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1])
    image.save(tmp_path / "maps" / "a.png")
    assert truth.read("a.jpg", (1, 3)).segments.tolist() == [[0, 2, 1]]


def test_label_maps_of_cityscapes_are_found(tmp_path: Path) -> None:
    write_map(tmp_path / "ulm" / "ulm_000000_000019_gtFine_labelTrainIds.png", [[1, 2]])
    write_map(tmp_path / "ulm" / "ulm_000000_000019_gtFine_color.png", [[0, 0]])
    truth = open_ground_truth(tmp_path, CLASSES)
    image = "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"
    assert truth.read(image, (1, 2)).segments.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="no ground truth of ulm_000000_000020_left"):
        truth.check(["ulm_000000_000020_leftImg8bit.png"])


def test_unusable_label_maps(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label maps as PNG files in .*, found none"):
        open_ground_truth(tmp_path, CLASSES)
    write_map(tmp_path / "a.png", [[0, 3]])
    Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(tmp_path / "colored.png")
    truth = open_ground_truth(tmp_path, CLASSES)
    for image, size, message in (
        ("a.jpg", (1, 2), r"labels below 3, .* in .*a\.png, got 3"),
        ("a.jpg", (2, 2), r"a\.png of .*, \(2, 2\), got \(1, 2\)"),
        ("b.jpg", (2, 2), r"no ground truth of b.jpg$"),
        ("colored.jpg", (1, 2), r"per pixel in .*colored\.png, got 3 ch"),
    ):
        with pytest.raises(ValueError, match=message):
            truth.read(image, size)


@given(
    SIZES.flatmap(lambda size: arrays(np.uint8, size) | arrays(np.uint16, size)),
    st.sampled_from([1, 3, 254, 255, 256, 300, 65535]),
    st.booleans(),
)
def test_label_maps_of_any_values(tmp_path: Path, pixels: Any, number: int, reduced: bool) -> None:
    """Every pixel is void or has its class, or a sentence names the file."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    classes = Classes([str(i) for i in range(number)])
    truth = open_ground_truth(tmp_path, classes, reduce_zero_label=reduced)
    values = pixels.astype(int)
    void = (values == 65535) | ((values == 255) & (number <= 255)) | ((values == 0) & reduced)
    expected = values - reduced
    ambiguous = pixels.dtype == np.uint8 and number > 255 and (pixels == 255).any()
    if ambiguous or (expected[~void] >= number).any():
        with pytest.raises(ValueError, match=r"expected .*a\.png"):
            truth.read("a.jpg", pixels.shape)
        return
    found = truth.read("a.jpg", pixels.shape)
    assert np.array_equal(found.ignore, void)
    label = 255 if number <= 255 else 65535
    assert np.array_equal(found.segments, np.where(void, label, expected))
    assert found.categories == {int(i): int(i) for i in np.unique(expected[~void])}
