"""Inferencers under load: memory, threads, files, and several threads at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from mmengine.structures import BaseDataElement

from hcformer_mm.apis import ClusterInferencer, HCFormerInferencer
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG
from tests.helpers.predictions import scene


def varied_images(number, low=40, high=160):
    """Images of many sizes, ``(H, W, 3)`` uint8, BGR."""
    random = np.random.default_rng(0)
    whole = scene(0, (high, high))
    for _ in range(number):
        height, width = random.integers(low, min(whole.shape[:2]), 2)
        yield np.ascontiguousarray(whole[:height, :width])


def resources():
    """Numbers of threads and of open files of this process."""
    process = psutil.Process()
    return process.num_threads(), process.num_fds()


def tensors(sample):
    """All predicted tensors of a data sample."""
    return [
        tensor
        for value in sample.values()
        if isinstance(value, BaseDataElement)
        for tensor in value.values()
    ]


@pytest.mark.parametrize("path", [SHAPES_CONFIG, SEMANTIC_CONFIG])
def test_threads_share_an_inferencer(path, model_files, tmp_path):
    """And get what one gets, in samples and in files."""
    images = list(varied_images(8))
    inferencer = HCFormerInferencer(*model_files(path), "cpu")
    expected = inferencer(images)

    def run(number):
        return inferencer(images[number:] + images[:number], out_dir=tmp_path / str(number))

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(run, range(4))):
            for sample, other in zip(found, expected[number:] + expected[:number], strict=True):
                for one, two in zip(tensors(sample), tensors(other), strict=True):
                    assert torch.equal(one, two)
            written = tmp_path / str(number) / "vis"
            assert sorted(file.stem for file in written.iterdir()) == [str(i) for i in range(8)]


def test_threads_have_their_own_thresholds(model_files):
    images = list(varied_images(3))
    inferencer = HCFormerInferencer(*model_files(), "cpu")
    options = [
        dict(object_mask_thr=threshold, max_per_image=number)
        for threshold, number in ((0.1, 3), (0.9, 20), (0.99, 50), (0.999, 100))
    ]
    expected = [inferencer(images, **one) for one in options]
    assert len({len(samples[0].pred_instances) for samples in expected}) == 4
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda one: inferencer(images, **one), options)
        for samples, others in zip(found, expected, strict=True):
            for sample, other in zip(samples, others, strict=True):
                for one, two in zip(tensors(sample), tensors(other), strict=True):
                    assert torch.equal(one, two)


def test_threads_get_their_own_clusters(model_files):
    images = list(varied_images(4))
    inferencer = ClusterInferencer(*model_files(), "cpu")
    expected = inferencer(images)
    with ThreadPoolExecutor(4) as pool:
        for (found,), other in zip(pool.map(inferencer, images), expected, strict=True):
            for one, two in zip(found.labels(), other.labels(), strict=True):
                assert np.array_equal(one, two)


def test_neither_threads_nor_files_pile_up(model_files, tmp_path):
    inferencer = HCFormerInferencer(*model_files(), "cpu")
    for _ in inferencer.iterate(varied_images(4), out_dir=tmp_path / "first"):
        pass
    before = resources()
    for number in range(3):
        results = inferencer.iterate(varied_images(4), out_dir=tmp_path / str(number))
        for _ in results:
            if number == 2:
                break  # abandoned
        del results
    threads, files = resources()
    assert threads <= before[0] and files <= before[1]


@pytest.mark.slow
@pytest.mark.parametrize("path", [SHAPES_CONFIG, SEMANTIC_CONFIG])
def test_memory_stays_flat(path, model_files, tmp_path):
    """Less than 1 MB per 100 predictions of varied sizes, once allocators and caches are warm."""
    inferencer = HCFormerInferencer(*model_files(path), "cpu")
    process, sizes = psutil.Process(), []
    for number, _ in enumerate(inferencer.iterate(varied_images(500), out_dir=tmp_path)):
        if number >= 300:
            sizes.append(process.memory_info().rss)
    slope = np.polyfit(range(len(sizes)), sizes, 1)[0]
    assert slope * 100 < 1e6
