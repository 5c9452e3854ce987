"""A GPU never waits for the CPU: no network reads a value back, nor makes a tensor on the CPU."""

import pytest
import torch

from benchmarks.device_costs import pretend_gpu
from tests.helpers.models import (
    SEMANTIC_CONFIG,
    SHAPES_CONFIG,
    data_sample,
    detector,
    seg_sample,
    segmentor,
)
from tests.test_models.test_necks.test_transformer_encoder_neck import neck_config

SHAPES = "configs/shapes/hc-{}_r18_shapes-semantic.py"
NETWORKS = {
    "masked decoder": (SHAPES_CONFIG, {}),
    "standard decoder of probabilities": (
        SHAPES_CONFIG,
        {"panoptic_head.decoder": "standard", "panoptic_head.mask_space": "probability"},
    ),
    "encoder": (
        SHAPES_CONFIG,
        {"neck": neck_config(512, 128, 1), "panoptic_head.in_channels": 128},
    ),
    "segmentor": (SEMANTIC_CONFIG, {}),
    "FCN": (SHAPES.format("fcn32s"), {}),
    "PSPNet": (SHAPES.format("pspnet"), {}),
    "Deeplabv3": (SHAPES.format("deeplabv3"), {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_do_not_wait(name):
    path, options = NETWORKS[name]
    model = detector(path, **options)
    with pretend_gpu(values=False) as gpu:  # raises where a value is read
        model = gpu.copy(model)
        image = torch.empty(2, 3, 72, 104, device=gpu.device)
        with gpu.count() as costs:
            for training in (True, False):
                model.train(training)(image, [], mode="tensor")
    assert costs.operators > 200 and (costs.syncs, costs.uploads) == (0, 0)


def test_ground_truth_waits_once_an_image():
    """For the number of its masks; instances are uploaded."""
    head = detector().panoptic_head
    with pretend_gpu() as gpu:
        samples = [data_sample((48, 40)).to(gpu.device) for _ in range(3)]
        with gpu.count() as costs:
            head._ground_truth(samples)
    assert (costs.syncs, costs.uploads) == (3, 3)

    head = segmentor().decode_head
    with pretend_gpu() as gpu:
        label_map = torch.randint(10, (48, 40))
        samples = [seg_sample(label_map).to(gpu.device) for _ in range(3)]
        with gpu.count() as costs:
            head._ground_truth(samples)
    assert (costs.syncs, costs.uploads) == (6, 0)  # once more for the check of labels
