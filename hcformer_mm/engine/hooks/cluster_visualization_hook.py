"""ClusterVisualizationHook: sheets of clusters, prediction and ground truth during validation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import mmcv
from mmengine.dist import is_main_process
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ...datasets.ground_truth import GroundTruth, open_ground_truth
from ...models.utils.cluster_recorder import ClusterRecorder
from ...registry import HOOKS
from ...structures.arrays import RGBImage
from ...structures.data_samples import SCORE_THR, predicted_segments, true_segments
from ...structures.panoptic import Classes
from ...visualization import LAYOUTS, cluster_sheet


@HOOKS.register_module()
class ClusterVisualizationHook(Hook):
    """Draw what ``tools/visualize_clusters.py`` draws, while a model is validated or tested.

    The images of every ``interval``-th batch are drawn, the same ones in each validation, and
    handed to all backends of the runner's visualizer as ``val_clusters_<name of the image>`` or
    ``test_clusters_<name>``, at the step of the training iteration: a backend with a slider shows
    how the clusters of an image changed. Other batches run as they do without the hook. Of several
    processes the main one draws, images of its own batches.

    Args:
        interval: Of batches; the first one is drawn in any case.
        max_images: How many images are drawn in a validation at most; all of them by default.
        gt: Where the ground truth is read; see
            :func:`~hcformer_mm.datasets.ground_truth.open_ground_truth`. By default it is what the test
            pipeline loads with the image, if it loads any after the image was resized.
        layout: One of :data:`~hcformer_mm.visualization.layouts.LAYOUTS`.
        connected: Whether the connected parts of a cluster are clusters of their own.
        side: Longer side of a panel in pixels, about.
        score_thr: Instances below this score are not drawn.
        backend_args: How the images are read, as everywhere in MMEngine.

    Raises:
        ValueError: A number is below 1, or there is no such layout.
    """

    def __init__(
        self,
        *,
        interval: int = 50,
        max_images: int | None = None,
        gt: str | None = None,
        layout: str = "full",
        connected: bool = False,
        side: int = 640,
        score_thr: float = SCORE_THR,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        numbers = dict(interval=interval, max_images=max_images, side=side)
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise ValueError(f"expected {name} of 1 at least, got {number}")
        if layout not in LAYOUTS:
            raise ValueError(f"expected a layout out of {', '.join(LAYOUTS)}, got {layout!r}")
        self.interval = interval
        self.max_images = max_images
        self.gt = gt
        self.layout = layout
        self.connected = connected
        self.side = side
        self.score_thr = score_thr
        self.backend_args = backend_args
        self._recorder: ClusterRecorder | None = None
        self._truth: GroundTruth | None = None
        self._drawn = 0

    def before_run(self, runner: Runner) -> None:
        """Refuse a model without a clustering of its own before hours of training.

        Raises:
            TypeError: The model has no backbone, as one of test-time augmentation.
        """
        ClusterRecorder(runner.model).remove()

    def before_val(self, runner: Runner) -> None:
        """Begin to count images."""
        self._drawn = 0

    def before_test(self, runner: Runner) -> None:
        """Begin to count images."""
        self._drawn = 0

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Record the clusters of a batch that will be drawn."""
        self._attach(runner, batch_idx)

    def before_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Record the clusters of a batch that will be drawn."""
        self._attach(runner, batch_idx)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw the images of a batch, if it is its turn."""
        self._draw(runner, "val", outputs or ())

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw the images of a batch, if it is its turn."""
        self._draw(runner, "test", outputs or ())

    def _attach(self, runner: Runner, batch_idx: int) -> None:
        self._detach()  # of a batch that failed
        full = self.max_images is not None and self._drawn >= self.max_images
        if batch_idx % self.interval == 0 and not full and is_main_process():
            self._recorder = ClusterRecorder(runner.model)

    def _detach(self) -> None:
        if self._recorder is not None:
            self._recorder.remove()
            self._recorder = None

    def _draw(
        self, runner: Runner, mode: Literal["val", "test"], samples: Sequence[BaseDataElement]
    ) -> None:
        if self._recorder is None:
            return
        self._detach()
        meta = getattr(getattr(runner, f"{mode}_dataloader").dataset, "metainfo", {})
        classes = Classes.from_metainfo(meta)
        if self.gt is not None and self._truth is None:
            reduce_zero_label = meta.get("reduce_zero_label", False)
            self._truth = open_ground_truth(self.gt, classes, reduce_zero_label=reduce_zero_label)
        for sample in samples:
            if self.max_images is not None and self._drawn >= self.max_images:
                break
            name = f"{mode}_clusters_{Path(sample.img_path).stem}"
            # Not by its cpu(), which moves tensors alone, and not the clusters.
            sheet = self._sheet(sample.to("cpu"), classes)
            runner.visualizer.add_image(name, sheet, step=runner.iter)
            self._drawn += 1

    def _sheet(self, sample: BaseDataElement, classes: Classes) -> RGBImage:
        content = get(sample.img_path, backend_args=self.backend_args)
        image = mmcv.imfrombytes(content, channel_order="rgb")
        if self._truth is None:
            truth = true_segments(sample, classes)
        else:
            truth = self._truth.read(sample.img_path, image.shape[:2])
        return cluster_sheet(
            image,
            [level.numpy() for level in sample.clusters.labels(connected=self.connected)],
            classes=classes,
            prediction=predicted_segments(sample, classes, score_thr=self.score_thr),
            ground_truth=truth,
            layout=self.layout,
            side=self.side,
        )
