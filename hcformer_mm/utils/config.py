"""Look up configs by name, read or change parts of them, and build their models."""

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner

from .components import build_fault, did_you_mean, nearest
from .errors import InputError, some
from .paths import RESOURCES

CONFIGS = RESOURCES / "configs"
"""Configs of this package."""


def read_config(name: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read the config of a model.

    A warning tells overrides inside sections that neither the config nor MMEngine's runner has.

    Args:
        name: A path, name or ``package::path``, as for :func:`find_config`.
        options: Overrides, as ``--cfg-options`` gives them.

    Raises:
        ValueError: No such config, the file is no config of a model, or an override does not apply.
    """
    path = find_config(name)
    try:
        config = Config.fromfile(path)
    except FileNotFoundError as error:
        missing = Path(error.filename or str(error).partition('"')[2].partition('"')[0])
        near = nearest(missing.name, (file.name for file in missing.parent.glob("*.*")))
        raise InputError(
            f"expected all files that {path} reads, such as its _base_, got no {missing}"
            f"{did_you_mean(near)}; correct the path"
        ) from error
    except Exception as error:  # configs are code, which can raise anything
        raise InputError(f"expected a config in {path}, got {_describe(error)}") from error
    sections = {key.partition(".")[0] for key in options or {} if "." in key}
    read = {*config, *inspect.signature(Runner.__init__).parameters, "model_wrapper_cfg", "compile"}
    if unknown := sections - read:
        warnings.warn(
            f"expected overrides of sections of {path}, got {some(unknown)}, which nothing there "
            "reads; correct the names",
            stacklevel=2,
        )
    try:
        config.merge_from_dict(dict(options or {}))
    except (KeyError, TypeError, IndexError, ValueError, AssertionError) as error:
        raise InputError(
            f"expected overrides of {path} that apply to it, got {dict(options or {})}: "
            f"{_describe(error)}"
        ) from error
    if not isinstance(config.get("model"), dict):
        raise InputError(
            f"expected a config with a dict 'model', got {path} with "
            f"{', '.join(sorted(config.keys())) or 'nothing'}"
        )
    return config


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def zoo() -> dict[str, Path]:
    """Configs of this package by name, and by the aliases that its metafiles give them."""
    files = {file.stem: file for file in CONFIGS.glob("[!_]*/*.py")}  # without _base_
    return files | {
        alias: files[model["Name"]] for model in _listed() for alias in model.get("Alias", ())
    }


def _listed() -> list[dict[str, Any]]:
    """Models of the metafiles."""
    return [model for file in CONFIGS.glob("*/metafile.yml") for model in load(file)["Models"]]


def included_weights(config: Config) -> Path | None:
    """Weights that come with this package for one of its configs; None for any other config."""
    path = config.filename and Path(config.filename).resolve()
    found = (
        RESOURCES / model["Weights"]
        for model in _listed()
        if "Weights" in model and (RESOURCES / model["Config"]).resolve() == path
    )
    return next(found, None)


def find_weights(config: Config, checkpoint: str | Path | None = None) -> Path:
    """Return the path of a checkpoint, by default of the weights that come with this package.

    Raises:
        ValueError: None is given, and none comes with this package for the config.
    """
    found = included_weights(config) if checkpoint is None else Path(checkpoint)
    if found is None:
        known = ", ".join(alias for one in _listed() if "Weights" in one for alias in one["Alias"])
        raise InputError(
            f"expected a checkpoint for {config.filename}, got none: hcformer_mm comes with "
            f"weights of {known} only; train the model, or convert a released checkpoint as "
            "docs/converting.md shows"
        )
    return found


def find_config(name: str | Path) -> Path:
    """Path of a config file.

    MMEngine's own look-up of ``package::path`` needs the original distribution names; this one also
    works with the maintained forks.

    Args:
        name: A path; the name of a config of this package, such as
            ``'hcformer_r18_shapes-panoptic'``, or its alias, such as ``'hcformer_r50'``; or
            ``package::path`` for another package's config.

    Raises:
        ValueError: No such package or file.
    """
    named: dict[str, Path] = {}
    package, separator, relative = str(name).rpartition("::")
    if separator:
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise InputError(f"expected package::path of an installed package, got {str(name)!r}")
        own = package == "hcformer_mm"
        path = (CONFIGS if own else Path(spec.origin).parent / ".mim" / "configs") / relative
    else:
        path = Path(name)
        if not path.is_file():
            named = zoo()
            if path.name == str(name):
                path = named.get(path.name.removesuffix(".py"), path)
    if not path.is_file():
        known = {*named, *(file.stem for file in path.parent.glob("*.py"))}
        near = did_you_mean(nearest(path.name.removesuffix(".py"), known))
        raise InputError(
            f"expected a config file or package::path, got {str(name)!r}: {path} is no file, "
            f"and no config of that name comes with hcformer_mm{near}"
        )
    return path


def without_pretrained(config: Any) -> Any:
    """Remove all pretrained weights from a model's config, at any depth.

    Args:
        config: Config of a model; changed in place.

    Returns:
        The config, or None if it is itself the ``init_cfg`` of a checkpoint.
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


def build_without_weights(config: Config) -> BaseModel:
    """Build the model of a config; it neither loads pretrained weights nor initializes any.

    Raises:
        ValueError: A type is unknown, or does not accept its settings.
    """
    scope = config.get("default_scope", "mmdet")
    with DefaultScope.overwrite_default_scope(scope), naming(config):
        return MODELS.build(without_pretrained(deepcopy(config.model)))


@contextmanager
def naming(config: Config) -> Iterator[None]:
    """Turn the errors of settings that registries do not accept into one that names the config."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{config.filename}: {build_fault(error, dict(config))}") from error


def dataset_meta_of(config: Config) -> dict[str, Any] | None:
    """Class names and colors of a config's test set (``metainfo``); None without a test set."""
    dataset = tested_dataset(config)
    if not dataset:
        return None
    scope = config.get("default_scope", "mmdet")
    # A type without a scope belongs to the default scope of the config.
    with DefaultScope.overwrite_default_scope(scope), DATASETS.switch_scope_and_registry(None) as r:
        kind: Any = r.get(dataset["type"]) if isinstance(dataset["type"], str) else dataset["type"]
    return {**kind.METAINFO, **dataset.get("metainfo", {})}


def tested_dataset(config: Config) -> dict[str, Any] | None:
    """Config of the test dataset without wrappers around it; None if there is none."""
    dataset = config.get("test_dataloader", {}).get("dataset")
    while dataset and "pipeline" not in dataset:
        dataset = dataset.get("dataset")
    return dataset


@contextmanager
def logging_from(level: str) -> Iterator[None]:
    """Let MMEngine log only messages of a level and above while the context is active.

    By default it logs how every parameter is initialized, and warns about each frozen one when it
    builds an optimizer.

    Args:
        level: Level name of Python's logging, such as ``'WARNING'``.
    """
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
