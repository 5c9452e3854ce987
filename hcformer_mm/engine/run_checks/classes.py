"""Classes: those of the model against those of a dataset, and the metainfo against itself."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .datasets import Part
from .findings import Findings


def heads_of(model: Any) -> dict[str, nn.Module]:
    """Return the heads that have a number of classes, by their keys in a config."""
    names = ("panoptic_head", "panoptic_fusion_head", "decode_head", "auxiliary_head")
    found: dict[str, nn.Module] = {}
    for name in names:
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):
            found |= {f"model.{name}.{index}": part for index, part in enumerate(head)}
        elif isinstance(head, nn.Module):
            found[f"model.{name}"] = head
    # Wrappers of distributed training and of test-time augmentation hold the model.
    if not found and isinstance(module := getattr(model, "module", None), nn.Module):
        return heads_of(module)
    return found


def metainfo_faults(metainfo: Any, key: str) -> Iterator[str]:
    """Yield a sentence for every fault of the names and colors that a config gives a dataset.

    Args:
        metainfo: ``metainfo`` of a dataset's config, as written there.
        key: Its key in the config.
    """
    if metainfo is None:
        return
    if not isinstance(metainfo, Mapping):
        yield f"expected a dict as {key}, such as dict(classes=('cat',)), got {metainfo!r}"
        return
    for name in ("classes", "thing_classes", "stuff_classes"):
        if name.upper() in metainfo:
            yield f"expected {key}.{name} in lower case, got {name.upper()}, which nothing reads"
        given = metainfo.get(name)
        if given is None or (isinstance(given, str) and Path(given).is_file()):
            continue  # MMEngine reads the names from the file
        if isinstance(given, str):
            yield f"expected a tuple of names as {key}.{name}, got {given!r}; write ({given!r},)"
        elif not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
            yield f"expected a tuple of names as {key}.{name}, got {given!r}"
        elif repeated := sorted({one for one in given if list(given).count(one) > 1}):
            yield f"expected each name once in {key}.{name}, got {', '.join(repeated)} repeatedly"
    classes, palette = metainfo.get("classes"), metainfo.get("palette")
    if (
        isinstance(classes, Sequence)
        and isinstance(palette, Sequence)
        and not isinstance(classes, str)
        and not isinstance(palette, str)
        and len(palette) not in (0, len(classes))
    ):
        yield (
            f"expected a color for each of the {len(classes)} classes in {key}.palette, got "
            f"{len(palette)} colors"
        )
    for color in palette if isinstance(palette, list | tuple) else ():
        if not isinstance(color, list | tuple) or len(color) != 3:
            yield f"expected red, green and blue of each color in {key}.palette, got {color!r}"
            return


def class_faults(
    heads: Mapping[str, nn.Module], dataset: Any, name: str, key: str
) -> Iterator[str]:
    """Yield a sentence for every contradiction between the heads and a dataset's metainfo.

    Args:
        heads: Heads of the model by key, as :func:`heads_of` finds them.
        dataset: A dataset of mmdet or mmseg, which may have read nothing yet.
        name: Name of the dataset in sentences.
        key: Key of the dataset in the config.
    """
    metainfo = getattr(dataset, "metainfo", {})
    classes = metainfo.get("classes")
    if classes is None or not heads:
        return
    if isinstance(classes, str):
        yield f"{name} has the classes {classes!r}; expected a tuple: ({classes!r},)"
        return
    things = metainfo.get("thing_classes", classes)
    stuff = metainfo.get("stuff_classes", ())
    for head, module in heads.items():
        expected = {"num_classes": ("classes", classes)}
        if head.startswith("model.panoptic"):
            expected = {
                "num_things_classes": ("thing_classes", things),
                "num_stuff_classes": ("stuff_classes", stuff),
            }
        for number, (of, names) in expected.items():
            found = getattr(module, number, len(names))
            if found != len(names):
                yield (
                    f"{head}.{number} is {found}, but {name} has {len(names)} "
                    f"{of}; set {head}.{number}={len(names)}, or correct {key}.metainfo"
                )
    if tuple(classes) != (*things, *stuff):
        yield (
            f"{name} has classes {tuple(classes)}, but its thing_classes and stuff_classes are "
            f"{tuple(things)} and {tuple(stuff)}; expected classes to be the things and then the "
            f"stuff: correct {key}.metainfo"
        )


def compare_classes(parts: Sequence[Part], found: Findings) -> None:
    """Compare the classes of the datasets of a run, whose labels mean the same to the model."""
    named = [part for part in parts if part.classes]
    for part in named[1:]:
        if part.classes != named[0].classes:
            same = sorted(part.classes) == sorted(named[0].classes)
            (found.faults if same else found.warnings).append(
                f"expected the classes of {part.key} and of {named[0].key} to be the same in the "
                f"same order, got {part.classes} and {named[0].classes}; correct their metainfo"
            )
