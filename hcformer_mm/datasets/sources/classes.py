"""Classes of a source: which are things, stuff or void."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ...utils.errors import InputError, some

Key = str | int

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

    def label(self, key: Key, source: Path) -> int | None:
        """Index of the class of a key, things first; None for void.

        Raises:
            InputError: The key, which the file ``source`` has, is unknown.
        """
        if key in self.void:
            return None
        keys = (*self.things, *self.stuff)
        if key not in keys:
            raise InputError(
                f"{source}: expected one of the classes {some(keys, 20)}, got {key!r}; add it to "
                "things, stuff or void of the file of classes"
            )
        return keys.index(key)

    def with_background(self, name: str) -> "ClassMap":
        """Return these classes and one of stuff, if it is not among them.

        Raises:
            InputError: It is one of things.
        """
        if name in self.things.values():
            raise InputError(f"expected a class of stuff as background, got {name}, one of things")
        extra = {} if name in self.stuff.values() else {name: name}
        return replace(self, stuff={**self.stuff, **extra})


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
        things, stuff, void = (content.pop(key, None) or () for key in ("things", "stuff", "void"))
        names = [*things, *stuff]
        keys: list[Any] = [*names]
        if by_value and (isinstance(things, Mapping) or isinstance(stuff, Mapping)):
            keys = [*dict(things).values(), *dict(stuff).values()]
        elif by_value:
            keys = list(range(1, len(names) + 1))
        left_out = frozenset(void or (VOID_VALUES.difference(keys) if by_value else ()))
        kind = int if by_value else str
        fine = names and all(isinstance(key, kind) for key in (*keys, *left_out))
        fine = fine and not content and len(left_out.union(keys)) == len(names) + len(left_out)
    except (yaml.YAMLError, AttributeError, TypeError, ValueError):
        fine = False
    if not fine:
        raise InputError(
            f"expected {path} to have the lists things and stuff, and void if needed, with each "
            "class once, or mappings from names to values of class maps; correct the file"
        )
    pairs = list(zip(keys, names, strict=True))
    return ClassMap(dict(pairs[: len(things)]), dict(pairs[len(things) :]), left_out)
