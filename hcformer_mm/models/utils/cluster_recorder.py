"""ClusterRecorder: adds the clustering to the predictions of any detector or segmentor."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.structures import BaseDataElement
from torch import nn

from ...structures.clustered_features import ClusteredFeatures
from ...structures.image_clusters import ImageClusters


class ClusterRecorder:
    """Add ``clusters`` to each data sample that a model predicts, until it is removed.

    The clusters are :class:`~hcformer_mm.structures.image_clusters.ImageClusters` on the CPU,
    because ``cpu()`` of a data sample moves tensors only. The recorder adds three hooks to the
    model and changes nothing else.

    Args:
        model: A detector or segmentor with an ``HCBackbone`` as ``backbone``; wrapped for
            distributed training or not.

    Raises:
        TypeError: The model has no backbone.
    """

    def __init__(self, model: nn.Module) -> None:
        inner: Any = model.module if is_model_wrapper(model) else model
        if not isinstance(getattr(inner, "backbone", None), nn.Module):
            raise TypeError(
                f"expected a detector or segmentor with a backbone, got {type(inner).__name__}; a "
                "model with test-time augmentation has no single clustering"
            )
        self._model = inner
        self._calls: list[tuple[tuple[int, int], Any]] = []
        self._handles = [
            inner.register_forward_pre_hook(lambda *_: self._calls.clear()),
            inner.backbone.register_forward_hook(self._on_backbone),
            inner.register_forward_hook(self._on_prediction),
        ]

    def remove(self) -> None:
        """Detach from the model."""
        for handle in self._handles:
            handle.remove()
        self._calls.clear()

    def _on_backbone(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        height, width = args[0].shape[-2:]
        self._calls.append(((height, width), output))

    def _on_prediction(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls, self._calls = self._calls, []
        if not (
            isinstance(output, Sequence)
            and output
            and all(isinstance(sample, BaseDataElement) for sample in output)
        ):
            return  # losses or raw outputs
        if len(calls) != 1:
            raise ValueError(
                f"expected a prediction by one call of the backbone, got {len(calls)}: sliding "
                "windows have no common clustering; set model.test_cfg.mode='whole'"
            )
        padded, features = calls[0]
        if not isinstance(features, ClusteredFeatures) or not features.assignments:
            raise ValueError(
                "expected hcformer_mm.HCBackbone with hierarchical_level >= 1 as backbone, got "
                f"{type(self._model.backbone).__name__} of {type(self._model).__name__}, which "
                "clusters nothing"
            )
        assignments = features.assignments
        rows, cols = assignments[0].shape[-2:]
        stride = finest_stride(padded, (rows, cols))
        for i, sample in enumerate(output):
            if sample.metainfo.get("flip"):
                raise ValueError(
                    "expected images that are not flipped, got a flipped one, whose clusters would "
                    "be mirrored; remove RandomFlip from the test pipeline"
                )
            input_size, image_size = (
                (int(height), int(width))
                for height, width, *_ in (sample.img_shape, sample.ori_shape)
            )
            clusters = ImageClusters(
                # A copy: a view would keep the assignments of the whole batch.
                assignments=tuple(a[i].detach().to("cpu", copy=True) for a in assignments),
                stride=stride,
                input_size=input_size,
                image_size=image_size,
            )
            sample.set_field(clusters, "clusters")


@contextmanager
def record_clusters(model: nn.Module) -> Iterator[ClusterRecorder]:
    """Add ``clusters`` to predictions within the context; see :class:`ClusterRecorder`."""
    recorder = ClusterRecorder(model)
    try:
        yield recorder
    finally:
        recorder.remove()


def finest_stride(padded: tuple[int, int], cells: tuple[int, int]) -> int:
    """Return the stride of the finest map: the side in pixels of its cells.

    Args:
        padded: Height and width of the backbone's input, in pixels.
        cells: Height and width of the finest map.

    Raises:
        ValueError: No stride gives a map of this size.
    """
    strides = [
        s for s in range(1, max(padded) + 1) if cells == (-(-padded[0] // s), -(-padded[1] // s))
    ]
    if not strides:
        raise ValueError(
            f"expected a finest map of square cells over an image of {tuple(padded)}, got one of "
            f"{cells[0]}x{cells[1]}"
        )
    # Small images allow several; prefer whole cells, then powers of 2.
    return min(strides, key=lambda s: (padded != (s * cells[0], s * cells[1]), s & (s - 1) != 0, s))
