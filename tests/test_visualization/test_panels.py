"""Sheets of panels."""

import numpy as np
import pytest

from hcformer_mm.visualization import Panel, sheet


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40, 80, 3), dtype=np.uint8) for _ in range(3)]


def find(sheet_: np.ndarray, image: np.ndarray) -> tuple[int, int]:
    """The one place (y, x) of a panel on a sheet."""
    height, width = image.shape[:2]
    starts = np.argwhere((sheet_[: -height + 1, : -width + 1] == image[0, 0]).all(-1))
    places = [
        (y, x) for y, x in starts if np.array_equal(sheet_[y : y + height, x : x + width], image)
    ]
    assert len(places) == 1
    return places[0]


def test_sheet_places_panels(images: list[np.ndarray]) -> None:
    panels = [Panel(image, f"Title {i}", "note") for i, image in enumerate(images)]
    result = sheet([[panels[0], None], [panels[1], panels[2]]])
    (top, left), (below, left_again), (same_row, right) = (find(result, one) for one in images)
    assert left == left_again
    assert below == same_row > top + 40
    assert right > left + 80
    # Titles stand above the panels; the empty place is white.
    assert (result[:top, left : left + 80] < 128).any()
    assert (result[: top + 40, right:] == 255).all()


def test_scores_stand_in_the_margin_under_their_column(images: list[np.ndarray]) -> None:
    panels = [Panel(image, "") for image in images]
    plain = sheet([panels])
    result = sheet([panels], margin=[[], [("error", "12 %"), ("other", "3 %")], []])
    assert np.array_equal(result[:, : plain.shape[1]][: plain.shape[0]][:40], plain[:40])
    y, x = find(result, images[1])
    margin = result[y + 40 :] < 200
    columns = np.flatnonzero(margin.any((0, 2)))
    assert x <= columns.min() < columns.max() < x + 80
    assert margin[:, x : x + 40].any() and margin[:, x + 40 : x + 80].any()


def test_a_note_without_room_is_left_out(images: list[np.ndarray]) -> None:
    short = sheet([[Panel(images[0], "Title")]])
    assert np.array_equal(sheet([[Panel(images[0], "Title", "a note that is too long")]]), short)
    assert not np.array_equal(sheet([[Panel(images[0], "Title", "ok")]]), short)


def test_sheet_needs_panels_of_one_size(images: list[np.ndarray]) -> None:
    panels = [Panel(images[0][:8, :9], "a"), Panel(images[0][:9, :9], "b")]
    with pytest.raises(ValueError, match=r"expected panels of one size, got \[\(8, 9\), \(9, 9\)"):
        sheet([panels])
    with pytest.raises(ValueError, match="no panel"):
        sheet([[None]])
