"""Predictions of mmdet's and mmseg's models that carry their clustering."""

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from hcformer_mm.models.utils.cluster_recorder import (
    ClusterRecorder,
    finest_stride,
    record_clusters,
)
from tests.helpers.models import data_sample, detector, seg_sample, segmentor


@pytest.fixture(scope="module")
def model():
    return detector(**{"panoptic_head.num_queries": 5}).eval()


def predict(model, *sizes, **options):
    """Predict images of several sizes, all of them twice as large originally."""
    torch.manual_seed(0)
    inputs = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes]
    samples = [data_sample(size, original=(2 * size[0], 2 * size[1]), **options) for size in sizes]
    with torch.no_grad():
        return model.test_step(dict(inputs=inputs, data_samples=samples))


def test_each_sample_gets_the_clusters_of_its_image(model):
    outputs = []
    handle = model.backbone.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with record_clusters(model):
        samples = predict(model, (60, 90), (50, 64))
    handle.remove()
    for i, (sample, size) in enumerate(zip(samples, [(60, 90), (50, 64)], strict=True)):
        clusters = sample.clusters
        assert (clusters.stride, clusters.input_size) == (4, size)
        assert clusters.image_size == (2 * size[0], 2 * size[1])
        assert [tuple(a.shape) for a in clusters.assignments] == [
            (9, 16, 24),
            (9, 8, 12),
            (9, 4, 6),
        ]
        for assignment, batch in zip(clusters.assignments, outputs[0].assignments, strict=True):
            assert torch.equal(assignment, batch[i])
        assert all(labels.shape == clusters.image_size for labels in clusters.labels())


def test_predictions_are_the_same_and_carry_nothing_afterwards(model):
    (plain,) = predict(model, (60, 90))
    with record_clusters(model):
        (recorded,) = predict(model, (60, 90))
    (later,) = predict(model, (60, 90))
    assert "clusters" not in plain and "clusters" not in later
    assert torch.equal(recorded.pred_panoptic_seg.sem_seg, plain.pred_panoptic_seg.sem_seg)
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_detached_after_an_error(model):
    with pytest.raises(KeyError), record_clusters(model):
        raise KeyError
    assert not model._forward_hooks and not model.backbone._forward_hooks


def test_data_samples_go_to_evaluators_and_other_devices(model):
    with record_clusters(model):
        (sample,) = predict(model, (64, 64))
    assert sample.to_dict()["clusters"] is sample.clusters
    assert all(assignment.is_meta for assignment in sample.to("meta").clusters.assignments)


def test_losses_are_left_alone(model):
    model.train()
    inputs = dict(
        inputs=torch.rand(1, 3, 64, 64), data_samples=[data_sample((64, 64))], mode="loss"
    )
    with record_clusters(model):
        assert "loss_cls" in model(**inputs)
    model.eval()


def test_segmentors_whole_and_in_windows():
    model = segmentor(**{"decode_head.num_queries": 5}).eval()
    sample = seg_sample(torch.zeros(64, 96, dtype=torch.long))
    inputs = dict(inputs=[torch.zeros(3, 64, 96, dtype=torch.uint8)], data_samples=[sample])
    with record_clusters(model), torch.no_grad():
        (predicted,) = model.test_step(dict(inputs))
        assert [labels.shape for labels in predicted.clusters.labels()] == [(64, 96)] * 3
        model.test_cfg = ConfigDict(mode="slide", crop_size=(64, 64), stride=(32, 32))
        with pytest.raises(ValueError, match=r"one call of the backbone, got 2: .*mode='whole'"):
            model.test_step(dict(inputs))


def test_flipped_images(model):
    sample = data_sample((64, 64))
    sample.set_metainfo(dict(flip=True, flip_direction="horizontal"))
    inputs = dict(inputs=[torch.zeros(3, 64, 64, dtype=torch.uint8)], data_samples=[sample])
    with record_clusters(model), torch.no_grad(), pytest.raises(ValueError, match="not flipped"):
        model.test_step(inputs)


def test_an_image_does_not_keep_its_batch(model):
    with record_clusters(model):
        samples = predict(model, (64, 64), (64, 64))
    for assignment in samples[0].clusters.assignments:
        assert assignment.untyped_storage().nbytes() == assignment.numel() * 4


def test_distributed_wrapper(model):
    class Wrapper(nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    with record_clusters(Wrapper(model)):
        (sample,) = predict(model, (64, 64))
    assert sample.clusters.num_levels == 3


def test_model_without_a_backbone():
    with pytest.raises(TypeError, match="with a backbone, got Linear"):
        ClusterRecorder(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("padded", "cells", "stride"),
    [((64, 96), (16, 24), 4), ((33, 41), (9, 11), 4), ((1, 1), (1, 1), 1), ((42, 56), (3, 4), 14)],
)
def test_finest_stride(padded, cells, stride):
    assert finest_stride(padded, cells) == stride


def test_cells_that_are_not_square():
    with pytest.raises(ValueError, match=r"square cells over an image of \(64, 64\), .* 16x8"):
        finest_stride((64, 64), (16, 8))
