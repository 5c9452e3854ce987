"""From the name of a config and a checkpoint to a model and to what it needs to see a picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmseg.models.segmentors import BaseSegmentor

from ..visualization import Classes
from .checkpoint import load_checkpoint

CONFIGS = Path(__file__).resolve().parents[1] / ".mim" / "configs"
"""The configs that come with this package."""


def find_config(name: str | Path) -> Path:
    """The file of a config: a path, a name of the zoo, or ``package::path``.

    MMEngine's own resolution asks for the original names of the distributions; this one looks where
    the package is installed, whatever its distribution is called.

    Args:
        name: The path of a file; the name of a config of this package, such as
            ``'hcformer_r18_shapes-panoptic'``; or ``package::path`` for one that comes with
            another package.

    Raises:
        ValueError: There is no such package or file.
    """
    package, separator, relative = str(name).rpartition("::")
    if separator:
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise ValueError(f"expected package::path of an installed package, got {str(name)!r}")
        path = Path(spec.origin).parent / ".mim" / "configs" / relative
    else:
        path = Path(name)
        if not path.is_file() and path.name == str(name):
            path = _zoo().get(path.name.removesuffix(".py"), path)
    if not path.is_file():
        raise ValueError(
            f"expected a config file or package::path, got {str(name)!r}: no {path}, and no config "
            "of that name comes with hcformer_mm"
        )
    return path


def _zoo() -> dict[str, Path]:
    """Configs of this package by name, without the bases that they inherit."""
    return {path.stem: path for path in CONFIGS.glob("[!_]*/*.py")}


def without_pretrained(config: Any) -> Any:
    """Take every mention of pretrained weights out of a model's config, however deep it stands.

    Args:
        config: Config of a model; changed in place.

    Returns:
        The same config, or None if it was itself the initialisation by a checkpoint.
    """
    if isinstance(config, dict):
        kind = config.get("type")
        if getattr(kind, "__name__", kind) in ("Pretrained", "PretrainedInit"):
            return None
        if config.get("pretrained"):
            config["pretrained"] = None
        for key, value in config.items():
            if isinstance(value, dict | list):
                config[key] = without_pretrained(value)
    elif isinstance(config, list):
        kept = [without_pretrained(value) for value in config]
        config[:] = [new for new, old in zip(kept, config, strict=True) if new is old]
    return config


def build_model(
    config: Config,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> BaseModel:
    """Build the model of a config for inference in one process.

    Args:
        config: A whole config of a detector or segmentor.
        checkpoint: Weights; by default they are random, initialised as for training from scratch.
        device: Where the model is put.
        seed: Seed of the random weights.

    Returns:
        The model in evaluation mode, without synchronised normalisation. Its ``dataset_meta`` are
        the classes as the checkpoint names them, or else as the config's test set does; None where
        neither knows.

    Raises:
        ValueError: The config is of another kind of model, or the checkpoint does not fit it.
    """
    if "model" not in config:
        raise ValueError(f"expected a config with a model, got {config.filename}")
    if checkpoint is None:
        torch.manual_seed(seed)
    scope = config.get("default_scope", "mmdet")
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(without_pretrained(deepcopy(config.model)))
    if not isinstance(model, BaseDetector | BaseSegmentor):
        raise ValueError(
            "expected a detector of mmdet or a segmentor of mmseg, got "
            f"{type(model).__name__} of {config.filename}"
        )
    meta: dict[str, Any] = {}
    if checkpoint is None:
        with logging_from("WARNING"):
            model.init_weights()
    else:
        content = load_checkpoint(checkpoint)
        try:
            model.load_state_dict(content.get("state_dict", content))
        except RuntimeError as error:
            raise ValueError(f"{checkpoint} does not fit {config.filename}: {error}") from None
        meta = content.get("meta") or {}
    model.dataset_meta = meta.get("dataset_meta") or dataset_meta_of(config)
    model = revert_sync_batchnorm(model)
    return model.to(device).eval()


@contextmanager
def logging_from(level: str) -> Iterator[None]:
    """Keep MMEngine's log to messages of a level and above.

    It logs of every parameter how it was initialised, and warns of every frozen one when an
    optimizer is built; nobody reads that on a screen.

    Args:
        level: A level of Python's logging, such as ``'WARNING'``.
    """
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def check_device(device: str | torch.device) -> None:
    """Raise a ValueError unless there is such a device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"expected a device of this machine, got {device}: {reason}") from None


def dataset_meta_of(config: Config) -> dict[str, Any] | None:
    """Names and colours of the classes of a config's test set; None if it has no such set."""
    dataset = _test_set(config)
    if not dataset:
        return None
    scope = config.get("default_scope", "mmdet")
    # The type may be without a scope, and is then of the config's default one.
    with DefaultScope.overwrite_default_scope(scope), DATASETS.switch_scope_and_registry(None) as r:
        kind: Any = r.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    return {**kind.METAINFO, **dataset.get("metainfo", {})}


def _test_set(config: Config) -> dict[str, Any] | None:
    """Config of the dataset that is tested on, without wrappers around it."""
    dataset = config.get("test_dataloader", {}).get("dataset")
    while dataset and "pipeline" not in dataset:
        dataset = dataset.get("dataset")
    return dataset


def read_classes(model: BaseModel) -> Classes:
    """Names and colours of the classes of a model of :func:`build_model`.

    Raises:
        ValueError: Neither its checkpoint nor its config named them.
    """
    try:
        return Classes.from_metainfo(model.dataset_meta)
    except ValueError:
        raise ValueError(
            "expected dataset_meta with the classes in the checkpoint, or a test_dataloader in the "
            "config whose dataset names them, got neither"
        ) from None


def inference_pipeline(config: Config, *, arrays: bool = False) -> Compose:
    """The pipeline of a config's test set without what reads ground truth: pictures may have none.

    Args:
        config: A whole config.
        arrays: Whether pictures are given as arrays under ``img`` instead of files under
            ``img_path``.

    Raises:
        ValueError: The config has no test set, or its pipeline does not begin with a picture.
    """
    dataset = config.get("test_dataloader", {}).get("dataset")
    while dataset and "pipeline" not in dataset:
        dataset = dataset.get("dataset")
    if not dataset:
        raise ValueError(
            f"expected a test_dataloader with a pipeline, got none in {config.filename}"
        )
    steps = [step for step in dataset["pipeline"] if "Annotations" not in _type_name(step)]
    if arrays:
        first = _type_name(steps[0]) if steps else "no steps"
        if not first.endswith("LoadImageFromFile"):
            raise ValueError(
                "expected a pipeline that begins with LoadImageFromFile, to take arrays in its "
                f"place, got {first}"
            )
        steps[0] = dict(type="mmdet.LoadImageFromNDArray")
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmdet")):
        return Compose(steps)


def _type_name(step: dict[str, Any]) -> str:
    """Type of a step of a pipeline, which new-style configs name by the class itself."""
    kind = step["type"]
    return kind if isinstance(kind, str) else kind.__name__
