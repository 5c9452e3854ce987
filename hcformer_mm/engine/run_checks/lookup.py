"""Classes that a config names."""

from typing import Any

from mmengine.registry import Registry


def class_of(registry: Registry, config: Any) -> type | None:
    """Return the class that ``type`` of a config names, or None if it is unknown."""
    kind = config.get("type") if isinstance(config, dict) else None
    if isinstance(kind, str):
        try:
            with registry.switch_scope_and_registry(None) as scoped:
                kind = scoped.get(kind)
        except (ImportError, KeyError, RuntimeError):
            return None  # MMEngine will tell.
    return kind if isinstance(kind, type) else None


def is_a(registry: Registry, config: Any, *classes: type) -> bool:
    """Return whether ``type`` of a config names one of the classes, or a class derived from one."""
    kind = class_of(registry, config)
    return kind is not None and issubclass(kind, classes)
