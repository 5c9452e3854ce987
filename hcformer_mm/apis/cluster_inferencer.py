"""ClusterInferencer: predict images and return the clusters of every level."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from typing_extensions import Unpack

from ..models.utils.cluster_recorder import record_clusters
from ..structures.image_clusters import ImageClusters
from .base_inferencer import BaseInferencer, listed
from .inference import ResultOptions
from .inputs import Inputs, open_images

_LOCK = Lock()


@dataclass(frozen=True)
class ClusteredImage:
    """Clusters and prediction of one image.

    Attributes:
        image: The image, ``(H, W, 3)`` uint8, RGB.
        clusters: Soft assignments, and label maps at several sizes.
        prediction: ``DetDataSample`` of mmdet or ``SegDataSample`` of mmseg.
        name: Stem of the file name, or the number of an array.
        path: File of the image, if it has one.
    """

    image: NDArray[np.uint8]
    clusters: ImageClusters
    prediction: BaseDataElement
    name: str
    path: Path | None = None

    def labels(self, *, connected: bool = False) -> list[NDArray[np.int64]]:
        """Label maps ``(H, W)`` at the image's size, finest level first, labels from 0."""
        return [level.numpy() for level in self.clusters.labels(connected=connected)]


class ClusterInferencer(BaseInferencer):
    """Runs a model on images and returns predictions with the clusters of every level.

    Works with every detector and segmentor that has an ``HCBackbone``. For arguments and
    attributes, see :class:`~hcformer_mm.apis.base_inferencer.BaseInferencer`.
    """

    def iterate(
        self,
        inputs: Inputs,
        *,
        batch_size: int = 1,
        progress: bool = False,
        strict: bool = False,
        **options: Unpack[ResultOptions],
    ) -> Iterator[ClusteredImage]:
        """Cluster and segment images one by one; a call returns all results as a list.

        The model runs only when the next result is requested.

        Args:
            inputs: One or more images, folders or videos; see
                :func:`~hcformer_mm.apis.inputs.open_images`.
            batch_size: Images per forward pass.
            progress: Whether to show a progress bar.
            strict: Whether a file that is not a whole image is an error; by default it is skipped
                with a warning, unless it is the only one.
            options: :class:`~hcformer_mm.apis.inference.ResultOptions`.

        Returns:
            One entry per image that can be read, in order, on the CPU.

        Raises:
            ValueError: An input is not an image, no file is, the model has no clusters, or an
                option is wrong.
            FileNotFoundError: No such file.
        """
        images = open_images(inputs)
        results = self.predict(
            images, batch_size=batch_size, progress=progress, strict=strict, **options
        )
        return (
            ClusteredImage(image.read_rgb(), sample.pop("clusters"), sample, image.name, image.path)
            for image, sample in results
        )

    __call__ = listed(iterate)

    def _forward(self, batch: list[dict[str, Any]]) -> list[BaseDataElement]:
        # The recorder's hooks see the calls of all threads.
        with _LOCK, record_clusters(self.model):
            return super()._forward(batch)
