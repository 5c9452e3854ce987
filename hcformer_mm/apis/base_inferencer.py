"""BaseInferencer: run a model with its test pipeline on images, in batches."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial, wraps
from itertools import groupby, islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import cv2
import torch
from mmdet.models.dense_heads import MaskFormerHead
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement, PixelData
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor
from typing_extensions import Unpack

from ..acceleration.inference import autocast_test_step, check_dtype, prepare_for_inference
from ..models.utils.post_processing import semantic_confidence
from ..utils.config import included_weights, read_config
from ..utils.progress import progress as show_progress
from ..visualization.fonts import fonts_for
from .inference import (
    ResultOptions,
    build_model,
    check_device,
    inference_pipeline,
    read_classes,
    result_config,
)
from .inputs import InputImage
from .tiles import Tiling
from .tiling import predict_tiled

P = ParamSpec("P")
T = TypeVar("T")

SHRINKAGE = 4
"""Inferencers warn of images whose side the test pipeline makes this many times shorter."""


class BaseInferencer:
    """Runs a detector of mmdet or a segmentor of mmseg on images.

    Not a subclass of MMEngine's ``BaseInferencer``, which keeps the results of all images before
    it returns any, finds models by name only in a fixed list of packages, and unpickles
    checkpoints, which can run code.

    Args:
        model: A ``Config``, the path of a config file, or the name of a config of this package.
        weights: Path of a checkpoint, which is loaded with ``weights_only=True``. None loads the
            weights that come with this package, as those of ``hcformer_tiny_shapes`` do; any other
            model gets random ones, with a warning.
        device: Device of the model; by default the GPU if there is one.
        dtype: ``'float32'``, or ``'bfloat16'`` or ``'float16'`` for autocast. Results are float32.
        fast: Whether to prepare the model by
            :func:`~hcformer_mm.acceleration.inference.prepare_for_inference`, which changes results
            by rounding.
        seed: Seed of random weights.
        cfg_options: Overrides of the config, as ``--cfg-options`` gives them.
        font: Font file of the class names in drawings; see
            :class:`~hcformer_mm.structures.panoptic.Classes`.

    Attributes:
        model: The model in evaluation mode; if ``fast``, its BatchNorm is fused into convolutions.
        classes: Names and colors of its classes.

    Raises:
        ValueError: No such config, device, ``dtype`` or font, or the weights do not fit the config.
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
        cfg_options: Mapping[str, Any] | None = None,
        font: str | None = None,
    ) -> None:
        fonts_for((), font)  # refuses a file that is no font
        self._dtype = check_dtype(dtype)
        if isinstance(model, Config) and cfg_options:
            raise ValueError(
                "expected the name or path of a config for cfg_options, got a Config; change it by "
                "its merge_from_dict"
            )
        config = model if isinstance(model, Config) else read_config(model, cfg_options)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(device)
        weights = included_weights(config) if weights is None else weights
        if weights is None:
            warnings.warn(
                f"no weights are given for {config.filename}: its predictions are random",
                stacklevel=2,
            )
        self.model = build_model(config, weights, device=device, seed=seed)
        self.classes = replace(read_classes(self.model), font=font)
        if fast:
            prepare_for_inference(self.model)
        self._pipeline = inference_pipeline(config)

    def predict(
        self,
        images: list[InputImage] | Iterator[InputImage],
        *,
        batch_size: int = 1,
        progress: bool = False,
        strict: bool = False,
        tiling: Tiling | None = None,
        on_failure: Callable[[InputImage, str], None] = lambda image, reason: None,
        **options: Unpack[ResultOptions],
    ) -> Iterator[tuple[InputImage, BaseDataElement]]:
        """Run the model lazily, one batch at a time.

        At the end it warns of images that the test pipeline has shrunk to a quarter or less, and of
        predictions that are not finite.

        Args:
            images: Images from :func:`~hcformer_mm.apis.inputs.open_images`.
            batch_size: Images per forward pass. mmseg batches only images of one size, so images of
                other sizes run separately; mmdet pads all images of a batch to the largest, which
                changes the results of the others; ``docs/inference.md`` tells how much.
            progress: Whether to show a progress bar on standard error.
            strict: Whether a file that is not a whole image is an error. By default it is skipped
                with a warning, unless it is the only one.
            tiling: How to cut large images; None runs them whole. The tiles of an image go through
                the network in batches and have a progress bar; see
                :func:`~hcformer_mm.apis.tiling.predict_tiled`.
            on_failure: Called with each skipped image and the reason.
            options: :class:`~hcformer_mm.apis.inference.ResultOptions`.

        Returns:
            Each image, in order, with its ``DetDataSample`` or ``SegDataSample`` on the CPU.

        Raises:
            ValueError: ``batch_size`` is below 1, or an array is not what the model takes; while
                iterating, if ``strict``, a file is not a whole image, else none is.
        """
        if batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {batch_size}")
        result_config(self.model, **options)  # refuses wrong options before an image is read
        total = len(images) if isinstance(images, list) else None
        images = map(self.bound, images) if total is None else [*map(self.bound, images)]
        skip = partial(_skip_refused, images, strict=strict or total == 1, on_failure=on_failure)
        if tiling is not None:
            threshold = getattr(getattr(self.model, "decode_head", None), "threshold", None)
            run = partial(
                self.predict, batch_size=batch_size, progress=progress, strict=True, **options
            )
            return skip(partial(predict_tiled, tiling=tiling, predict=run, threshold=threshold))
        prepared = skip(partial(self._prepare, **options))
        results = self._predict(iter(lambda: list(islice(prepared, batch_size)), []))
        return show_progress(results, total) if progress else results

    def bound(self, image: InputImage) -> InputImage:
        """Return an image that is read as the config says.

        Raises:
            ValueError: Its array is not what the model takes.
        """
        loader = self._pipeline.transforms[0]
        if image.array is not None and image.decode != loader.decode:  # else it is a part of one
            loader.check(image.array, image.source)
        return replace(image, decode=loader.decode, rgb=loader.rgb)

    def _predict(
        self, batches: Iterator[list[tuple[InputImage, dict[str, Any]]]]
    ) -> Iterator[tuple[InputImage, BaseDataElement]]:
        shrunk, not_finite = _Cases(), _Cases()
        try:
            for prepared in batches:
                for image, given in prepared:
                    whole, size = (given["data_samples"].get(f"{x}_shape") for x in ("ori", "img"))
                    if any(old >= SHRINKAGE * new for old, new in zip(whole, size, strict=True)):
                        shrunk.add(f"{image.source} from {whole} to {size}")
                samples = self._run([given for _, given in prepared])
                for (image, _), sample in zip(prepared, samples, strict=True):
                    if not _is_finite(sample):
                        not_finite.add(image.source)
                    yield image, sample
        finally:
            shrunk.warn(
                f"images became {SHRINKAGE} times shorter or more in a side before the model saw "
                "them, so that small objects vanish; give the model crops, or increase the scale "
                "of Resize in the config's test pipeline"
            )
            not_finite.warn(
                "images have predictions that are not finite and mean nothing; check the "
                "checkpoint, or use dtype='float32'"
            )

    def _run(self, batch: list[dict[str, Any]]) -> list[BaseDataElement]:
        """Return the data samples of prepared images on the CPU, floating-point values float32."""
        groups: Iterable[list[dict[str, Any]]] = [batch] if batch else []
        if isinstance(self.model, BaseSegmentor):
            # mmseg's data preprocessor refuses a batch of several sizes.
            groups = (list(group) for _, group in groupby(batch, _input_size))
        with torch.inference_mode():
            samples = [sample for group in groups for sample in self._forward(group)]
            for sample in samples:
                if "seg_logits" in sample and sample.get("test_cfg", {}).get("confidence_on"):
                    self._add_confidence(sample)
        # Copied even on the CPU, since inference-mode tensors cannot be changed in place; by to(),
        # since cpu() skips fields that are not tensors, such as clusters.
        return [sample.to("cpu", copy=True) for sample in samples]

    def _add_confidence(self, sample: BaseDataElement) -> None:
        """Add ``pred_confidence`` to a data sample of mmseg."""
        confidence = semantic_confidence(
            sample.seg_logits.data,
            sample.pred_sem_seg.data,
            are_scores=isinstance(self.model.decode_head, MaskFormerHead),
        )
        sample.pred_confidence = PixelData(data=confidence)

    def _forward(self, batch: list[dict[str, Any]]) -> list[BaseDataElement]:
        """Data samples of prepared images, on the model's device."""
        return autocast_test_step(self.model, self._dtype)(pseudo_collate(batch))

    def _prepare(self, image: InputImage, **options: Unpack[ResultOptions]) -> dict[str, Any]:
        """Run the test pipeline on an image.

        Raises:
            ValueError: Its file is not a whole image, or the pipeline cannot resize it.
        """
        try:
            path = image.path and str(image.path)
            # Threads share the pipeline, and steps such as mmseg's ResizeShortestEdge store the
            # size of an image in themselves.
            pipeline = deepcopy(self._pipeline)
            given = pipeline(dict(img=image.read(), img_path=path, img_id=image.number))
        except cv2.error as error:
            raise ValueError(
                f"expected an image that the test pipeline can resize, got {image.source} of "
                f"{image.read().shape[:2]}: {error.err}"
            ) from None
        except ValueError as error:
            if image.source in str(error):
                raise
            raise ValueError(f"{image.source}: {error}") from None  # it names the file None
        if config := result_config(self.model, **options):
            given["data_samples"].set_metainfo(dict(test_cfg=config))
        return given


