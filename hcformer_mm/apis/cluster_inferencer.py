"""ClusterInferencer: from images to the clusters of every level, and the model's prediction."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray

from ..models.utils.cluster_recorder import record_clusters
from ..structures.image_clusters import ImageClusters
from .base_inferencer import Predictor
from .inputs import Inputs, open_images


@dataclass(frozen=True)
class ClusteredImage:
    """What a model makes of one image.

    Attributes:
        image: The image, ``(H, W, 3)`` uint8, RGB.
        clusters: Its clustering: soft assignments, and label maps at several sizes.
        prediction: The data sample of the host (``DetDataSample`` or ``SegDataSample``).
        name: Stem of the file's name, or the number of the array.
    """

    image: NDArray[np.uint8]
    clusters: ImageClusters
    prediction: BaseDataElement
    name: str

    def labels(self, *, connected: bool = False) -> list[NDArray[np.int64]]:
        """Label maps ``(H, W)`` of every level at the image's size, finest first, from 0."""
        return [level.numpy() for level in self.clusters.labels(connected=connected)]


class ClusterInferencer(Predictor):
    """Run a model on images and keep the clusters of every level.

    Works for every detector or segmentor with an ``HCBackbone``: HCFormer and the per-pixel family.
    Arguments and attributes are those of :class:`~hcformer_mm.apis.base_inferencer.Predictor`: a config
    by name or path, a checkpoint, a device.
    """

    def __call__(
        self, inputs: Inputs, *, batch_size: int = 1, progress: bool = False
    ) -> list[ClusteredImage]:
        """Cluster and segment images.

        Args:
            inputs: An image, folder or video, or several of them; see
                :func:`~hcformer_mm.apis.inputs.open_images`.
            batch_size: Images that go through the network together.
            progress: Whether a progress bar is shown.

        Returns:
            One entry per image, in their order, on the CPU.

        Raises:
            ValueError: An input is no image, or the model clusters nothing.
            FileNotFoundError: There is no such file.
        """
        return list(self.iterate(inputs, batch_size=batch_size, progress=progress))

    def iterate(
        self, inputs: Inputs, *, batch_size: int = 1, progress: bool = False
    ) -> Iterator[ClusteredImage]:
        """The same, a batch at a time, for more images than memory holds.

        Arguments and errors are those of a call. The model runs when results are asked for.
        """
        results = self.predict(open_images(inputs), batch_size=batch_size, progress=progress)
        return (
            ClusteredImage(
                image=image.read_rgb(),
                clusters=sample.pop("clusters"),
                prediction=sample,
                name=image.name,
            )
            for image, sample in results
        )

    def _forward(self, batch: list[dict[str, Any]]) -> list[BaseDataElement]:
        with record_clusters(self.model):
            return super()._forward(batch)
