"""ClusterInferencer: from pictures to the clusters of every level, and the model's prediction."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from mmengine.utils import track_iter_progress
from numpy.typing import NDArray

from ..models.cluster_recording import record_clusters
from ..structures import ImageClusters
from .model_loading import build_model, find_config, inference_pipeline, read_classes

Input = str | Path | NDArray[np.uint8]
"""A picture: the path of a file, or an array ``(H, W, 3)`` of 8 bits, BGR as mmcv reads it."""


@dataclass(frozen=True)
class ClusteredPicture:
    """What a model makes of one picture.

    Attributes:
        image: The picture, ``(H, W, 3)`` uint8, RGB.
        clusters: Its clustering: soft assignments, and label maps at several sizes.
        prediction: The data sample of the host (``DetDataSample`` or ``SegDataSample``).
        name: Stem of the file's name, or the number of the array.
    """

    image: NDArray[np.uint8]
    clusters: ImageClusters
    prediction: BaseDataElement
    name: str

    def labels(self, *, connected: bool = False) -> list[NDArray[np.int64]]:
        """Label maps ``(H, W)`` of every level at the picture's size, finest first, from 0."""
        return [level.numpy() for level in self.clusters.labels(connected=connected)]


class ClusterInferencer:
    """Run a model on pictures and keep the clusters of every level.

    Works for every detector or segmentor with an ``HCBackbone``: HCFormer and the per-pixel family.

    Args:
        model: A config: the path of a file, the name of one of this package's, or a ``Config``.
        weights: A checkpoint; it is read as data. Random weights if it is None.
        device: Where the model runs; by default on the GPU if there is one.
        seed: Seed of random weights.

    Attributes:
        model: The model, in evaluation mode.
        classes: Names and colours of its classes.

    Raises:
        ValueError: There is no such config, or the weights do not fit it.
        FileNotFoundError: There is no such checkpoint.
    """

    def __init__(
        self,
        model: str | Path | Config,
        weights: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        seed: int = 0,
    ) -> None:
        config = model if isinstance(model, Config) else Config.fromfile(find_config(model))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = build_model(config, weights, device=device, seed=seed)
        self.classes = read_classes(self.model)
        self._file_pipeline = inference_pipeline(config)
        self._array_pipeline = inference_pipeline(config, arrays=True)

    def __call__(
        self, inputs: Input | Iterable[Input], *, batch_size: int = 1, progress: bool = False
    ) -> list[ClusteredPicture]:
        """Cluster and segment pictures.

        Args:
            inputs: A path or an array, or several of them.
            batch_size: Pictures that go through the network together.
            progress: Whether a progress bar is shown.

        Returns:
            One entry per picture, in their order, on the CPU.

        Raises:
            ValueError: An input is no picture, or the model clusters nothing.
            FileNotFoundError: There is no such file.
        """
        pictures = [inputs] if isinstance(inputs, str | Path | np.ndarray) else list(inputs)
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        starts = range(0, len(pictures), batch_size)
        results: list[ClusteredPicture] = []
        for start in track_iter_progress(starts) if progress else starts:
            results += self._run(pictures[start : start + batch_size], start)
        return results

    def iterate(self, inputs: Iterable[Input]) -> Iterator[ClusteredPicture]:
        """The same, a picture at a time, for more of them than memory holds."""
        for number, picture in enumerate(inputs):
            yield from self._run([picture], number)

    @torch.inference_mode()
    def _run(self, pictures: Sequence[Input], start: int) -> list[ClusteredPicture]:
        images = [_read(picture) for picture in pictures]
        batch = []
        for number, (picture, image) in enumerate(zip(pictures, images, strict=True), start):
            if isinstance(picture, np.ndarray):
                batch.append(self._array_pipeline(dict(img=image, img_id=number)))
            else:
                batch.append(self._file_pipeline(dict(img_path=str(picture), img_id=number)))
        with record_clusters(self.model):
            samples = [sample.cpu() for sample in self.model.test_step(pseudo_collate(batch))]
        return [
            ClusteredPicture(
                image=np.ascontiguousarray(image[..., ::-1]),
                clusters=sample.pop("clusters"),
                prediction=sample,
                name=str(number) if isinstance(picture, np.ndarray) else Path(picture).stem,
            )
            for number, (picture, image, sample) in enumerate(
                zip(pictures, images, samples, strict=True), start
            )
        ]


def _read(picture: Input) -> NDArray[np.uint8]:
    """A picture as BGR, checked."""
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                "expected a picture as a uint8 array (H, W, 3), BGR, got "
                f"{picture.dtype} {picture.shape}"
            )
        return picture
    if not isinstance(picture, str | Path):
        raise ValueError(f"expected a path or an array as picture, got {type(picture).__name__}")
    if not Path(picture).is_file():
        raise FileNotFoundError(f"no such picture: {picture}")
    image = mmcv.imread(str(picture))
    if image is None:
        raise ValueError(f"expected a picture that OpenCV can read, got {picture}")
    return image
