"""Build models, classes and test pipelines from configs, for inference."""

from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmseg.models.segmentors import BaseSegmentor
from torch import nn

from ..checkpoints.fit import load_weights
from ..checkpoints.io import load_checkpoint
from ..engine.run_checks.bands import band_faults
from ..models.heads import HCFormerFusionHead
from ..models.utils.post_processing import THRESHOLDS
from ..structures.panoptic import Classes
from ..utils.config import build_without_weights, dataset_meta_of, logging_from, tested_dataset
from ..utils.errors import InputError, some


class ResultOptions(TypedDict, total=False):
    """Options of the results of single images; for those left out or None the config's hold."""

    object_mask_thr: float | None
    """A query takes part in the panoptic result if its class probability is larger, 0 to 1."""
    iou_thr: float | None
    """A panoptic segment stays if it keeps this share of its query's mask or more, 0 to 1."""
    max_per_image: int | None
    """Number of the most probable pairs of a query and a class, of which instances are made."""
    confidence: bool
    """Whether to return the confidence of every pixel, as ``pred_confidence``."""


def build_model(
    config: Config,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> BaseModel:
    """Build the model of a config for inference in one process.

    Args:
        config: Full config of a detector of mmdet or a segmentor of mmseg.
        checkpoint: Path of the weights; None initializes them as for training from scratch.
        device: Device of the model.
        seed: Seed of random weights.

    Returns:
        The model in evaluation mode, SyncBN converted to BatchNorm. Its ``dataset_meta`` comes from
        the checkpoint, or else from the test set of the config; None if neither has it.

    Raises:
        ValueError: The config builds no detector or segmentor, or the checkpoint does not fit it.
    """
    if "model" not in config:
        raise ValueError(f"expected a config with a model, got {config.filename}")
    content: dict[str, Any] = {}
    if checkpoint is None:
        torch.manual_seed(seed)
    else:
        content = load_checkpoint(checkpoint)  # a broken file is told before the model is built
    model = build_without_weights(config)
    if not isinstance(model, BaseDetector | BaseSegmentor):
        raise ValueError(
            "expected a detector of mmdet or a segmentor of mmseg, got "
            f"{type(model).__name__} of {config.filename}"
        )
    if checkpoint is None:
        with logging_from("WARNING"):
            model.init_weights()
    else:
        fit = load_weights(model, content, checkpoint)
        if faults := fit.faults():
            raise InputError(
                f"{checkpoint} does not fit {config.filename}: {faults}; {fit.advice()}"
            )
    meta = content.get("meta") or {}
    model.dataset_meta = meta.get("dataset_meta") or dataset_meta_of(config)
    model = revert_sync_batchnorm(model)
    return model.to(device).eval()


def check_device(device: str | torch.device) -> None:
    """Raise a ValueError unless this machine has the device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"expected a device of this machine, got {device}: {reason}") from None


def read_classes(model: BaseModel) -> Classes:
    """Return class names and colors of a model that :func:`build_model` built.

    Raises:
        ValueError: Neither its checkpoint nor its config has them.
    """
    try:
        return Classes.from_metainfo(model.dataset_meta)
    except ValueError:
        raise ValueError(
            "expected dataset_meta with the classes in the checkpoint, or a test_dataloader in the "
            "config whose dataset names them, got neither"
        ) from None


def thresholds_of(model: nn.Module) -> dict[str, float]:
    """Thresholds that act on the results of a model, with the values that its config has."""
    head = getattr(model, "panoptic_fusion_head", None)
    if not isinstance(head, HCFormerFusionHead):
        return {}
    names = ["object_mask_thr", "iou_thr"] * head.test_cfg.get("panoptic_on", True)
    names += ["max_per_image"] * head.test_cfg.get("instance_on", False)
    return {name: {**THRESHOLDS, **head.test_cfg}[name] for name in names}


def result_config(
    model: nn.Module,
    *,
    object_mask_thr: float | None = None,
    iou_thr: float | None = None,
    max_per_image: int | None = None,
    confidence: bool = False,
) -> dict[str, Any]:
    """Return what the ``test_cfg`` in the metainfo of data samples overrides for these options.

    Scores of panoptic segments are enabled if the model has them. For the arguments besides the
    model, see :class:`ResultOptions`.

    Raises:
        ValueError: An option is out of its range, or the model lacks what it changes.
    """
    given: dict[str, Any] = dict(object_mask_thr=object_mask_thr, iou_thr=iou_thr)
    for name, share in given.items():
        if share is not None and not (
            isinstance(share, int | float | np.number) and 0 <= share <= 1
        ):
            raise ValueError(f"expected {name} from 0 to 1, got {share!r}")
    if max_per_image is not None and not (
        isinstance(max_per_image, int | np.integer) and max_per_image >= 1
    ):
        raise ValueError(f"expected max_per_image as an integer from 1 on, got {max_per_image!r}")
    given["max_per_image"] = max_per_image
    given = {name: value for name, value in given.items() if value is not None}
    acting = thresholds_of(model)
    if missing := given.keys() - acting.keys():
        raise ValueError(
            f"expected a model with {' and '.join(sorted(missing))}, which act on panoptic results "
            "(object_mask_thr, iou_thr) and instances (max_per_image) of an HCFormerFusionHead, "
            f"got {type(model).__name__} with {some(acting)}; other models have thresholds in "
            "their configs: use cfg_options"
        )
    panoptic = "object_mask_thr" in acting
    if confidence and not (panoptic or isinstance(model, BaseSegmentor)):
        raise ValueError(
            "expected a segmentor of mmseg or panoptic results of an HCFormerFusionHead for "
            f"confidence, got {type(model).__name__} with neither; leave confidence out"
        )
    flags = dict(segments_on=panoptic, confidence_on=confidence)
    return given | {name: True for name, on in flags.items() if on}


def inference_pipeline(config: Config) -> Compose:
    """Build the test pipeline of a config without the steps that load annotations.

    Its loader is :class:`~hcformer_mm.datasets.transforms.LoadImageFromFile`, which takes files
    under ``img_path`` and pixels under ``img``.

    Args:
        config: Full config.

    Raises:
        ValueError: The config has no test set, its pipeline does not begin by loading an image, or
            the model does not take its bands.
    """
    dataset = tested_dataset(config)
    if not dataset:
        raise ValueError(
            f"expected a test_dataloader with a pipeline, got none in {config.filename}"
        )
    steps = [step for step in dataset["pipeline"] if "Annotations" not in _type_name(step)]
    first = _type_name(steps[0]) if steps else "no steps"
    if not first.endswith("LoadImageFromFile"):
        raise ValueError(f"expected a pipeline that begins with LoadImageFromFile, got {first}")
    # Ours refuses truncated files, which OpenCV fills with gray, and reads more than 8 bits.
    steps[0] = {**steps[0], "type": "hcformer_mm.LoadImageFromFile"}
    for fault in band_faults(config, steps, "the test pipeline"):
        raise InputError(fault)
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmdet")):
        return Compose(steps)


def _type_name(step: dict[str, Any]) -> str:
    """Type name of a pipeline step; in new-style configs the type is the class itself."""
    kind = step["type"]
    return kind if isinstance(kind, str) else kind.__name__
