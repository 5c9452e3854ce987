"""What the COCO panoptic model of ResNet-50 may cost on a GPU; docs/benchmarks.md has the figures.

A tensor of the CPU that meets one of the GPU fails all of them. That no network waits in training
is tested in tests/test_models/test_waits.py.
"""

import pytest
import torch

from benchmarks.device_costs import pretend_gpu
from benchmarks.models import count_costs
from benchmarks.operators import confident_class_logits
from hcformer_mm.acceleration.inference import prepare_for_inference
from hcformer_mm.apis.inference import build_model
from hcformer_mm.models import HCFormerFusionHead
from hcformer_mm.utils.config import find_config, read_config
from tests.helpers.models import COCO_CONFIG, data_sample, detector

MASK2FORMER = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"
MATCHING = "assigner"  # in the place of what only matching reads back


@pytest.fixture(scope="module")
def model():
    return detector(COCO_CONFIG)


def mask2former(layers):
    option = {"model.panoptic_head.transformer_decoder.num_layers": layers}
    return build_model(read_config(find_config(MASK2FORMER), option), None, device="cpu", seed=0)


def test_network(model):
    """Half of the operators and 0.8 of the bytes of mmdet's MaskFormer, and no wait."""
    restore = prepare_for_inference(model.eval())
    costs = count_costs(model, (800, 1344), "network")
    restore()
    assert costs.operators <= 500
    assert costs.operand_gigabytes <= 7.5
    assert (costs.syncs, costs.uploads) == (0, 0)


def test_losses(model):
    """Losses of a batch at nine predictions, beside those of mmdet's Mask2Former."""
    layers = len(model.panoptic_head.transformer_decoder.layers)
    peer = mask2former(layers)
    for one in (model, peer):
        one.panoptic_head.num_points = 64  # which changes no launch
    ours, theirs = (
        count_costs(one, (64, 96), "loss", batch=2, objects=10) for one in (model, peer)
    )
    assert ours.launches <= 1.3 * theirs.launches
    waits = sum(call.syncs for call in ours.calls if MATCHING not in call.place)
    assert waits <= 2 * 2


@pytest.mark.parametrize(
    "size", [(100, 164), pytest.param((800, 1333), marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("kept", [0, 20, 100])
def test_post_processing(size, kept):
    """Panoptic, instance and semantic results of 100 queries."""
    results = dict(panoptic_on=True, instance_on=True, semantic_on=True)
    head = HCFormerFusionHead(num_things_classes=80, num_stuff_classes=53, test_cfg=results)
    padded = tuple(-(-side // 32) * 32 for side in size)
    masks = 4 * torch.randn(1, 100, padded[0] // 4, padded[1] // 4)
    samples = [data_sample(size, padded=padded)]
    with pretend_gpu() as gpu, torch.no_grad():
        inputs = confident_class_logits(100, kept, 133)[None].to(gpu.device), masks.to(gpu.device)
        with gpu.count() as costs:
            head.predict(*inputs, samples, rescale=True)
    assert costs.launches <= 150
    assert costs.syncs <= 3
    assert costs.uploads == 0
