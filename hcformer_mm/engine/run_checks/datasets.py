"""The datasets of a run, and where their files are."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO, COCOPanoptic
from mmengine.registry import DATASETS


@dataclass(frozen=True)
class Part:
    """A dataset without wrappers.

    Attributes:
        key: Its key in the config.
        config: Its config.
        dataset: The dataset, which has read nothing yet; None if it cannot be built like that.
    """

    key: str
    config: dict[str, Any]
    dataset: Any

    @property
    def name(self) -> str:
        """Name of the dataset in sentences."""
        return f"{type(self.dataset).__name__} ({self.key})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if they are not known."""
        classes = getattr(self.dataset, "metainfo", {}).get("classes", ())
        return () if isinstance(classes, str) else tuple(classes or ())

    @property
    def reads_coco(self) -> bool:
        """Whether MMDetection's own code reads a COCO file of this machine for the dataset."""
        dataset = self.dataset
        return (
            isinstance(dataset, CocoDataset)
            and type(dataset).load_data_list is CocoDataset.load_data_list
            and dataset.COCOAPI in (COCO, COCOPanoptic)
            and is_local(dataset.ann_file, dataset.backend_args)
        )


def parts_of(config: Any, key: str) -> Iterator[Part]:
    """Yield the datasets of a config inside wrappers that repeat, concatenate or balance them."""
    if not isinstance(config, dict):
        return
    if isinstance(config.get("datasets"), list | tuple):
        for index, part in enumerate(config["datasets"]):
            yield from parts_of(part, f"{key}.datasets[{index}]")
    elif isinstance(config.get("dataset"), dict):
        yield from parts_of(config["dataset"], f"{key}.dataset")
    elif "type" in config:
        yield Part(key, config, _build(config))


def _build(config: dict[str, Any]) -> Any:
    """Build a dataset that reads nothing, by the rules of its class for paths and metainfo."""
    try:
        return DATASETS.build({**config, "lazy_init": True, "pipeline": []})
    except Exception:
        # Any dataset of any package: if its config is wrong, the runner tells when it builds it.
        return None


def is_local(path: Any, backend_args: Any = None) -> bool:
    """Whether a path names a file or folder of this machine."""
    local = not backend_args or backend_args.get("backend") == "local"
    return isinstance(path, str | os.PathLike) and local and "://" not in str(path)


def absent(folder: str, names: Iterable[str]) -> list[str]:
    """Return the files that a folder lacks; a folder of many files is listed once."""
    by_folder = defaultdict(list)
    for name in names:
        by_folder[os.path.join(folder, os.path.dirname(name))].append(name)
    missing = []
    for path, some in by_folder.items():
        present = set(os.listdir(path)) if os.path.isdir(path) else set()
        missing += [name for name in some if os.path.basename(name) not in present]
    return missing


def folder_faults(folder: str, key: str, names: Iterable[str] = ()) -> Iterator[str]:
    """Yield a sentence if a folder, or a file that a dataset reads from it, does not exist.

    Args:
        folder: The folder.
        key: Its key in the config.
        names: Names of the files, relative to the folder.
    """
    if not Path(folder).is_dir():
        yield f"expected a folder as {key}, got {folder}, which does not exist; correct the path"
        return
    names = list(names)
    if missing := absent(folder, names):
        yield (
            f"expected {len(names)} files of the dataset in {folder} ({key}), got all but "
            f"{len(missing)}, such as {missing[0]}; correct the path, or add the files"
        )
