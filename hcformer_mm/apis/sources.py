"""Inputs by the thousand: folders in folders, lists, patterns, shards of WebDataset and videos."""

import os
import re
import tarfile
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from glob import glob, has_magic
from hashlib import sha256
from itertools import chain
from pathlib import Path, PurePosixPath

import mmcv
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..utils.errors import InputError
from .inputs import (
    VIDEO_EXTENSIONS,
    InputImage,
    RefusedImage,
    is_input,
    open_images,
    with_distinct_names,
)

SHARD, LIST = ".tar", ".txt"
"""Suffixes of shards and of lists of inputs."""

FILES = (*IMG_EXTENSIONS, *VIDEO_EXTENSIONS, SHARD)
"""Suffixes of the files that stand for images in folders."""

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Sources:
    """The images of several inputs, in order.

    Attributes:
        images: A list, if no input is a video; else an iterator, which reads frame by frame.
        total: Number of images; that of frames is an estimate in some formats of video.
        digest: SHA-256 of names and paths, which tells two sets of inputs apart.
    """

    images: list[InputImage] | Iterator[InputImage]
    total: int
    digest: str


@dataclass(frozen=True, eq=False)
class ShardImage(InputImage):
    """An image in a tar file, read where it lies and never extracted.

    Attributes:
        shard: The tar file.
        offset: Where the image begins in it, in bytes.
        size: Its length in bytes.
    """

    shard: Path = Path()
    offset: int = 0
    size: int = 0

    def _encoded(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def open_sources(inputs: Iterable[str | Path]) -> Sources:
    """List the images of inputs of any number.

    An input is an image, a video, a ``.tar`` shard of WebDataset, a folder with any of these at any
    depth, a ``.txt`` file with an input on each line that does not begin with ``#``, or a pattern
    of paths with ``*``, ``?``, ``[...]``, ``**`` for folders at any depth, and ranges such as
    ``{000..010}``. What a folder or a pattern finds is sorted by path. Of a shard, each member is
    an image whose suffix, from the first dot on, is that of an image.

    Names are those of :func:`~.inputs.open_images`, and ``<shard>/<key>`` in a shard. A listed file
    that does not exist, a shard without images, and a shard or a video that cannot be read are
    images that fail.

    Raises:
        ValueError: A folder, a list or a pattern has no images, or a shard is compressed.
        FileNotFoundError: No such input.
    """
    files = [
        InputImage(path.stem, number, path=path)
        for number, path in enumerate(chain.from_iterable(map(_files, inputs)))
    ]
    parts: list[Iterable[InputImage]] = []
    total, digest = 0, sha256()
    for file in with_distinct_names(files):
        assert file.path is not None
        suffix = file.path.suffix.lower()
        if suffix in VIDEO_EXTENSIONS and os.path.isfile(file.path):
            number = max(1, mmcv.VideoReader(str(file.path)).frame_cnt)
            parts.append(_frames(file))
            names = [f"{file.name} {number}"]
        else:
            part = list(_members(file)) if suffix == SHARD else [file]
            parts.append(part)
            number, names = len(part), [image.name for image in part]
        total += number
        digest.update(repr((os.path.abspath(file.path), names)).encode())
    images = (replace(one, number=n) for n, one in enumerate(chain.from_iterable(parts)))
    known = all(isinstance(part, list) for part in parts)
    return Sources(list(images) if known else images, total, digest.hexdigest())


def _files(item: str | Path, *, listed: bool = False) -> list[Path]:
    """Images, videos and shards of one input; ``listed`` in a list, or found by a pattern."""
    text, path = str(item), Path(item)
    # Of a name that is too long, methods of paths raise an error.
    if os.path.isfile(path):
        if path.name.lower().endswith(COMPRESSED):
            raise InputError(f"expected shards without compression, got {path}; decompress it")
        if listed or path.suffix.lower() != LIST:
            return [path]
        content = path.read_bytes().removeprefix(BOM_UTF8)
        lines = [os.fsdecode(line).strip() for line in content.splitlines()]
        found = [_files(line, listed=True) for line in lines if line and line[0] != "#"]
    elif os.path.isdir(path):
        found = [sorted(file for file in _walk(path) if is_input(file, FILES))]
    elif span := _RANGE.search(text):
        low, high = span.groups()
        numbers = (f"{number:0{len(low)}}" for number in range(int(low), int(high) + 1))
        paths = (f"{text[: span.start()]}{number}{text[span.end() :]}" for number in numbers)
        found = [_files(one, listed=listed) for one in paths]
    elif has_magic(text):
        found = [_files(one, listed=True) for one in sorted(glob(text, recursive=True))]
    elif listed:
        return [path]  # fails when it is read
    else:
        raise FileNotFoundError(f"no such image, folder, list, pattern, shard or video: {item}")
    if not any(found):
        raise InputError(f"expected images, shards or videos in {item}, got none")
    return list(chain.from_iterable(found))


def _walk(root: Path) -> Iterator[Path]:
    """Files in a folder at any depth, through links to other folders, without hidden folders."""
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        yield from map(here.joinpath, names)
        folders[:] = [name for name in folders if name[0] != "." and not _loops(here / name)]


def _loops(folder: Path) -> bool:
    """Whether a folder is a link to one around it."""
    around = (one.resolve() for one in folder.absolute().parents)
    return folder.is_symlink() and folder.resolve() in around


def _members(file: InputImage) -> Iterator[InputImage]:
    """Images of a shard."""
    assert file.path is not None
    reason = ""
    try:
        with tarfile.open(file.path, "r:") as shard:
            reason = "none of its members has the suffix of an image"
            for member in shard:
                # Nothing is written outside of the results, whatever a shard says.
                parts = (x for x in PurePosixPath(member.name).parts if x not in ("/", ".."))
                path = PurePosixPath(*parts)
                key, _, suffix = path.name.partition(".")
                if member.isfile() and key and f".{suffix.lower()}" in IMG_EXTENSIONS:
                    reason = ""
                    yield ShardImage(
                        f"{file.name}/{path.with_name(key)}",
                        file.number,
                        path=file.path / path,
                        shard=file.path,
                        offset=member.offset_data,
                        size=member.size,
                    )
    except (tarfile.TarError, OSError) as error:
        reason = str(error)
    if reason:
        yield _broken(file, reason)


def _frames(file: InputImage) -> Iterator[InputImage]:
    """Frames of a video, which is opened only when it is their turn."""
    assert file.path is not None
    try:
        for frame in open_images(file.path):
            yield replace(frame, name=f"{file.name}{frame.name.removeprefix(file.path.stem)}")
    except ValueError as error:
        yield _broken(file, error)


def _broken(file: InputImage, reason: object) -> RefusedImage:
    """What stands for the images of a shard or a video that cannot be read."""
    reason = f"expected a whole file, got {file.path}: {reason}; replace it"
    return RefusedImage(file.name, file.number, path=file.path, reason=reason)
