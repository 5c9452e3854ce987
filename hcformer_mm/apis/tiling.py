"""Run a model on large images tile by tile, and join the results."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from numpy.typing import NDArray
from pycocotools import mask as mask_util
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..ops.bands import BAND_NUMEL, row_bands
from ..structures.arrays import Labels, Mask
from .inputs import InputImage
from .tiles import Tile, Tiling, spans

RLE: TypeAlias = dict[str, Any]
"""A mask in COCO's compressed run-length encoding."""


def predict_tiled(
    image: InputImage,
    tiling: Tiling,
    predict: Callable[[list[InputImage]], Iterator[tuple[InputImage, BaseDataElement]]],
    *,
    threshold: float | None = None,
) -> BaseDataElement:
    """Run a model on the tiles of an image, and join the results.

    Args:
        image: The image.
        tiling: Sizes and the rule of joining.
        predict: Function from images to their data samples on the CPU, in order.
        threshold: Minimum score of the class of mmseg's models of one class.

    Returns:
        A data sample with the fields of the tiles' samples at the size of the image, but
        ``seg_logits``. Masks of ``pred_instances`` are a list of COCO RLEs, since dense ones might
        not fit in memory; ``pred_segments`` lacks ``queries``. Numbers of instances go on beyond
        ``INSTANCE_OFFSET``: 1000 · number + class fits int32 up to two million. Metainfo besides
        ``ori_shape`` is that of a tile. The sample of an image that fits a tile is the model's own.

    Raises:
        ValueError: The image cannot be read or resized.
    """
    pixels = image.read()
    size = pixels.shape[0], pixels.shape[1]
    if all(side <= tile for side, tile in zip(size, tiling.shape, strict=True)):
        ((_, sample),) = predict([replace(image, array=pixels)])
        return sample
    rows, columns = (
        spans(side, tile, tiling.overlap) for side, tile in zip(size, tiling.shape, strict=True)
    )
    tiles = [Tile(row, column) for row in rows for column in columns]
    crops = [replace(image, array=pixels[tile.whole]) for tile in tiles]
    result: BaseDataElement | None = None
    for tile, (_, sample) in zip(tiles, predict(crops), strict=True):
        if result is None:
            result = type(sample)(metainfo={**sample.metainfo, "ori_shape": size})
            objects = partial(_Objects, len(columns), tiling.iou_thr)
            joined: list[_Panoptic | _Instances | _OwnedPixels | _BlendedLogits] = []
            if "pred_panoptic_seg" in sample:
                joined.append(_Panoptic(size, objects()))
            if "pred_instances" in sample:
                joined.append(_Instances(size, objects()))
            if "seg_logits" in sample:
                joined.append(_BlendedLogits(size, threshold))
            elif "pred_sem_seg" in sample:
                joined.append(_OwnedPixels(size, "pred_sem_seg", "sem_seg"))
            if "pred_confidence" in sample:
                joined.append(_OwnedPixels(size, "pred_confidence", "data"))
        for one in joined:
            one.add(tile, sample)
    assert result is not None
    for one in joined:
        for name, value in one.fields().items():
            setattr(result, name, value)
    return result


class _OwnedPixels:
    """A map of which each tile has its own pixels."""

    def __init__(self, size: tuple[int, int], name: str, key: str) -> None:
        self._size, self._name, self._key = size, name, key
        self._map: Tensor | None = None

    def add(self, tile: Tile, sample: BaseDataElement) -> None:
        pixels = sample.get(self._name).get(self._key)  # (1, h, w)
        if not pixels.is_floating_point():
            pixels = pixels.int()  # half the memory of int64
        if self._map is None:
            self._map = pixels.new_empty(1, *self._size)
        self._map[0][tile.owned] = pixels[0][tile.within(*tile.owned)]

    def fields(self) -> dict[str, BaseDataElement]:
        return {self._name: PixelData(**{self._key: self._map})}


