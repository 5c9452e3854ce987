"""ClusterVisualizationHook: draw clusters, prediction and ground truth in validation and test."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ...datasets.ground_truth import GroundTruth, open_ground_truth
from ...models.utils.cluster_recorder import ClusterRecorder, record_clusters
from ...registry import HOOKS
from ...structures.arrays import RGBImage
from ...structures.data_samples import (
    SCORE_THR,
    check_score_thr,
    predicted_segments,
    true_segments,
)
from ...structures.panoptic import Classes
from ...utils.errors import InputError
from ...utils.images import decode_image
from ...visualization import LAYOUTS, cluster_sheet
from ...visualization.fonts import fonts_for
from ..loops import built_loops


@HOOKS.register_module()
class ClusterVisualizationHook(Hook):
    """Draw clusters, prediction and ground truth as one sheet per image in validation and test.

    Sheets look like those of ``tools/visualize_clusters.py``. Every ``interval``-th batch is drawn,
    so each validation draws the same images. All backends of the runner's visualizer receive them
    as ``val_clusters_<name of the image>`` or ``test_clusters_<name>`` at the step of the training
    iteration, so a backend with a slider shows how the clusters of an image change. In distributed
    runs, only the main process draws, and only images of its own batches.

    Args:
        interval: Number of batches from one drawn batch to the next, starting with the first batch.
        max_images: Maximum number of images drawn in a validation or test; None for no limit.
        train_iters: Training iterations after which the first image of the validation set is drawn,
            so that the first sheet need not wait for the first validation. Training is not changed.
        gt: File or folder of the ground truth; see
            :func:`~hcformer_mm.datasets.ground_truth.open_ground_truth`. None uses the annotations
            that the test pipeline loads, provided that it loads them after resizing the image.
        layout: One of :data:`~hcformer_mm.visualization.layouts.LAYOUTS`.
        connected: Whether each connected part of a cluster counts as a cluster.
        side: Approximate longer side of a panel, in pixels.
        score_thr: Minimum score of the instances that are drawn.
        font: Font file of the class names; by default DejaVu Sans, or a font of the system for
            characters that it lacks.
        backend_args: Options of MMEngine's file client, which reads the images.

    Raises:
        ValueError: A number is out of its range, ``layout`` is unknown, or ``font`` is not a font.
    """

    def __init__(
        self,
        *,
        interval: int = 50,
        max_images: int | None = None,
        train_iters: Sequence[int] = (),
        gt: str | None = None,
        layout: str = "full",
        connected: bool = False,
        side: int = 640,
        score_thr: float = SCORE_THR,
        font: str | None = None,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        numbers = dict(interval=interval, max_images=max_images, side=side)
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise ValueError(f"expected {name} of at least 1, got {number}")
        if layout not in LAYOUTS:
            raise ValueError(f"expected a layout among {', '.join(LAYOUTS)}, got {layout!r}")
        fonts_for((), font)  # refuses a file that is no font
        self.interval = interval
        self.max_images = max_images
        self.train_iters = frozenset(train_iters)
        self.gt = gt
        self.layout = layout
        self.connected = connected
        self.side = side
        self.score_thr = check_score_thr(score_thr)
        self.font = font
        self.backend_args = backend_args
        self._recorder: ClusterRecorder | None = None
        self._truth: GroundTruth | None = None
        self._named: dict[str, str] = {}  # image of each name of a sheet
        self._drawn = 0

    def before_run(self, runner: Runner) -> None:
        """Check that clusters can be recorded, and open the ground truth, before training.

        Raises:
            TypeError: The model has no backbone, like the wrapper of test-time augmentation.
            ValueError: ``gt`` is not ground truth, or ``train_iters`` lack a validation set.
            FileNotFoundError: There is no ``gt``.
        """
        ClusterRecorder(runner.model).remove()
        loops = built_loops(runner)
        loop = loops.get("val", loops.get("test"))
        if self.train_iters and "train" in loops and "val" not in loops:
            raise InputError(
                "expected a validation set for train_iters, whose first image is drawn, got none; "
                "add val_dataloader, val_evaluator and val_cfg to the config"
            )
        if self.gt is not None and loop is not None:
            meta = loop.dataloader.dataset.metainfo
            self._truth = open_ground_truth(
                self.gt,
                Classes.from_metainfo(meta),
                reduce_zero_label=meta.get("reduce_zero_label", False),
            )

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        self._drawn = 0

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = "train"
    ) -> None:
        """Record the clusters of a batch that will be drawn."""
        self._detach()  # in case the last batch failed
        due = mode != "train" and batch_idx % self.interval == 0 and not self._is_full()
        if due and is_main_process():
            self._recorder = ClusterRecorder(runner.model)

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
        mode: str = "train",
    ) -> None:
        """Draw the images of a batch whose clusters were recorded."""
        if self._recorder is None:
            return
        self._detach()
        for sample in outputs:
            if self._is_full():
                break
            self._draw(runner, sample, mode, runner.iter)
            self._drawn += 1

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the first image of the validation set after iterations in ``train_iters``."""
        if runner.iter + 1 not in self.train_iters:
            return
        loader = runner.val_dataloader
        runner.model.eval()
        # In every process, since a sharded model needs all of them.
        with record_clusters(runner.model), torch.no_grad():
            (sample,) = runner.model.val_step(loader.collate_fn([loader.dataset[0]]))
        runner.model.train()
        if is_main_process():
            self._draw(runner, sample, "val", runner.iter + 1)

    def _draw(self, runner: Runner, sample: BaseDataElement, mode: str, step: int) -> None:
        """Give the sheet of a data sample to the visualizer, with the number of iterations done."""
        meta = getattr(getattr(runner, f"{mode}_dataloader").dataset, "metainfo", {})
        # sample.cpu() would move only tensors, not the clusters.
        sheet = self._sheet(sample.to("cpu"), replace(Classes.from_metainfo(meta), font=self.font))
        name = f"{mode}_clusters_{self._name(sample.img_path)}"
        runner.visualizer.add_image(name, sheet, step=step)

    def _name(self, path: str) -> str:
        """Name of an image without suffix, with its folders while another image has this name."""
        name = Path(path).stem
        for folder in Path(path).parents:
            if self._named.setdefault(name, path) == path:
                break
            name = f"{folder.name}_{name}"
        return name

    def _is_full(self) -> bool:
        return self.max_images is not None and self._drawn >= self.max_images

    def _detach(self) -> None:
        if self._recorder is not None:
            self._recorder.remove()
            self._recorder = None

    def _sheet(self, sample: BaseDataElement, classes: Classes) -> RGBImage:
        content = get(sample.img_path, backend_args=self.backend_args)
        image = np.ascontiguousarray(decode_image(content, sample.img_path)[..., ::-1])
        if self._truth is None:
            truth = true_segments(sample, classes)
        else:
            height, width = image.shape[:2]
            truth = self._truth.read(sample.img_path, (height, width))
        return cluster_sheet(
            image,
            [level.numpy() for level in sample.clusters.labels(connected=self.connected)],
            classes=classes,
            prediction=predicted_segments(sample, classes, score_thr=self.score_thr),
            ground_truth=truth,
            layout=self.layout,
            side=self.side,
        )
