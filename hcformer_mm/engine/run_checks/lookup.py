"""Classes and metrics that a config names."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry


def class_of(registry: Registry, config: Any) -> type | None:
    """Return the class that ``type`` of a config names, or None if it is unknown."""
    kind = config.get("type") if isinstance(config, dict) else None
    if isinstance(kind, str):
        try:
            with registry.switch_scope_and_registry(config.get("_scope_")) as scoped:
                kind = scoped.get(kind)
        except (ImportError, KeyError, RuntimeError):
            return None  # MMEngine will tell.
    return kind if isinstance(kind, type) else None


def is_a(registry: Registry, config: Any, *classes: type) -> bool:
    """Return whether ``type`` of a config names one of the classes, or a class derived from one."""
    kind = class_of(registry, config)
    return kind is not None and issubclass(kind, classes)


def is_named(config: Any, *names: str) -> bool:
    """Return whether ``type`` of a config, a class or its name in any scope, is one of the names.

    Unlike :func:`is_a`, it needs no default scope, and the classes need not exist.
    """
    kind = config.get("type") if isinstance(config, dict) else None
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2] in names


def metrics_in(config: Config, split: str) -> Iterator[tuple[str, Any]]:
    """Yield the configs of the metrics of a split's evaluator, each with its key."""
    key = f"{split}_evaluator"
    evaluator = config.get(key)
    if isinstance(evaluator, dict) and "metrics" in evaluator:
        evaluator, key = evaluator["metrics"], f"{key}.metrics"
    if isinstance(evaluator, list | tuple):
        yield from ((f"{key}[{index}]", metric) for index, metric in enumerate(evaluator))
    elif isinstance(evaluator, dict):
        yield key, evaluator