class _BlendedLogits:
    """Classes by blended logits ``(K, H, W)``, of which only strips are ever kept."""

    def __init__(self, size: tuple[int, int], threshold: float | None) -> None:
        self._labels = torch.empty(size, dtype=torch.int32)
        self._threshold = threshold
        # Sums of logits that later tiles add to: to the right of the last tile, and below each row.
        self._right = self._below = torch.empty(0)

    def add(self, tile: Tile, sample: BaseDataElement) -> None:
        rows, columns = tile.rows, tile.columns
        top, left = rows.used.start, columns.used.start
        sums = sample.seg_logits.data[tile.within(rows.used, columns.used)]
        sums = sums * rows.weights()[:, None] * columns.weights()
        fresh = left
        if columns.before is not None:
            fresh = columns.before.stop  # what lies left of it has come with the sums on the right
            sums[..., : fresh - left] += self._right
        if rows.before is not None:
            height = rows.before.stop - top
            sums[:, :height, fresh - left :] += self._below[..., fresh : columns.used.stop]
        bottom = rows.after.start if rows.after else rows.used.stop
        right = columns.after.start if columns.after else columns.used.stop
        done = sums[:, : bottom - top, : right - left]
        classes = done[0] > self._threshold if len(done) == 1 else done.max(0).indices
        self._labels[top:bottom, left:right] = classes.int()
        self._right = sums[..., right - left :].clone()
        if rows.after is not None:
            if not rows.index and not columns.index:  # all strips are of one width
                width = self._labels.shape[1]
                self._below = sums.new_empty(len(sums), rows.used.stop - bottom, width)
            self._below[..., left:right] = sums[:, bottom - top :, : right - left]

    def fields(self) -> dict[str, BaseDataElement]:
        return dict(pred_sem_seg=PixelData(data=self._labels[None]))


@dataclass
class _Objects:
    """Objects of all tiles, and which are parts of one; see :class:`~.tiles.Tiling`.

    Attributes:
        num_columns: Number of tiles in a row.
        iou_thr: See :class:`~.tiles.Tiling`.
        labels: Class of each part.
        areas: Number of its pixels that belong to its tile.
        scores: Its score.
    """

    num_columns: int
    iou_thr: float
    labels: list[int] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pairs: list[tuple[int, int]] = []
        self._left = _NOTHING
        self._above = [_NOTHING] * self.num_columns

    def add(self, tile: Tile, masks: Mask, labels: Labels, scores: Sequence[float]) -> Labels:
        """Add the objects of a tile, and return the numbers of their parts.

        Args:
            tile: The tile.
            masks: ``(N, h, w)``.
            labels: Class of each, ``(N,)``.
            scores: Score of each.
        """
        parts = len(self.labels) + np.arange(len(masks))
        self.labels += labels.tolist()
        self.scores += scores
        self.areas += masks[tile.within(*tile.owned)].sum((1, 2)).tolist()
        rows, columns, number = tile.rows, tile.columns, tile.columns.index

        def strip(rows: slice | None, columns: slice | None) -> _Strip:
            if rows is None or columns is None:
                return _NOTHING
            shared = masks[tile.within(rows, columns)]
            kept = np.flatnonzero(shared.any((1, 2)))
            return parts[kept].tolist(), encode_mask_results(shared[kept])

        self._pair(self._left, strip(rows.used, columns.before))
        self._pair(self._above[number], strip(rows.before, columns.used))
        self._left = strip(rows.used, columns.after)
        self._above[number] = strip(rows.after, columns.used)
        return parts

    def _pair(self, one: "_Strip", other: "_Strip") -> None:
        """Find the parts of one object on both sides of a strip."""
        (ours, our_masks), (theirs, their_masks) = one, other
        if not (ours and theirs):
            return
        ious = mask_util.iou(our_masks, their_masks, [0] * len(theirs))
        labels = [np.array([self.labels[part] for part in parts]) for parts in (ours, theirs)]
        ious[labels[0][:, None] != labels[1]] = 0
        ious[ious < self.iou_thr] = 0
        for i, j in zip(*linear_sum_assignment(ious, maximize=True), strict=True):
            if ious[i, j] > 0:
                self._pairs.append((ours[i], theirs[j]))

    def whole(self) -> tuple[Labels, Labels, Labels, NDArray[np.float64]]:
        """Object of each part; and class, area and score of each object."""
        count = len(self.labels)
        pairs = np.array(self._pairs, np.int64).reshape(-1, 2)
        graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
        number, objects = connected_components(graph, directed=False)
        labels = np.zeros(number, np.int64)
        labels[objects] = self.labels
        parts = np.array(self.areas, np.float64)
        areas = np.bincount(objects, parts, number)
        scores = np.bincount(objects, parts * self.scores, number) / np.maximum(areas, 1)
        return objects, labels, areas.astype(np.int64), scores


_Strip: TypeAlias = tuple[list[int], list[RLE]]
"""Numbers of the parts in a strip, and their masks there."""
_NOTHING: _Strip = ([], [])


