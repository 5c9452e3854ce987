"""Random states and the place in the data come back as they were."""

import random

import numpy as np
import pytest
import torch

from hcformer_mm.checkpoints.io import load_checkpoint
from hcformer_mm.engine.resumption import random_state, resume_data, set_random_state
from tests.helpers.training import noisy_runner


def draw():
    """Numbers of every generator; the second of two Gaussian numbers comes from a cache."""
    return [
        *(random.random(), random.gauss(0, 1), np.random.randn(), np.random.rand()),
        *torch.randn(3).tolist(),
    ]


def test_random_state(tmp_path):
    """It goes through a checkpoint that loads without running code."""
    random.gauss(0, 1)
    np.random.randn()
    torch.save(dict(state=random_state()), tmp_path / "state.pth")
    expected = draw()
    assert draw() != expected
    set_random_state(load_checkpoint(tmp_path / "state.pth")["state"])
    assert draw() == expected


class OriginalIterator:
    """The iterator of MMEngine's original releases, which starts with its loop and cannot skip."""

    def __init__(self, dataloader):
        self._iterator = iter(dataloader)

    def __next__(self):
        return next(self._iterator)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("family", ["forks", "originals"])
@pytest.mark.parametrize("sampler", ["InfiniteSampler", "DefaultSampler"])
def test_only_images_after_the_interruption_are_loaded(sampler, family, num_workers, tmp_path):
    steps = 3  # of the four that an epoch has
    loader = dict(
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        sampler=dict(type=sampler, shuffle=True),
    )
    loop = noisy_runner(tmp_path, loader=loader).train_loop
    expected = [next(loop.dataloader_iterator)["index"] for _ in range(steps + 1)][-1]
    if family == "originals":
        loop.dataloader_iterator = OriginalIterator(loop.dataloader)
    dataset = loop.dataloader.dataset
    loaded, prepare = [], dataset.prepare_data
    dataset.prepare_data = lambda index: loaded.append(index) or prepare(index)
    loop._iter = steps
    resume_data(loop, None, None)
    if family == "originals":
        for _ in range(steps):
            next(loop.dataloader_iterator)
    else:
        loop.dataloader_iterator.skip_iter(steps)
    assert next(loop.dataloader_iterator)["index"] == expected
    if not num_workers:  # else they load in their own process
        assert loaded == expected
