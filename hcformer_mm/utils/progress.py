"""A progress bar on terminals, and one line in logs."""

import sys
from collections.abc import Iterable, Iterator
from time import perf_counter
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    iterable: Iterable[T], total: int | None = None, desc: str | None = None
) -> Iterator[T]:
    """Yield the items of an iterable and show on standard error how far it is.

    A terminal gets a bar; a file or a pipe gets one line, once all items are done.

    Args:
        iterable: The items.
        total: Their number; by default the length of the iterable, if it has one.
        desc: What is done, such as ``'check images'``.
    """
    bar = tqdm(iterable, desc, total, disable=None)  # None: disabled unless on a terminal
    start, done = perf_counter(), 0
    for item in bar:
        yield item
        done += 1
    if bar.disable:
        line = tqdm.format_meter(done, bar.total, perf_counter() - start, prefix=desc or "")
        print(line, file=sys.stderr)
