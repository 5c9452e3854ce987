"""VideoInferencer: segments of videos, with ids of objects that stay."""

import math
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import mmcv
import torch
from mmdet.structures.mask import mask2bbox
from mmengine.structures import BaseDataElement
from torch import Tensor
from typing_extensions import Unpack

from ..models.heads import HCFormerFusionHead, HCFormerHead
from ..models.utils.segment_tracker import SegmentTracker
from ..structures.panoptic import Classes
from ..utils.progress import progress as show_progress
from .base_inferencer import BaseInferencer
from .inference import ResultOptions
from .inputs import VIDEO_EXTENSIONS, InputImage, Inputs, open_images
from .result_writer import check_writable
from .track_writer import FORMATS, write_tracks

_LOCK = Lock()

FPS = 25.0
"""Frames per second of a drawn video, if neither the input nor the user says."""


class VideoInferencer(BaseInferencer):
    """Segments the frames of videos, and gives objects ids that stay from frame to frame.

    It takes every detector with an ``HCFormerHead`` and an ``HCFormerFusionHead``, and computes its
    panoptic result. For arguments and attributes, see
    :class:`~hcformer_mm.apis.base_inferencer.BaseInferencer`.

    ::

        inferencer = VideoInferencer("hcformer_r18_shapes-panoptic", "iter_3000.pth")
        for sample in inferencer.track("street.mp4", out_dir="tracks"):
            sample.pred_track_instances.instances_id  # (N,), of masks (N, H, W)

    Raises:
        ValueError: As for a ``BaseInferencer``, or the model has other heads.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        names = ("panoptic_head", "panoptic_fusion_head")
        heads: list[Any] = [getattr(self.model, name, None) for name in names]
        if not all(map(isinstance, heads, (HCFormerHead, HCFormerFusionHead))):
            raise ValueError(
                "expected a detector with HCFormerHead and HCFormerFusionHead, whose segments are "
                f"objects, got {type(self.model).__name__} with "
                f"{' and '.join(type(head).__name__ for head in heads)}"
            )
        for head in heads:
            head.test_cfg.update(panoptic_on=True, instance_on=False, semantic_on=False)

    def track(
        self,
        video: Inputs,
        *,
        fps: float | None = None,
        batch_size: int = 1,
        out_dir: str | Path | None = None,
        format: str = "coco-vid",
        draw: bool = True,
        tracker: SegmentTracker | None = None,
        progress: bool = False,
        **options: Unpack[ResultOptions],
    ) -> Iterator[BaseDataElement]:
        """Yield the data samples of a video's frames, one by one, with the ids of their objects.

        Args:
            video: A video, a folder of frames, or other images in order; see
                :func:`~hcformer_mm.apis.inputs.open_images`.
            fps: Frames per second that are processed of a video, evenly spread, and shown in the
                drawn video. By default all are, and are drawn at the rate of the video. Of images
                all are processed, and drawn at 25 a second by default.
            batch_size: Frames per forward pass.
            out_dir: Folder for files, which
                :func:`~hcformer_mm.apis.track_writer.write_tracks` describes; None writes none.
            format: ``'mots'`` or ``'coco-vid'``.
            draw: Whether the files include a drawn video.
            tracker: A new tracker, with options of its own.
            progress: Whether to show a progress bar.
            options: :class:`~hcformer_mm.apis.inference.ResultOptions`.

        Returns:
            Data samples on the CPU, at the frames' size. ``pred_track_instances`` are the things of
            ``pred_segments`` with ``instances_id``, ``masks`` ``(N, H, W)`` and ``bboxes``.

        Raises:
            ValueError: An input is no image, frames differ in size, ``fps`` exceeds the video's, or
                files cannot be written as requested.
            FileNotFoundError: No such file.
        """
        if fps is not None and not 0 < fps < math.inf:
            raise ValueError(f"expected fps above 0, got {fps}")
        frames = open_images(video)
        path = Path(video) if isinstance(video, str | Path) else None
        if path is not None and path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file():
            video = mmcv.VideoReader(str(path))
        total, rate = len(frames) if isinstance(frames, list) else None, fps or FPS
        if isinstance(video, mmcv.VideoReader) and video.fps > 0:  # 0 is unknown
            rate = fps or video.fps
            if rate > video.fps:
                raise ValueError(f"expected fps of at most the video's {video.fps:g}, got {fps}")
            share = rate / video.fps
            frames = (frame for frame in frames if _is_sampled(frame.number, share))
            total = sum(_is_sampled(number, share) for number in range(video.frame_cnt))
        results = self.predict(frames, batch_size=batch_size, **options)
        if progress:
            results = show_progress(results, total)
        results = _identified(results, tracker or SegmentTracker(), self.classes)
        if out_dir is not None:
            if format not in FORMATS:
                raise ValueError(f"expected format among {tuple(FORMATS)}, got {format!r}")
            name = "video" if path is None else path.stem if path.is_file() else path.resolve().name
            file = Path(out_dir) / name
            if path and file.with_name(f"{name}.mp4").resolve() == path.resolve():
                raise ValueError(f"expected another folder than that of the video, got {out_dir}")
            check_writable(file.parent)
            rated = rate if draw else None
            results = write_tracks(results, file, self.classes, format=format, fps=rated)
        return (sample for _, sample in results)

    def _forward(self, batch: list[dict[str, Any]]) -> list[BaseDataElement]:
        """Data samples whose ``pred_segments`` have the ``embeddings`` ``(N, C)`` of their queries.

        They are the outputs of the last decoder layer, of which classes and masks are computed.
        """
        seen: list[Tensor] = []
        layer = self.model.panoptic_head.cls_embed
        with _LOCK:  # the hook sees the calls of all threads
            hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            try:
                samples = super()._forward(batch)
            finally:
                hook.remove()
        # One decoder has the dimension of the layers in front.
        embeddings = seen[0].reshape(len(samples), -1, seen[0].shape[-1]).float()
        for sample, of_image in zip(samples, embeddings, strict=True):
            sample.pred_segments.embeddings = of_image[sample.pred_segments.queries]
        return samples


def _identified(
    results: Iterator[tuple[InputImage, BaseDataElement]], tracker: SegmentTracker, classes: Classes
) -> Iterator[tuple[InputImage, BaseDataElement]]:
    """Add ``pred_track_instances`` to data samples."""
    for image, sample in results:
        segments = sample.pred_segments
        embeddings = segments.pop("embeddings")
        flags = [classes.is_object(label) for label in segments.labels.tolist()]
        things = torch.tensor(flags, dtype=torch.bool)
        objects = segments[things]
        objects.masks = sample.pred_panoptic_seg.sem_seg == objects.ids[:, None, None]
        objects.bboxes = mask2bbox(objects.masks)
        objects.instances_id = tracker.update(objects.masks, objects.labels, embeddings[things])
        sample.pred_track_instances = objects
        yield image, sample


def _is_sampled(number: int, share: float) -> bool:
    """Whether a frame is among this share of all, evenly spread; the first one is."""
    return math.floor(number * share) != math.floor((number - 1) * share)
