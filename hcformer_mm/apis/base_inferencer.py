"""BaseInferencer: run a model with its test pipeline on images, in batches."""

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

from ..acceleration.inference import autocast_test_step, check_dtype, prepare_for_inference
from ..utils.config import find_config
from .inference import build_model, check_device, inference_pipeline, read_classes
from .inputs import InputImage


class BaseInferencer:
    """Runs a detector of mmdet or a segmentor of mmseg on images.

    Not a subclass of MMEngine's ``BaseInferencer``, which keeps the results of all images before
    it returns any, finds models by name only in a fixed list of packages, and unpickles
    checkpoints, which can run code.

    Args:
        model: A ``Config``, the path of a config file, or the name of a config of this package.
        weights: Path of a checkpoint, which is loaded with ``weights_only=True``. None gives random
            weights, with a warning.
        device: Device of the model; by default the GPU if there is one.
        dtype: ``'float32'``, or ``'bfloat16'`` or ``'float16'`` for autocast. Results are float32.
        fast: Whether to prepare the model by
            :func:`~hcformer_mm.acceleration.inference.prepare_for_inference`, which changes results
            by rounding.
        seed: Seed of random weights.

    Attributes:
        model: The model in evaluation mode; if ``fast``, its BatchNorm is fused into convolutions.
        classes: Names and colors of its classes.

    Raises:
        ValueError: No such config, device or ``dtype``, or the weights do not fit the config.
        FileNotFoundError: No such checkpoint.
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
            prepare_for_inference(self.model)
        self._file_pipeline = inference_pipeline(config)
        self._array_pipeline = inference_pipeline(config, arrays=True)

    def predict(
        self,
        images: list[InputImage] | Iterator[InputImage],
        *,
        batch_size: int = 1,
        progress: bool = False,
    ) -> Iterator[tuple[InputImage, BaseDataElement]]:
        """Run the model lazily, one batch at a time.

        Args:
            images: Images from :func:`~hcformer_mm.apis.inputs.open_images`.
            batch_size: Images per forward pass. mmseg batches only images of one size, so images of
                other sizes run separately; mmdet pads all images of a batch to the largest, which
                changes results slightly.
            progress: Whether to show a progress bar on standard error.

        Returns:
            Each image, in order, with its ``DetDataSample`` or ``SegDataSample`` on the CPU.

        Raises:
            ValueError: ``batch_size`` is below 1; while iterating, a file is not an image.
        """
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        return self._predict(images, batch_size, progress)

    def _predict(
        self, images: Iterable[InputImage], batch_size: int, progress: bool
    ) -> Iterator[tuple[InputImage, BaseDataElement]]:
        number = len(images) if isinstance(images, list) else 0  # 0: unknown
        bar = ProgressBar(number, file=sys.stderr) if progress else None
        stream = iter(images)
        while batch := list(islice(stream, batch_size)):
            yield from zip(batch, self._run(batch), strict=True)
            if bar is not None:
                bar.update(len(batch))
        if bar is not None:
            bar.file.write("\n")

    def _run(self, images: Sequence[InputImage]) -> list[BaseDataElement]:
        """Return the data samples of a batch on the CPU, floating-point values in float32."""
        batch = [self._prepare(image) for image in images]
        groups: Iterable[list[dict[str, Any]]] = [batch]
        if isinstance(self.model, BaseSegmentor):
            # mmseg's data preprocessor refuses a batch of several sizes.
            groups = (list(group) for _, group in groupby(batch, _input_size))
        with torch.inference_mode():
            samples = [sample for group in groups for sample in self._forward(group)]
        # Copied even on the CPU, since inference-mode tensors cannot be changed in place; by to(),
        # since cpu() skips fields that are not tensors, such as clusters.
        return [sample.to("cpu", copy=True) for sample in samples]

    def _forward(self, batch: list[dict[str, Any]]) -> list[BaseDataElement]:
        """Data samples of prepared images, on the model's device."""
        return autocast_test_step(self.model, self._dtype)(pseudo_collate(batch))

    def _prepare(self, image: InputImage) -> dict[str, Any]:
        """Run the test pipeline on an image."""
        if image.array is not None:
            return self._array_pipeline(dict(img=image.array, img_id=image.number))
        try:
            return self._file_pipeline(dict(img_path=str(image.path), img_id=image.number))
        except Exception:
            image.read()  # raises a clear error if the file cannot be read
            raise


def _input_size(prepared: dict[str, Any]) -> tuple[int, ...]:
    return tuple(prepared["inputs"].shape)
