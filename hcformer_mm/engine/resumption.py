"""State of a training run besides its checkpoint: random numbers and the place in the data."""

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader, Sampler


def random_state() -> dict[str, Any]:
    """Return the state of the random number generators of this process.

    Returns:
        States of Python, NumPy, torch and, if there is one, the GPU. ``torch.load`` reads them
        without running code.
    """
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    state: dict[str, Any] = dict(
        python=random.getstate(), numpy=(name, keys.tolist(), *rest), torch=torch.get_rng_state()
    )
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the random number generators to what :func:`random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def data_order(loader: DataLoader) -> dict[str, Any]:
    """Return what the order of the images, and the random numbers of their pipeline, depend on."""
    batches: Any = loader.batch_sampler
    dataset: Any = loader.dataset
    return dict(
        seed=getattr(getattr(batches, "sampler", None), "seed", None),
        num_images=len(dataset),
        batch_size=getattr(batches, "batch_size", None),
        num_workers=loader.num_workers,
        num_processes=get_world_size(),
    )


def resume_data(
    loop: IterBasedTrainLoop | EpochBasedTrainLoop, seed: int | None, state: dict[str, Any] | None
) -> None:
    """Let a loop that starts at a later iteration go on with the images and random numbers there.

    No image before them is loaded. MMEngine starts an interrupted epoch again; an
    ``IterBasedTrainLoop`` loads and drops all earlier images, unless its release and its sampler
    can skip them.

    Args:
        loop: A loop that is about to ask for its first batch.
        seed: Seed of the sampler before the interruption; None keeps the present one.
        state: Random state at the interruption; None keeps the present one.
    """
    loader = loop.dataloader
    batch_sampler: Any = loader.batch_sampler
    sampler = getattr(batch_sampler, "sampler", None)
    if sampler is None:  # MMEngine's way for batches of unknown origin
        if state is not None:
            set_random_state(state)
        return
    if seed is not None and hasattr(sampler, "seed"):
        sampler.seed = seed
    if isinstance(loop, EpochBasedTrainLoop):
        batches = max(loop.iter - loop.epoch * len(loader), 0)
    elif isinstance(sampler, InfiniteSampler):
        sampler.indices = sampler._indices_of_rank()
        batches = loop.iter
    else:
        epoch, batches = divmod(loop.iter, len(loader))
        loop.dataloader_iterator._epoch = epoch
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
    if batches == 0 and state is not None:
        # A new pass over the data draws a seed for its workers first, as without an interruption.
        set_random_state(state)
        state = None
    batch_sampler.sampler = _LaterStart(sampler, batches * batch_sampler.batch_size, state)
    if isinstance(loop, IterBasedTrainLoop):
        iterator = loop.dataloader_iterator
        # The original releases have started the workers by now.
        iterator._iterator = iter(loader)
        # The forks advance nothing with this option.
        advances = not getattr(loop, "fast_forward_on_resume", False)
        loop.dataloader_iterator = _AlreadyAdvanced(iterator, loop.iter if advances else 0)


class _LaterStart(Sampler):
    """A sampler whose first pass leaves out indices, and sets a random state before the others."""

    def __init__(self, sampler: Any, start: int, state: dict[str, Any] | None) -> None:
        self.sampler = sampler
        self._start = start
        self._state = state

    def __iter__(self) -> Iterator[int]:
        start, self._start = self._start, 0
        if self._state is not None:
            set_random_state(self._state)
            self._state = None
        return islice(iter(self.sampler), start, None)

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)


class _AlreadyAdvanced:
    """MMEngine's endless iterator over batches, where advancing it to the first one does nothing.

    The forks call ``skip_iter``; the original releases ask for every batch up to the first one.
    """

    def __init__(self, batches: Iterator[Any], steps: int) -> None:
        self._batches = batches
        self._steps = steps

    def skip_iter(self, steps: int) -> None:
        self._steps -= steps

    def __next__(self) -> Any:
        if self._steps:
            self._steps -= 1
            return None
        return next(self._batches)