class _Panoptic:
    """``pred_panoptic_seg`` and, if the tiles have it, ``pred_segments``."""

    def __init__(self, size: tuple[int, int], things: _Objects) -> None:
        self._map = np.empty(size, np.int32)  # stuff and void; INSTANCE_OFFSET + part for things
        self._things = things
        self._scored = False
        self._stuff = np.zeros((2, INSTANCE_OFFSET))  # area, and sum of scores over the pixels

    def add(self, tile: Tile, sample: BaseDataElement) -> None:
        segments = sample.pred_panoptic_seg.sem_seg[0].numpy()
        owned = segments[tile.within(*tile.owned)]
        scores: dict[int, float] = {}
        if "pred_segments" in sample:
            self._scored = True
            found = sample.pred_segments
            scores = dict(zip(found.ids.tolist(), found.scores.tolist(), strict=True))
        ids = np.unique(segments)
        things = ids[ids >= INSTANCE_OFFSET]
        parts = self._things.add(
            tile,
            segments == things[:, None, None],
            things % INSTANCE_OFFSET,
            [scores.pop(i, 0.0) for i in things.tolist()],
        )
        for stuff, score in scores.items():
            area = np.count_nonzero(owned == stuff)
            self._stuff[:, stuff] += area, area * score
        values = np.arange(ids[-1] + 1)
        values[things] = INSTANCE_OFFSET + parts
        self._map[tile.owned] = values[owned]

    def fields(self) -> dict[str, BaseDataElement]:
        objects, labels, areas, scores = self._things.whole()
        seen = areas > 0
        things = labels + INSTANCE_OFFSET * seen.cumsum()
        values = np.concatenate([np.arange(INSTANCE_OFFSET), things[objects]])
        for rows in row_bands(*self._map.shape, BAND_NUMEL):
            self._map[rows] = values[self._map[rows]]
        fields = dict(pred_panoptic_seg=PixelData(sem_seg=torch.from_numpy(self._map)[None]))
        if self._scored:
            (stuff,) = self._stuff[0].nonzero()
            ids = np.concatenate([stuff, things[seen]])
            sums = self._stuff[:, stuff]
            fields["pred_segments"] = InstanceData(
                ids=torch.from_numpy(ids),
                labels=torch.from_numpy(ids % INSTANCE_OFFSET),
                scores=torch.from_numpy(np.concatenate([sums[1] / sums[0], scores[seen]])).float(),
            )
        return fields


class _Instances:
    """``pred_instances``, with masks in RLE."""

    def __init__(self, size: tuple[int, int], instances: _Objects) -> None:
        self._size, self._instances = size, instances
        self._masks: list[RLE] = []

    def add(self, tile: Tile, sample: BaseDataElement) -> None:
        found = sample.pred_instances.numpy()
        self._instances.add(tile, found.masks, found.labels, found.scores.tolist())
        for mask in found.masks[tile.within(*tile.owned)]:
            self._masks.append(encode_part(mask, tile.owned, self._size))

    def fields(self) -> dict[str, BaseDataElement]:
        objects, labels, areas, scores = self._instances.whole()
        parts: list[list[RLE]] = [[] for _ in labels]
        for number, mask in zip(objects.tolist(), self._masks, strict=True):
            parts[number].append(mask)
        seen = areas > 0
        masks = [mask_util.merge(parts[number]) for number in np.flatnonzero(seen).tolist()]
        boxes = mask_util.toBbox(masks).reshape(-1, 4)  # left, top, width, height
        boxes[:, 2:] += boxes[:, :2]
        instances = InstanceData(
            scores=torch.from_numpy(scores[seen]).float(),
            labels=torch.from_numpy(labels[seen]),
            bboxes=torch.from_numpy(boxes).float(),
            masks=masks,
        )
        return dict(pred_instances=instances)


def encode_part(mask: Mask, place: tuple[slice, slice], size: tuple[int, int]) -> RLE:
    """Encode a mask of a part of an image as one of the image, without making that.

    Args:
        mask: ``(h, w)``.
        place: Rows and columns of the part.
        size: Height and width of the image.
    """
    height, width = size
    columns, rows = np.nonzero(mask.T)  # COCO counts down the columns
    pixels = (columns + place[1].start) * height + rows + place[0].start
    starts = pixels[np.diff(pixels, prepend=-2) > 1]
    stops = pixels[np.diff(pixels, append=height * width + 1) > 1] + 1
    ends = np.stack([starts, stops], 1).ravel()
    counts = np.trim_zeros(np.diff(ends, prepend=0, append=height * width), "b").tolist()
    return mask_util.frPyObjects(dict(size=[height, width], counts=counts), height, width)
