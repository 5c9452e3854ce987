"""Predictions of validation and test loops carry clusters, and no others do."""

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from hcformer_mm.structures.image_clusters import ImageClusters
from tests.helpers.models import data_sample, detector


class Seen(BaseMetric):
    """Counts the samples with clusters."""

    default_prefix = "seen"
    error = None

    def process(self, data_batch, data_samples):
        if self.error is not None:
            raise self.error
        self.results += [
            isinstance(sample.get("clusters"), ImageClusters) for sample in data_samples
        ]

    def compute_metrics(self, results):
        return dict(clusters=sum(results), samples=len(results))


@pytest.fixture(scope="module")
def model():
    return detector(**{"panoptic_head.num_queries": 5}).eval()


def loader(number=2):
    items = [
        dict(inputs=torch.zeros(3, 64, 64, dtype=torch.uint8), data_samples=data_sample((64, 64)))
        for _ in range(number)
    ]
    return DataLoader(
        items,
        collate_fn=lambda batch: {key: [one[key] for one in batch] for key in batch[0]},
    )


def runner(model, tmp_path, **options):
    metric = Seen()
    loops = dict(
        val_dataloader=loader(),
        val_cfg=dict(),
        val_evaluator=Evaluator([metric]),
        test_dataloader=loader(3),
        test_cfg=dict(),
        test_evaluator=Evaluator([metric]),
    )
    return Runner(
        model,
        work_dir=str(tmp_path),
        default_scope="mmengine",
        experiment_name=f"{tmp_path.name}-{len(options)}",
        **{"custom_hooks": [dict(type="hcformer_mm.ClusterRecordHook")], **loops, **options},
    ), metric


def hooks(model):
    """The numbers of hooks of the model, by kind."""
    inner = getattr(model, "module", model)
    return [
        len(inner._forward_hooks),
        len(inner._forward_pre_hooks),
        len(inner.backbone._forward_hooks),
    ]


def test_validation_and_test(model, tmp_path):
    """Loops may run again, with one recorder at a time."""
    run, _ = runner(model, tmp_path)
    for _ in range(2):
        assert run.val() == {"seen/clusters": 2, "seen/samples": 2}
        assert run.test() == {"seen/clusters": 3, "seen/samples": 3}
        assert hooks(model) == [0, 0, 0]


def test_without_the_hook(model, tmp_path):
    run, _ = runner(model, tmp_path, custom_hooks=[])
    assert run.test() == {"seen/clusters": 0, "seen/samples": 3}


def test_detached_after_an_error(model, tmp_path):
    run, metric = runner(model, tmp_path)
    metric.error = KeyError("of the metric")
    with pytest.raises(KeyError, match="of the metric"):
        run.test()
    assert hooks(model) == [0, 0, 0]
    metric.error = None
    assert run.test() == {"seen/clusters": 3, "seen/samples": 3}


def test_model_without_clusters(tmp_path):
    plain = detector(**{"backbone.hierarchical_level": 0, "panoptic_head.num_queries": 5})
    run, _ = runner(plain, tmp_path)
    with pytest.raises(ValueError, match="hierarchical_level >= 1"):
        run.val()
    assert hooks(plain) == [0, 0, 0]


def test_validation_within_training(tmp_path):
    """Validation records clusters, and the training steps in between do not."""
    model = detector(
        **{
            "panoptic_head.num_queries": 5,
            "panoptic_head.transformer_decoder.num_layers": 1,
            "train_cfg.num_points": 64,
        }
    )
    run, _ = runner(
        model,
        tmp_path,
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=False, max_iters=2, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-4)),
        default_hooks=dict(checkpoint=None),
    )
    during = []
    model.backbone.register_forward_pre_hook(
        lambda *_: during.append((model.training, hooks(model)[2]))
    )
    run.train()
    assert [training for training, _ in during] == [True, False, False] * 2
    assert all(number == (0 if training else 1) for training, number in during)
    assert hooks(model) == [0, 0, 0]
