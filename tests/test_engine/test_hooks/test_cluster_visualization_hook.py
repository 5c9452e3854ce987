"""Sheets of clusters during validation and test, through the real runner and its backends."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmcv
import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS, VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend
from torch import nn

from hcformer_mm.apis.cluster_inferencer import ClusterInferencer
from hcformer_mm.datasets.ground_truth import open_ground_truth
from hcformer_mm.engine.hooks import cluster_visualization_hook
from hcformer_mm.structures.data_samples import predicted_segments
from hcformer_mm.structures.image_clusters import ImageClusters
from hcformer_mm.utils.errors import InputError
from hcformer_mm.visualization import cluster_sheet
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG
from tests.helpers.tools import INSTANCE_CONFIG, quick_config


@VISBACKENDS.register_module()
class RecordingVisBackend(BaseVisBackend):
    """Keeps the images that it is given."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir)
        self.images: dict[tuple[str, int], np.ndarray] = {}

    @property
    def experiment(self) -> "RecordingVisBackend":
        return self

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **_: Any) -> None:
        assert (name, step) not in self.images
        self.images[name, step] = image

    def ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    _init_env = add_config = add_graph = add_scalar = add_scalars = ignore


@pytest.fixture
def build(shapes: Path, tmp_path: Path):
    """The runner of a config with the hook, and its recording backend."""

    def runner(
        path: str = SHAPES_CONFIG,
        *,
        batch_size: int = 1,
        backends: Any = (),
        train_cfg: dict[str, int] | None = None,
        **options: Any,
    ) -> tuple[Runner, RecordingVisBackend]:
        hook = dict(type="hcformer_mm.ClusterVisualizationHook", side=96, **options)
        config = quick_config(shapes, tmp_path / "work_dir", path, hooks=[hook])
        config.val_dataloader.batch_size = config.test_dataloader.batch_size = batch_size
        config.train_cfg.update(train_cfg or dict(val_interval=1))
        config.visualizer.vis_backends = [dict(type="RecordingVisBackend"), *backends]
        if "interval" not in options:  # the first batch alone is drawn
            config.val_dataloader.dataset.indices = 1
        built = Runner.from_cfg(config)
        return built, built.visualizer.get_backend("RecordingVisBackend")

    return runner


def test_every_second_image_in_every_validation(build) -> None:
    runner, backend = build(interval=2)
    runner.train()
    stems = ("000000", "000002")
    assert list(backend.images) == [
        (f"val_clusters_{stem}", step) for step in (1, 2) for stem in stems
    ]
    first, later = (backend.images["val_clusters_000000", step] for step in (1, 2))
    assert first.dtype == np.uint8 and first.shape == later.shape
    assert not np.array_equal(first, later), "the model has learned meanwhile"
    # The recording left nothing behind.
    assert not runner.model._forward_hooks and not runner.model.backbone._forward_hooks


def test_sheets_are_those_of_the_inferencer(build, shapes: Path, tmp_path: Path) -> None:
    """The inferencer draws the same from the same weights, images and ground truth."""
    gt = shapes / "annotations/panoptic_val.json"
    runner, backend = build(interval=1, gt=str(gt))
    torch.save({"state_dict": runner.model.state_dict()}, tmp_path / "weights.pth")
    runner.test()
    inferencer = ClusterInferencer(runner.cfg, tmp_path / "weights.pth", device="cpu")
    truth = open_ground_truth(gt, inferencer.classes)
    images = inferencer(shapes / "val")
    assert len(images) == len(backend.images) == 3
    for image in images:
        expected = cluster_sheet(
            image.image,
            image.labels(),
            classes=inferencer.classes,
            prediction=predicted_segments(image.prediction, inferencer.classes),
            ground_truth=truth.read(image.name, image.image.shape[:2]),
            side=96,
        )
        assert np.array_equal(backend.images[f"test_clusters_{image.name}", 0], expected)


def test_mmengine_backends_get_them(build, tmp_path: Path) -> None:
    runner, backend = build(interval=1, backends=[dict(type="LocalVisBackend")])
    runner.val()
    files = sorted((tmp_path / "work_dir").glob("*/vis_data/vis_image/*.png"))
    assert [file.name for file in files] == [f"val_clusters_00000{i}_0.png" for i in range(3)]
    for file, image in zip(files, backend.images.values(), strict=True):
        assert np.array_equal(mmcv.imread(file, channel_order="rgb"), image)


