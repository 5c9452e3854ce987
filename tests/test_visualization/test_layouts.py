"""Sheets of one image: places of the panels, and scores of the levels."""

from typing import Any

import numpy as np
import pytest
import torch

from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.visualization import LAYOUTS, cluster_sheet, layouts
from hcformer_mm.visualization.clusters import ERROR_COLOR
from tests.helpers.reference import undersegmentation_error as slow_undersegmentation_error

CLASSES = Classes(["cup", "field"], frozenset(["cup"]), [(200, 40, 40), (40, 160, 60)])


class Scene:
    """An image of 40 × 60, half cup and half field; its clusters are squares."""

    def __init__(self) -> None:
        self.image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        segments = np.array([10, 7]).repeat(30)[None].repeat(40, 0)
        self.truth = Panoptic(segments, {10: 0, 7: 1})
        self.levels = [self.squares(4), self.squares(20)]

    @staticmethod
    def squares(side: int) -> np.ndarray:
        columns = -(-60 // side)
        return np.arange(40)[:, None] // side * columns + np.arange(60)[None] // side

    def sheet(self, **options: Any) -> np.ndarray:
        return cluster_sheet(self.image, self.levels, classes=CLASSES, **{"side": 120} | options)


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Titles, notes and images of a recorded sheet by row and column, and its margin."""
    kept: dict[str, Any] = {}

    def record(rows: Any, *, margin: Any) -> np.ndarray:
        for field in ("title", "note", "image"):
            kept[f"{field}s"] = [[panel and getattr(panel, field) for panel in r] for r in rows]
        kept["margin"] = margin
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(layouts, "sheet", record)
    return kept


E, R, M = "Undersegmentation error", "Random colors", "Mean colors"


@pytest.mark.parametrize(
    ("layout", "titles"),
    [
        (
            "full",
            [
                ["Image", "Level 1", "Level 2"],
                ["Prediction", E, E],
                ["Ground truth", R, R],
                ["Best labeling", M, M],
            ],
        ),
        ("figure-5", [["Level 1", "Level 2", "Ground truth"], [E, E, "Prediction"]]),
        ("figure-III", [["Level 1", "Level 2", "Prediction"], [E, E, "Ground truth"]]),
        (
            "figure-IV",
            [["Level 1", "Level 2", "Prediction"], ["Boundaries", "Boundaries", "Ground truth"]],
        ),
    ],
)
def test_layouts_are_those_of_the_paper(
    scene: Scene, panels: dict[str, Any], layout: str, titles: list[list[str]]
) -> None:
    scene.sheet(prediction=scene.truth, ground_truth=scene.truth, layout=layout)
    assert panels["titles"] == titles


def test_layouts_without_ground_truth_or_prediction(scene: Scene, panels: dict[str, Any]) -> None:
    scene.sheet(prediction=scene.truth)
    assert panels["titles"] == [
        ["Image", "Level 1", "Level 2"],
        ["Prediction", R, R],
        ["Hierarchy", M, M],
    ]
    assert panels["notes"][0] == ["60×40", "150 clusters", "6 clusters"]
    scene.sheet(layout="figure-5")
    assert panels["titles"] == [["Level 1", "Level 2"]]


def test_scores_of_the_margin(scene: Scene, panels: dict[str, Any]) -> None:
    scene.sheet(ground_truth=scene.truth)
    assert panels["margin"][0] == []
    for scores, labels in zip(panels["margin"][1:], scene.levels, strict=True):
        tensors = [torch.from_numpy(array) for array in (labels, scene.truth.segments)]
        error = slow_undersegmentation_error(*tensors, "neubert-protzel")
        assert dict(scores)["Underseg. error"] == f"{100 * error:.1f} %"
    # Of 60 columns, 2 of 4 in one cluster of the first level, and 10 of 20 in the second, are lost.
    assert [dict(s)["Achievable acc."] for s in panels["margin"][1:]] == ["96.7 %", "83.3 %"]
    # Boundaries of clusters cross the one between the columns 29 and 30 at two rows for each of
    # their 9 and 1 borders, of 40.
    assert [dict(s)["Boundary recall"] for s in panels["margin"][1:]] == ["45.0 %", "5.0 %"]
    scene.sheet()
    assert [[name for name, _ in scores] for scores in panels["margin"]] == [
        [],
        ["Explained variation"],
        ["Explained variation"],
    ]


def test_errors_are_red(scene: Scene, panels: dict[str, Any]) -> None:
    scene.sheet(ground_truth=scene.truth, side=60)
    red = [(image == ERROR_COLOR).all(-1) for image in panels["images"][1][1:]]
    # In a cluster of two halves, all pixels are errors.
    assert [np.flatnonzero(one.any(0)).tolist() for one in red] == [
        [28, 29, 30, 31],
        list(range(20, 40)),
    ]
    assert all(one[:, one.any(0)].all() for one in red)


def test_void_is_no_error(scene: Scene, panels: dict[str, Any]) -> None:
    segments = scene.truth.segments.copy()
    segments[:, 30:] = 255
    scene.sheet(ground_truth=Panoptic(segments, {10: 0}, segments == 255), side=60)
    assert not any((image == ERROR_COLOR).all(-1).any() for image in panels["images"][1][1:])
    assert dict(panels["margin"][1]) == {
        "Underseg. error": "0.0 %",
        "Achievable acc.": "100.0 %",
        "Boundary recall": "–",
    }


def test_best_labeling_gives_clusters_their_majority(scene: Scene, panels: dict[str, Any]) -> None:
    segments = np.where(np.arange(60)[None] < 25, 10, 7).repeat(40, 0)
    truth = Panoptic(segments, {10: 0, 7: 1})
    scene.sheet(ground_truth=truth, side=60)
    drawn, best = (panels["images"][row][0] for row in (1, 2))
    # The border moves from column 25 to the cluster's at column 20.
    borders = [np.flatnonzero((image[0] == 255).all(-1)).tolist() for image in (drawn, best)]
    assert borders == [[24, 25], [19, 20]]
    assert panels["notes"][2][0] == "of the clusters of level 2"


def test_the_sheet_itself(scene: Scene) -> None:
    small, large = (
        scene.sheet(prediction=scene.truth, ground_truth=scene.truth, side=side)
        for side in (60, 120)
    )
    assert small.dtype == np.uint8
    assert 3 * 60 < small.shape[1] < large.shape[1]
    assert large.shape[0] > 4 * 80
    without = scene.sheet(prediction=scene.truth, side=120)
    assert without.shape[1] == large.shape[1]
    assert without.shape[0] == large.shape[0] - 80 - round(1.8 * 11)  # a row less


def test_large_images_are_reduced() -> None:
    image = np.zeros((1000, 2000, 3), np.uint8)
    labels = np.arange(2000)[None].repeat(1000, 0) // 500
    result = cluster_sheet(image, [labels], classes=CLASSES, side=400)
    assert 2 * 400 < result.shape[1] < 3 * 400


def test_wrong_arguments(scene: Scene) -> None:
    with pytest.raises(ValueError, match="among full, figure-5, figure-III, figure-IV, got 'x'"):
        scene.sheet(layout="x")
    with pytest.raises(ValueError, match="at least one level"):
        cluster_sheet(scene.image, [], classes=CLASSES)
    wrong = Panoptic(scene.truth.segments[:-1], {})
    for options in (dict(prediction=wrong), dict(ground_truth=wrong)):
        with pytest.raises(ValueError, match=r"image's size \(40, 60\), got \(39, 60\)"):
            scene.sheet(**options)
    assert set(LAYOUTS) == {"full", "figure-5", "figure-III", "figure-IV"}
