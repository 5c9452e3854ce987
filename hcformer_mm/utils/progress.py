"""A progress bar on terminals, and one line in logs; also for work in several processes."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from time import perf_counter
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
R = TypeVar("R")


def progress(
    iterable: Iterable[T], total: int | None = None, desc: str | None = None, unit: str = "it"
) -> Iterator[T]:
    """Yield the items of an iterable and show on standard error how far it is.

    A terminal gets a bar; a file or a pipe gets one line, once all items are done.

    Args:
        iterable: The items.
        total: Their number; by default the length of the iterable, if it has one.
        desc: What is done, such as ``'check images'``.
        unit: What an item is, such as ``' images'``.
    """
    # disable=None: disabled unless on a terminal
    bar = tqdm(iterable, desc, total, disable=None, unit=unit)
    start, done = perf_counter(), 0
    for item in bar:
        yield item
        done += 1
    if bar.disable:
        line = tqdm.format_meter(
            done, bar.total, perf_counter() - start, prefix=desc or "", unit=unit
        )
        print(line, file=sys.stderr)


def run_each(
    function: Callable[[T], R], tasks: Sequence[T], num_workers: int, desc: str
) -> Iterator[R]:
    """Yield the result of each task, in order, and show how far it is.

    Args:
        function: What is done with a task; it can be pickled.
        tasks: The tasks.
        num_workers: Processes that do them; 1 means this process.
        desc: What is done, such as ``'check files'``.

    Raises:
        ValueError: ``num_workers`` is below 1.
    """
    if num_workers < 1:
        raise ValueError(f"expected num_workers of at least 1, got {num_workers}")
    if num_workers == 1:
        yield from progress(map(function, tasks), len(tasks), desc)
    else:
        with ProcessPoolExecutor(num_workers) as pool:
            yield from progress(pool.map(function, tasks, chunksize=16), len(tasks), desc)
