"""Classes of a source: which are things, stuff or void."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ...utils.errors import InputError, some
from ..checks.coco import repeated

VOID_VALUES = frozenset({0, 255})


@dataclass(frozen=True)
class ClassMap:
    """Classes of a source.

    Attributes:
        things: Name of each class of objects by its key: a label, or a value of class maps.
        stuff: The same of the other classes.
        void: Keys whose pixels become void.
    """

    things: Mapping[Any, str]
    stuff: Mapping[Any, str]
    void: frozenset[Any] = frozenset()

    @property
    def names(self) -> list[str]:
        """Names of the classes in the order of their labels, things first."""
        return [*self.things.values(), *self.stuff.values()]

    def label(self, key: str | int, source: Path) -> int | None:
        """Label of the class of a key; None for void.

        Raises:
            InputError: The key, which the file ``source`` has, is unknown.
        """
        if key in self.void:
            return None
        keys = [*self.things, *self.stuff]
        if key not in keys:
            raise InputError(
                f"{source}: expected one of the classes {some(keys, 20)}, got {key!r}; add it to "
                "things, stuff or void of the file of classes"
            )
        return keys.index(key)

    def with_background(self, name: str) -> "ClassMap":
        """Return these classes, whose keys are their names, and one of stuff.

        Raises:
            InputError: It is one of things.
        """
        if name in self.things:
            raise InputError(f"expected a class of stuff as background, got {name}, one of things")
        return replace(self, stuff={**self.stuff, name: name})


def read_classes(path: Path, *, by_value: bool = False) -> ClassMap:
    """Read classes from a YAML or JSON file with lists ``things``, ``stuff`` and ``void``.

    Args:
        path: The file. Things and stuff may be mappings, too, from names to values of class maps.
        by_value: Whether keys are values; those of lists count from 1.

    Raises:
        InputError: The file has another form, or a class twice.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        parts = [content.pop(key, None) or [] for key in ("things", "stuff", "void")]
        things, stuff, void = parts
        names = keys = [*things, *stuff]
        if by_value and dict in map(type, (things, stuff)):
            keys = [*dict(things).values(), *dict(stuff).values()]
        elif by_value:
            keys = list(range(1, len(names) + 1))
        void = [*void] or [*VOID_VALUES.difference(keys)] * by_value
        fine = names and not content and all(isinstance(part, list | dict) for part in parts)
        fine = fine and all(isinstance(name, str) for name in names)
        fine = fine and all(isinstance(key, int if by_value else str) for key in (*keys, *void))
        fine = fine and not repeated(names) and not repeated((*keys, *void))
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        fine = False
    if not fine:
        raise InputError(
            f"expected {path} to have the lists things and stuff, and void if needed, with each "
            "class once, or mappings from names to values of class maps; correct the file"
        )
    pairs = list(zip(keys, names, strict=True))
    return ClassMap(dict(pairs[: len(things)]), dict(pairs[len(things) :]), frozenset(void))
