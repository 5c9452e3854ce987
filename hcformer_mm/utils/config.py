"""Configs: finding them, reading class names from them, and silencing what building logs."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope

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
        The same config, or None if it was itself the initialization by a checkpoint.
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


def dataset_meta_of(config: Config) -> dict[str, Any] | None:
    """Names and colors of the classes of a config's test set; None if it has no such set."""
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


@contextmanager
def logging_from(level: str) -> Iterator[None]:
    """Keep MMEngine's log to messages of a level and above.

    It logs of every parameter how it was initialized, and warns of every frozen one when an
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