def test_tensorboard_gets_them(build, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runner, _ = build(max_images=1, backends=[dict(type="TensorboardVisBackend")])
    runner.train()
    runner.visualizer.close()
    (folder,) = {file.parent for file in (tmp_path / "work_dir").rglob("events.out*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [image.step for image in events.Images("val_clusters_000000")] == [1, 2]


def test_first_image_is_drawn_during_training(build) -> None:
    """It does not change the training, and shows the weights of its iteration."""
    weights, sheets = [], []
    for iterations in ((), (1, 2)):
        schedule = dict(max_iters=3, val_interval=3)
        runner, backend = build(max_images=1, train_iters=iterations, train_cfg=schedule)
        runner.train()
        assert not runner.model._forward_hooks and not runner.model.backbone._forward_hooks
        weights.append(runner.model.state_dict())
        sheets.append(backend.images)
    assert list(sheets[0]) == [("val_clusters_000000", 3)]
    assert list(sheets[1]) == [("val_clusters_000000", step) for step in (1, 2, 3)]
    first, second, last = sheets[1].values()
    assert first.shape == second.shape == last.shape
    assert not np.array_equal(first, second) and not np.array_equal(second, last)
    assert np.array_equal(last, sheets[0]["val_clusters_000000", 3])
    assert weights[0].keys() == weights[1].keys()
    assert all(map(torch.equal, weights[0].values(), weights[1].values()))


def test_training_without_a_validation_set(build) -> None:
    runner, _ = build(train_iters=(1,))
    runner._val_loop = runner._val_dataloader = runner._val_evaluator = None
    # tools/train.py prints it without a traceback.
    with pytest.raises(InputError, match="expected a validation set for train_iters"):
        runner.train()


def test_number_of_images_is_limited(build) -> None:
    runner, backend = build(batch_size=2, interval=1, max_images=1)
    runner.train()
    assert list(backend.images) == [("val_clusters_000000", 1), ("val_clusters_000000", 2)]
    runner, backend = build(batch_size=2, interval=1, max_images=5)
    runner.val()
    assert len(backend.images) == 3


def test_ground_truth_of_the_samples(build, shapes: Path) -> None:
    """The pipelines load it for panoptic and semantic segmentation, not for instances."""
    heights = {}
    for config in (SHAPES_CONFIG, SEMANTIC_CONFIG, INSTANCE_CONFIG):
        runner, backend = build(config, max_images=1)
        runner.val()
        heights[config] = backend.images["val_clusters_000000", 0].shape[0]
    assert heights[SHAPES_CONFIG] == heights[SEMANTIC_CONFIG] > heights[INSTANCE_CONFIG]
    gt = str(shapes / "annotations/instances_val.json")
    runner, backend = build(INSTANCE_CONFIG, max_images=1, gt=gt)
    runner.val()
    assert backend.images["val_clusters_000000", 0].shape[0] == heights[SHAPES_CONFIG]


def test_layout_and_connected_parts(build) -> None:
    images = []
    for options in (dict(), dict(connected=True), dict(layout="figure-5")):
        runner, backend = build(max_images=1, **options)
        runner.val()
        images.append(backend.images["val_clusters_000000", 0])
    plain, connected, figure = images
    assert plain.shape == connected.shape and not np.array_equal(plain, connected)
    assert figure.shape[0] < 0.6 * plain.shape[0]


def test_only_batches_that_are_drawn_are_recorded(build, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    class Recorder(cluster_visualization_hook.ClusterRecorder):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            recorded.append(model)

    monkeypatch.setattr(cluster_visualization_hook, "ClusterRecorder", Recorder)
    runner, _ = build(interval=2)
    runner.val()
    assert len(recorded) == 1 + 2  # one checks that the model clusters
    monkeypatch.setattr(cluster_visualization_hook, "is_main_process", lambda: False)
    runner, backend = build(interval=1)
    runner.val()
    assert len(recorded) == 4
    assert not backend.images


def test_clusters_are_taken_from_their_device(build, monkeypatch: pytest.MonkeyPatch) -> None:
    """``cpu()`` of a data sample would leave them on the device."""
    moved = []

    def to(clusters: ImageClusters, device: str) -> ImageClusters:
        moved.append(device)
        return clusters

    monkeypatch.setattr(ImageClusters, "to", to)
    runner, _ = build(max_images=1)
    runner.val()
    assert moved == ["cpu"]


def test_beside_the_hook_that_records_for_evaluators(build) -> None:
    runner, backend = build(interval=1)
    runner.register_hook(dict(type="hcformer_mm.ClusterRecordHook"))
    runner.val()
    assert len(backend.images) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(interval=0), "interval of at least 1, got 0"),
        (dict(max_images=0), "max_images of at least 1, got 0"),
        (dict(score_thr=float("nan")), "score_thr from 0 to 1, got nan"),
        (dict(side=0), "side of at least 1, got 0"),
        (dict(layout="wide"), "layout among full, .*, got 'wide'"),
        (dict(font="no.ttf"), r"expected a font that scales, got no\.ttf"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HOOKS.build(dict(type="hcformer_mm.ClusterVisualizationHook", **options))


def test_ground_truth_is_opened_before_training(build, tmp_path: Path) -> None:
    (tmp_path / "gt.json").write_text("{")
    for gt, message in (("gt.json", r"gt\.json to be a COCO JSON"), ("no", "no such ground truth")):
        runner, _ = build(gt=str(tmp_path / gt))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            runner.train()
        assert runner.iter == 0


def test_images_of_one_name_have_sheets_of_their_own() -> None:
    hook = HOOKS.build(dict(type="hcformer_mm.ClusterVisualizationHook"))
    for _ in range(2):  # validations
        images = ("a/v/1.jpg", "2.jpg", "b/v/1.jpg", "c/v/1.jpg", "v_1.jpg", "c/v/1.jpg")
        names = [hook._name(f"/val/{image}") for image in images]
        assert names == ["1", "2", "v_1", "c_v_1", "val_v_1", "c_v_1"]


def test_models_without_a_clustering_are_refused_before_they_run() -> None:
    hook = HOOKS.build(dict(type="hcformer_mm.ClusterVisualizationHook"))
    with pytest.raises(TypeError, match="expected a detector or segmentor with a backbone"):
        hook.before_run(SimpleNamespace(model=nn.Linear(1, 1)))
