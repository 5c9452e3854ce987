"""Clusters down to the pixels of the image, through all that reads them."""

import numpy as np
import pytest
import torch
from torch import _dynamo as dynamo

from hcformer_mm.acceleration.inference import prepare_for_inference
from hcformer_mm.deployment.export import ExportableModel
from hcformer_mm.evaluation.measures import ImageGroundTruth
from hcformer_mm.evaluation.partitions import cell_map, score_partition
from hcformer_mm.models.utils.cluster_recorder import record_clusters
from hcformer_mm.visualization import draw_hierarchy
from tests.helpers.exporting import TINY, TINY_CONFIG, confident, lively_model, read_config
from tests.helpers.models import data_sample


@pytest.fixture(scope="module")
def model():
    """Two stages of a ResNet-18: three levels are the stride of 4, that of 2, and the image."""
    config = read_config(TINY_CONFIG, TINY | {"model.backbone.hierarchical_level": 3})
    network = lively_model(config)
    confident(network)
    return network


def predict(model, size=(45, 62)):
    torch.manual_seed(0)
    inputs = [torch.randint(256, (3, *size), dtype=torch.uint8)]
    with torch.no_grad():
        return model.test_step(dict(inputs=inputs, data_samples=[data_sample(size)]))[0]


def test_cells_are_pixels(model):
    with record_clusters(model):
        sample = predict(model)
    clusters, (height, width) = sample.clusters, (45, 62)
    assert (clusters.stride, clusters.num_levels) == (1, 3)
    assert tuple(clusters.assignments[0].shape) == (9, 64, 64)  # padded
    cells = cell_map(clusters)
    assert len(np.unique(cells)) == height * width
    image = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    segments = np.arange(height * width).reshape(height, width) // 100 % 7
    truth = ImageGroundTruth(segments, np.zeros(segments.shape, bool))
    scores = score_partition(cells, truth, image)
    assert (scores["ASA"], scores["UE"], scores["boundary_recall"]) == (100, 0, 100)
    labels = [level.numpy() for level in clusters.labels()]
    assert draw_hierarchy(image, labels).shape == image.shape


def test_masks_have_the_size_of_the_image(model):
    """They are not resized, and those of some queries are those of all queries."""
    head, sample = model.panoptic_head, data_sample((64, 96))
    with torch.no_grad():
        features = model.extract_feat(torch.randn(1, 3, 64, 96))
        (classes,), (masks,) = head(features)
        some_classes, some = head.predict(features, [sample])
    assert masks.shape[-2:] == some.shape[-2:] == (64, 96)
    kept = [(classes[0] == one).all(dim=1).nonzero().item() for one in some_classes[0]]
    torch.testing.assert_close(some, masks[:, kept])


@pytest.mark.parametrize("things", [2, 0])
def test_every_parameter_gets_a_finite_gradient(model, things):
    model.train()
    samples = [data_sample((64, 96), things=things, stuff_label=6 if things else None)]
    losses = model.loss(torch.randn(1, 3, 64, 96), samples)
    sum(losses.values()).backward()
    model.eval()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    model.zero_grad()


def test_fused_for_inference(model):
    expected = predict(model).pred_panoptic_seg.sem_seg
    with record_clusters(model):
        before = predict(model).clusters.assignments
        undo = prepare_for_inference(model)
        after = predict(model).clusters.assignments
    undo()
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert torch.equal(predict(model).pred_panoptic_seg.sem_seg, expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_exported(model):
    network = ExportableModel(model, with_assignments=True).eval()
    (image,) = network.example((64, 96))
    with torch.no_grad():
        traced = torch.jit.trace(network, image, strict=False, check_trace=False)
        expected, outputs = network(image), traced(image)
    assert tuple(expected["assignment_0"].shape) == (1, 9, 64, 96)
    assert expected["mask_logits"].shape[-2:] == (64, 96)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


def test_compiles_to_one_graph(model):
    dynamo.reset()
    with torch.no_grad():
        network = dynamo.explain(lambda x: model(x, mode="tensor"))
        explanation = network(torch.randn(1, 3, 64, 96))
    dynamo.reset()
    assert (explanation.graph_count, explanation.break_reasons) == (1, [])
