"""BulkInferencer: results of many images, read and written beside the network."""

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice, repeat, takewhile
from typing import Any, TypeVar

from mmengine.structures import BaseDataElement
from typing_extensions import Unpack

from .hcformer_inferencer import HCFormerInferencer
from .inference import ResultOptions, result_config
from .inputs import InputImage
from .result_writer import Record, ResultWriter, failure
from .tiles import Tiling

LOOK_AHEAD = 4
"""Batches whose images are read together, so that those of one size share a batch."""

T = TypeVar("T")
R = TypeVar("R")

Prepared = tuple[InputImage, dict[str, Any]]
Refused = tuple[InputImage, str]
"""An image that cannot be read, and why."""


@dataclass(frozen=True)
class Share:
    """The images that one of several processes runs, in windows of some batches.

    Windows depend neither on the number of processes nor on what is done, and so batches do not.

    Attributes:
        batch_size: Images of one size per forward pass, at most.
        rank: Number of this process.
        world_size: Number of processes.
        done: Numbers of images whose results are there.
    """

    batch_size: int = 1
    rank: int = 0
    world_size: int = 1
    done: Collection[int] = frozenset()

    @property
    def window(self) -> int:
        """Number of images that are read together."""
        return 1 if self.batch_size == 1 else LOOK_AHEAD * self.batch_size

    def left(self, total: int) -> int:
        """How many of all images this process has to run."""
        return sum(number not in self.done for number in range(total) if self._mine(number))

    def windows(self, images: Iterable[InputImage]) -> Iterator[list[InputImage]]:
        """Yield the windows of this process with an image that is not done."""
        stream = iter(images)
        while window := list(islice(stream, self.window)):
            if self._mine(window[0].number) and any(one.number not in self.done for one in window):
                yield window

    def _mine(self, number: int) -> bool:
        return number // self.window % self.world_size == self.rank


class BulkInferencer(HCFormerInferencer):
    """Runs a model on many images, which threads can read, and whose results they can write.

    Images of one size share a batch, so that none is padded for another. For arguments and
    attributes, see :class:`~hcformer_mm.apis.base_inferencer.BaseInferencer`.
    """

    def records(
        self,
        images: Iterable[InputImage],
        writer: ResultWriter,
        share: Share = Share(),
        *,
        workers: int | None = None,
        tiling: Tiling | None = None,
        **options: Unpack[ResultOptions],
    ) -> Iterator[tuple[int, Record]]:
        """Segment images, write their PNG files, and yield their entries of the JSON files.

        Args:
            images: All images, in order, with their numbers in it.
            writer: It writes the PNG files and encodes the results.
            share: Which of them are to be run, and in which batches.
            workers: Threads that read and write; 0 does it in turn with the network. By default 2,
                but 0 on a CPU, where they would disturb the threads of operators.
            tiling: How to cut large images, which are read one at a time; None runs them whole.
            options: :class:`~hcformer_mm.apis.inference.ResultOptions`.

        Yields:
            Number and record of each image of the share that is not done; those of images that
            cannot be read say why.

        Raises:
            ValueError: An option is out of its range, or the model lacks what it changes.
        """
        result_config(self.model, **options)

        def prepare(window: list[InputImage]) -> list[Prepared | Refused]:
            prepared: list[Prepared | Refused] = []
            for image in map(self.bound, window):
                try:
                    prepared.append((image, self._prepare(image, **options)))
                except ValueError as error:
                    prepared.append((image, str(error)))
            return prepared

        def encode(item: tuple[InputImage, BaseDataElement | str]) -> tuple[int, Record]:
            image, result = item
            if isinstance(result, str):
                return image.number, failure(image, result)
            return image.number, writer.encode(image, result)

        if workers is None:
            workers = 0 if next(self.model.parameters()).device.type == "cpu" else 2
        windows = share.windows(images)
        with ExitStack() as stack:
            # Frames of a video must be read in order.
            reader, pool = (
                stack.enter_context(ThreadPoolExecutor(number)) if workers else None
                for number in (1, workers)
            )
            read = _ahead(reader, lambda _: next(windows, []), repeat(None), 2)
            prepared = _ahead(pool, prepare, takewhile(bool, read), 2)
            if tiling is None:
                results = self._results(prepared, share)
                yield from _ahead(pool, encode, results, share.batch_size + workers)
            else:
                results = self._tiled_results(windows, share, tiling, **options)
                yield from _ahead(pool, encode, results, 1)

    def _results(
        self, windows: Iterable[list[Prepared | Refused]], share: Share
    ) -> Iterator[tuple[InputImage, BaseDataElement | str]]:
        """Run the network; yield the images that are not done, with results or reasons."""
        failed: deque[Refused] = deque()

        def batches() -> Iterator[list[Prepared]]:
            for window in windows:
                by_size: defaultdict[tuple[int, ...], list[Prepared]] = defaultdict(list)
                for image, given in window:
                    if isinstance(given, str):
                        failed.append((image, given))
                    else:
                        by_size[tuple(given["inputs"].shape)].append((image, given))
                for group in by_size.values():
                    for start in range(0, len(group), share.batch_size):
                        batch = group[start : start + share.batch_size]
                        if any(image.number not in share.done for image, _ in batch):
                            yield batch

        for image, sample in self._predict(batches()):
            while failed:
                yield failed.popleft()
            if image.number not in share.done:
                if "seg_logits" in sample:
                    del sample.seg_logits  # hundreds of megabytes of a large image
                yield image, sample
        yield from failed

    def _tiled_results(
        self,
        windows: Iterable[list[InputImage]],
        share: Share,
        tiling: Tiling,
        **options: Unpack[ResultOptions],
    ) -> Iterator[tuple[InputImage, BaseDataElement | str]]:
        """Run the network on tiles; yield the images that are not done, with results or reasons."""
        for image in chain.from_iterable(windows):
            if image.number not in share.done:
                try:
                    yield from self.predict(
                        [image], batch_size=share.batch_size, tiling=tiling, **options
                    )
                except ValueError as error:
                    yield image, str(error)


def _ahead(
    pool: Executor | None, function: Callable[[T], R], items: Iterable[T], number: int
) -> Iterator[R]:
    """Yield the results of a function for each item, in order, some computed ahead in threads."""
    if pool is None:
        yield from map(function, items)
        return
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > number:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