def _skip_refused(
    images: Iterable[InputImage],
    function: Callable[[InputImage], T],
    *,
    strict: bool,
    on_failure: Callable[[InputImage, str], None],
) -> Iterator[tuple[InputImage, T]]:
    """Yield each image with the result of a function, without those that it refuses."""
    done = skipped = 0
    for image in images:
        try:
            result = function(image)
        except ValueError as error:
            if strict:
                raise
            warnings.warn(f"skipped: {error}", stacklevel=2)
            on_failure(image, str(error))
            skipped += 1
        else:
            done += 1
            yield image, result
    if skipped and not done:
        raise ValueError(f"expected an image that can be read, got none among {skipped} files")


def listed(function: Callable[P, Iterator[T]]) -> Callable[P, list[T]]:
    """Return a function with the same arguments that returns all results as a list."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> list[T]:
        return list(function(*args, **kwargs))

    return call


@dataclass
class _Cases:
    """Number of images that something happened to, and the first of them."""

    number: int = 0
    first: str = ""

    def add(self, case: str) -> None:
        self.first = self.first or case
        self.number += 1

    def warn(self, what: str) -> None:
        if self.number:
            warnings.warn(f"{what}: {self.number}, the first {self.first}", stacklevel=3)


def _is_finite(element: BaseDataElement) -> bool:
    """Whether all floating-point values of a data sample, such as scores, are finite."""
    for value in element.values():
        if isinstance(value, BaseDataElement):
            if not _is_finite(value):
                return False
        elif isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            return False
    return True


def _input_size(prepared: dict[str, Any]) -> tuple[int, ...]:
    return tuple(prepared["inputs"].shape)
