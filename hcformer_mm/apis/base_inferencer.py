"""Predictor: a model and what it needs to be run on images."""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from mmengine.utils import ProgressBar
from mmseg.models.segmentors import BaseSegmentor

from ..acceleration.inference import check_dtype, speed_up, step_in
from ..utils.config import find_config
from .inference import build_model, check_device, inference_pipeline, read_classes
from .inputs import InputImage


class Predictor:
    """A detector or segmentor of either host that is run on images.

    It is no subclass of MMEngine's ``BaseInferencer``, of which little would be left: that class
    keeps the results of all images before it returns any, finds models by name in a closed list
    of packages, and falls back to loading a checkpoint that holds code.

    Args:
        model: A config: the path of a file, the name of one of this package's, or a ``Config``.
        weights: A checkpoint; it is read as data. Random weights, with a warning, if it is None.
        device: Where the model runs; by default on the GPU if there is one.
        dtype: ``'float32'``, or the type of autocast: ``'bfloat16'`` or ``'float16'``. Results
            are float32.
        fast: Whether the model is prepared by :func:`~hcformer_mm.acceleration.inference.speed_up`,
            which changes results by rounding.
        seed: Seed of random weights.

    Attributes:
        model: The model, in evaluation mode; if ``fast``, its BatchNorm is part of convolutions.
        classes: Names and colors of its classes.

    Raises:
        ValueError: There is no such config, or the weights do not fit it; or another ``dtype``.
        FileNotFoundError: There is no such checkpoint.
    """

    def __init__(
        self,
        model: str | Path | Config,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        *,
        dtype: str = "float32",
        fast: bool = True,
        seed: int = 0,
    ) -> None:
        self._dtype = check_dtype(dtype)
        config = model if isinstance(model, Config) else Config.fromfile(find_config(model))
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(device)
        if weights is None:
            warnings.warn(
                f"no weights are given for {config.filename}: its predictions are random",
                stacklevel=2,
            )
        self.model = build_model(config, weights, device=device, seed=seed)
        self.classes = read_classes(self.model)
        if fast:
            speed_up(self.model)
        self._file_pipeline = inference_pipeline(config)
        self._array_pipeline = inference_pipeline(config, arrays=True)

    def predict(
        self,
        images: list[InputImage] | Iterator[InputImage],
        *,
        batch_size: int = 1,
        progress: bool = False,
    ) -> Iterator[tuple[InputImage, BaseDataElement]]:
        """Run the model, a batch at a time, when the results are asked for.

        Args:
            images: What :func:`~hcformer_mm.apis.inputs.open_images` returns.
            batch_size: Images that go through the network together. A segmentor of mmseg takes
                together only those of one size; a detector pads them to the largest, which changes
                results a little.
            progress: Whether a progress bar is shown, on standard error.

        Returns:
            Images in their order, each with the data sample of the host (``DetDataSample`` or
            ``SegDataSample``), on the CPU.

        Raises:
            ValueError: ``batch_size`` is below 1; or, on the way, a file is no image.
        """
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        return self._predict(images, batch_size, progress)

    def _predict(
        self, images: Iterable[InputImage], batch_size: int, progress: bool
    ) -> Iterator[tuple[InputImage, BaseDataElement]]:
        number = len(images) if isinstance(images, list) else 0  # 0: nobody knows
        bar = ProgressBar(number, file=sys.stderr) if progress else None
        stream = iter(images)
        while batch := list(islice(stream, batch_size)):
            yield from zip(batch, self._run(batch), strict=True)
            if bar is not None:
                bar.update(len(batch))
        if bar is not None:
            bar.file.write("\n")

    def _run(self, images: Sequence[InputImage]) -> list[BaseDataElement]:
        """Data samples of a batch, on the CPU, all floating-point values in float32."""
        batch = [self._prepare(image) for image in images]
        together: Iterable[list[dict[str, Any]]] = [batch]
        if isinstance(self.model, BaseSegmentor):
            # Its data preprocessor refuses images of several sizes.
            together = (list(group) for _, group in groupby(batch, _input_size))
        with torch.inference_mode():
            samples = [sample for group in together for sample in self._forward(group)]
        # Copies on the CPU too, as results of inference mode could not be changed. Not by cpu(): it
        # leaves behind what is no tensor, such as clusters.
        return [sample.to("cpu", copy=True) for sample in samples]

    def _forward(self, batch: list[dict[str, Any]]) -> list[BaseDataElement]:
        """Data samples of prepared images, on the model's device."""
        return step_in(self._dtype, self.model)(pseudo_collate(batch))

    def _prepare(self, image: InputImage) -> dict[str, Any]:
        """What the pipeline of the config makes of an image."""
        if image.array is not None:
            return self._array_pipeline(dict(img=image.array, img_id=image.number))
        try:
            return self._file_pipeline(dict(img_path=str(image.path), img_id=image.number))
        except Exception:
            image.read()  # raises if it is the file that is at fault
            raise


def _input_size(prepared: dict[str, Any]) -> tuple[int, ...]:
    return tuple(prepared["inputs"].shape)
