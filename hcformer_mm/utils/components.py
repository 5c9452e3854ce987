"""Sentences about classes that a config names, and that nothing registers or builds like that."""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from difflib import get_close_matches
from typing import Any

import mmengine.registry
from mmengine.registry import Registry

_NOT_REGISTERED = re.compile(r"(\S+) is not in the (?:\S+::)?(.+?) registry")
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def type_fault(name: str, registry: Registry, key: str) -> str:
    """Sentence about a type that no package has registered, with the names that are near.

    Args:
        name: The name that was not found.
        registry: The registry in which it was looked up.
        key: Key of the component in the config.
    """
    known: dict[str, list[str]] = {}
    for one in _with_children(registry.root):
        for registered in one.module_dict:
            known.setdefault(registered, []).append(f"{one.scope}.{registered}")
    near = nearest(name.rpartition(".")[2], known)
    return (
        f"expected the name of a registered {registry.root.name.replace('_', ' ')} as {key}.type, "
        f"got {name!r}{did_you_mean(one for part in near for one in known[part])}; correct it, or "
        "let custom_imports import the module that registers it"
    )


def _with_children(registry: Registry) -> Iterator[Registry]:
    yield registry
    for child in registry.children.values():
        yield from _with_children(child)


def setting_faults(
    build: Callable[..., Any], settings: Collection[str], given: Collection[str], key: str
) -> Iterator[str]:
    """Yield a sentence for settings that a class does not have, and for those that it lacks.

    Classes that pass settings on by ``**kwargs``, or whose constructor is decorated, are not
    checked: what they have cannot be known without building them.

    Args:
        build: The class, or a function in its place.
        settings: Names of its settings in the config.
        given: Names of the arguments that MMEngine adds.
        key: Its key in the config.
    """
    function = build.__init__ if inspect.isclass(build) else build
    if hasattr(function, "__wrapped__"):
        return
    try:
        parameters = inspect.signature(build).parameters
    except ValueError:  # of a class that is written in C
        return
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = {name: one for name, one in parameters.items() if one.kind in kinds}
    for name in settings:
        if name not in own:
            yield unknown_setting(build, name, key)
    needed = {name for name, one in own.items() if one.default is one.empty}
    for name in sorted(needed - {*settings, *given}):
        yield f"expected {key}.{name}, which {_name(build)} needs, got none; set it"


def unknown_setting(build: Callable[..., Any], name: str, key: str) -> str:
    """Sentence about a setting that a class does not have, with the names that are near.

    Args:
        build: The class, or a function in its place.
        name: The setting.
        key: Key of the class in the config.
    """
    constructors = [build]
    if inspect.isclass(build):
        constructors = [vars(one)["__init__"] for one in build.__mro__ if "__init__" in vars(one)]
    known = {part for one in constructors for part in inspect.signature(one).parameters}
    return (
        f"expected settings of {_name(build)} in {key}, got {name!r}"
        f"{did_you_mean(nearest(name, known))}; correct or remove it"
    )


def _name(build: Any) -> str:
    return getattr(build, "__name__", str(build))


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the names that a mistyped one may stand for, most similar first."""
    return get_close_matches(name, list(known), cutoff=0.75)


def did_you_mean(names: Iterable[str]) -> str:
    """Return the question whether one of these names was meant; empty without any."""
    near = list(names)[:3]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def unexpected_argument(error: Exception | None) -> str:
    """Name of the argument that a function does not have; empty if the error is another."""
    found = _UNEXPECTED.search(str(error)) if isinstance(error, TypeError) else None
    return found[1] if found else ""


def build_fault(error: Exception, settings: Any, key: str = "") -> str:
    """Sentence about an error that building a component raised.

    Args:
        error: The error, of MMEngine's registries or of the constructor of a class.
        settings: The config that was built; types and settings are looked up in it, at any depth.
        key: Its key in the whole config.
    """
    text = " ".join(str(error.args[0] if error.args else error).split())
    found = _NOT_REGISTERED.match(text) if isinstance(error, KeyError) else None
    if found and (registry := _registry(found[2])) is not None:
        places = (
            place
            for place, value in entries(settings, key)
            if isinstance(value, dict) and value.get("type") == found[1]
        )
        return type_fault(found[1], registry, next(places, key or "a part of the config"))
    name = unexpected_argument(error)
    places = (place for place, _ in entries(settings, key) if place.rpartition(".")[2] == name)
    place = next(places, key) if name else key
    return (
        f"expected settings{' of ' * bool(place)}{place} that can be built, got "
        f"{type(error).__name__}: {text}"
    )


def entries(settings: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings and everything in them, at any depth, each with its key."""
    yield key, settings
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from entries(value, f"{key}.{name}" if key else str(name))
    elif isinstance(settings, list | tuple):
        for index, value in enumerate(settings):
            yield from entries(value, f"{key}[{index}]")


def _registry(name: str) -> Registry | None:
    """Return MMEngine's registry of a name, which those of other packages have too."""
    roots = (one for one in vars(mmengine.registry).values() if isinstance(one, Registry))
    return next((r for r in roots if name in {one.name for one in _with_children(r)}), None)
