"""ClassCheckHook: refuse to run a model whose classes differ from the dataset's."""

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import nn

from ...registry import HOOKS


@HOOKS.register_module()
class ClassCheckHook(Hook):
    """Check, before anything runs, that model and datasets have the same classes.

    For mmdet's MaskFormer, ``num_things_classes`` and ``num_stuff_classes`` of ``panoptic_head``
    and ``panoptic_fusion_head`` have to match ``thing_classes`` and ``stuff_classes`` of the
    metainfo; in datasets without these, every class is a thing. For mmseg's EncoderDecoder,
    ``num_classes`` of ``decode_head`` and ``auxiliary_head`` has to match ``classes``. Other
    models, and datasets without ``classes``, are not checked.

    Fusion heads treat the first labels as things, so ``classes`` has to be ``thing_classes``
    followed by ``stuff_classes``. A COCO file has to contain all of them, because mmdet numbers
    labels by its categories.

    mmdet's ``NumClassCheckHook`` does not distinguish things from stuff, and checks only at the
    start of an epoch.
    """

    priority = "VERY_HIGH"

    def before_run(self, runner: Runner) -> None:
        """Check the datasets of the loops that are about to run.

        Raises:
            ValueError: Model and data, or two parts of the metainfo, contradict each other.
        """
        faults: list[str] = []
        for split in ("train", "val", "test"):
            # The attribute without underscore would build the loop.
            loop = getattr(runner, f"_{split}_loop")
            if isinstance(loop, BaseLoop):
                for dataset in _unwrap(loop.dataloader.dataset):
                    faults += _compare(_heads(runner.model), dataset, f"{split}_dataloader.dataset")
        if faults:
            raise ValueError("\n".join(("the classes do not match:", *faults)))


def _unwrap(dataset: Any) -> Iterator[Any]:
    """Yield the datasets inside MMEngine's wrappers, which repeat, concatenate or balance them."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from _unwrap(part)
    elif hasattr(dataset, "dataset"):
        yield from _unwrap(dataset.dataset)
    else:
        yield dataset


def _heads(model: nn.Module) -> dict[str, nn.Module]:
    """Return the heads that have a number of classes, by their keys in a config."""
    names = ("panoptic_head", "panoptic_fusion_head", "decode_head", "auxiliary_head")
    found: dict[str, nn.Module] = {}
    for name in names:
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):
            found |= {f"model.{name}.{index}": part for index, part in enumerate(head)}
        elif head is not None:
            found[f"model.{name}"] = head
    # Wrappers of distributed training and of test-time augmentation hold the model.
    if not found and isinstance(module := getattr(model, "module", None), nn.Module):
        return _heads(module)
    return found


def _compare(heads: dict[str, nn.Module], dataset: Any, key: str) -> Iterator[str]:
    """Yield a message for every contradiction between the heads and a dataset."""
    metainfo = getattr(dataset, "metainfo", {})
    classes = metainfo.get("classes")
    if classes is None or not heads:
        return
    name = f"{type(dataset).__name__} ({key})"
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
            if getattr(module, number) != len(names):
                yield (
                    f"{head}.{number} is {getattr(module, number)}, but {name} has {len(names)} "
                    f"{of}; set {head}.{number}={len(names)}, or correct {key}.metainfo"
                )
    if tuple(classes) != (*things, *stuff):
        yield (
            f"{name} has classes {tuple(classes)}, but its thing_classes and stuff_classes are "
            f"{tuple(things)} and {tuple(stuff)}; expected classes to be the things and then the "
            f"stuff: correct {key}.metainfo"
        )
    categories = getattr(dataset, "cat_ids", None)
    if categories is not None and len(categories) != len(classes):
        yield (
            f"{name} has {len(classes)} classes, but only {len(categories)} of them are categories "
            f"of {dataset.ann_file}; compare {key}.metainfo with its categories"
        )
