"""Tracks of objects as a drawn video, and in the formats of MOTS and YouTube-VIS."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import BaseDataElement
from pycocotools import mask as coco_mask

from ..structures.data_samples import predicted_segments
from ..structures.panoptic import Classes
from ..utils.atomic_write import replacing
from ..utils.strict_json import dumps
from ..visualization import draw_panoptic
from .inputs import InputImage

FORMATS = {"mots": ".txt", "coco-vid": ".json"}
"""Formats of tracks, and the suffixes of their files."""


@dataclass
class Track:
    """An object: label and score in each frame that shows it, and run lengths of masks by frame."""

    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    masks: dict[int, str] = field(default_factory=dict)

    @property
    def category(self) -> int:
        """Most frequent class, numbered from 1, as in mmdet's ``YouTubeVISMetric``."""
        return Counter(self.labels).most_common(1)[0][0] + 1


def write_tracks(
    results: Iterator[tuple[InputImage, BaseDataElement]],
    path: Path,
    classes: Classes,
    *,
    format: str,
    fps: float | None,
) -> Iterator[tuple[InputImage, BaseDataElement]]:
    """Yield the frames of a video, then write ``<path>.txt`` or ``.json``, and ``<path>.mp4``.

    Nothing is left of a video that is not finished. Encoded masks are kept in memory; frames
    are not.

    Args:
        results: Frames with data samples that have ``pred_track_instances``.
        path: Path of the files without suffix; the folder exists.
        classes: Classes of the model.
        format: One of :data:`FORMATS`: :func:`mots_lines` or :func:`youtube_vis`.
        fps: Frames per second of the drawn video; None draws none.

    Raises:
        ValueError: OpenCV cannot write the drawn video, or as for :func:`mots_lines`.
    """
    tracks = defaultdict[int, Track](Track)
    frames: list[tuple[int, str]] = []
    size = (0, 0)
    # OpenCV takes the format of a video from its suffix, so it has a folder of its own.
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        drawing, video = Path(folder) / "drawn.mp4", cv2.VideoWriter()
        for image, sample in results:
            objects = sample.pred_track_instances
            size = objects.masks.shape[1:]
            ids = objects.instances_id.tolist()
            values = (ids, objects.labels.tolist(), objects.scores.tolist())
            encoded = encode_mask_results(objects.masks.numpy())
            for number, label, score, mask in zip(*values, encoded, strict=True):
                track = tracks[number]
                track.labels.append(label)
                track.scores.append(score)
                track.masks[len(frames)] = mask["counts"].decode()
            frames.append((image.number, image.file_name))
            if fps is not None:
                segments = predicted_segments(sample, classes)
                assert segments is not None
                numbers = dict(zip(objects.ids.tolist(), ids, strict=True))
                drawn = draw_panoptic(image.read_rgb(), segments, classes, tracks=numbers)
                if not video.isOpened():
                    codec = cv2.VideoWriter.fourcc(*"mp4v")
                    if not video.open(str(drawing), codec, fps, drawn.shape[1::-1]):
                        raise ValueError(
                            "expected frames and a rate that OpenCV writes as a video, got frames "
                            f"of {size[0]}x{size[1]} pixels at {fps:g} per second; change fps, or "
                            "omit the drawn video"
                        )
                video.write(np.ascontiguousarray(drawn[..., ::-1]))
            yield image, sample
        video.release()
        with replacing(path.with_name(path.name + FORMATS[format])) as unfinished:
            if format == "mots":
                text = "".join(mots_lines(tracks, [number for number, _ in frames], size))
            else:
                text = dumps(youtube_vis(tracks, [name for _, name in frames], size, classes))
            unfinished.write_text(text)
        if fps is not None and frames:
            drawing.replace(path.with_name(f"{path.name}.mp4"))


def mots_lines(
    tracks: Mapping[int, Track], numbers: Sequence[int], size: tuple[int, int]
) -> Iterator[str]:
    """Lines of MOTS (Voigtlaender et al., 2019): frame, object, class, height, width, run lengths.

    Args:
        tracks: Tracks by id.
        numbers: Number of each frame in the video.
        size: Height and width of the frames.

    Returns:
        Lines by frame. Classes are numbered from 1, objects by 1000 · class + number in the class.

    Raises:
        ValueError: A class has 1000 objects or more.
    """
    found: Counter[int] = Counter()
    rows = []
    for track in tracks.values():
        category = track.category
        found[category] += 1
        number = 1000 * category + found[category]
        rows += [(frame, number, category, counts) for frame, counts in track.masks.items()]
    if max(found.values(), default=0) >= 1000:
        raise ValueError(
            "expected fewer than 1000 objects of a class, as MOTS numbers no more, got "
            f"{max(found.values())}; write coco-vid, or parts of the video"
        )
    for frame, number, category, counts in sorted(rows):
        yield f"{numbers[frame]} {number} {category} {size[0]} {size[1]} {counts}\n"


def youtube_vis(
    tracks: Mapping[int, Track], names: Sequence[str], size: tuple[int, int], classes: Classes
) -> dict[str, Any]:
    """One video in the format of YouTube-VIS, whose ``annotations`` are also results in it.

    The score of a track is the mean of its frames, as in mmdet's ``YouTubeVISMetric``.

    Args:
        tracks: Tracks by id.
        names: File name of each frame.
        size: Height and width of the frames.
        classes: Classes of the model, which are numbered from 1.
    """
    shape = dict(height=size[0], width=size[1], length=len(names))
    annotations = []
    for number, track in tracks.items():
        encoded = {i: dict(size=size, counts=counts) for i, counts in track.masks.items()}
        masks = [encoded.get(i) for i in range(len(names))]
        annotations.append(
            dict(
                id=number,
                video_id=1,
                category_id=track.category,
                score=float(np.mean(track.scores)),
                iscrowd=0,
                segmentations=masks,
                bboxes=[mask and coco_mask.toBbox(mask).tolist() for mask in masks],
                areas=[mask and int(coco_mask.area(mask)) for mask in masks],
                **shape,
            )
        )
    categories = [dict(id=i, name=name) for i, name in enumerate(classes.names, 1)]
    videos = [dict(id=1, file_names=names, **shape)]
    return dict(videos=videos, categories=categories, annotations=annotations)
