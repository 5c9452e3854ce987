"""What a model gets from a checkpoint, and what is said about the rest."""

import warnings

import pytest
import torch
from torch import nn

from hcformer_mm.acceleration.conv_bn_fusion import fuse_conv_bn
from hcformer_mm.checkpoints.fit import load_weights
from hcformer_mm.checkpoints.io import load_checkpoint


class Net(nn.Module):
    """A convolution with its norm, and a classifier."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.cls = nn.Linear(4, classes)

    def forward(self, image):
        return self.cls(self.bn(self.conv(image)).mean((2, 3)))


def fit(content, model=None):
    return load_weights(model or Net(), content, "x.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: dict(state_dict=state),
        lambda state: dict(model=state),
        lambda state: dict(model_state=state, epoch=3),
        lambda state: state,
        lambda state: dict(state_dict={f"module.{name}": value for name, value in state.items()}),
        lambda state: dict(state_dict={name: value.numpy() for name, value in state.items()}),
    ],
    ids=["state_dict", "model", "model_state", "bare", "module", "numpy"],
)
def test_every_layout_of_a_checkpoint_is_loaded(wrap):
    torch.manual_seed(0)
    source, model = Net().state_dict(), Net()
    found = fit(wrap(source), model)
    assert found.faults() == ""
    assert found.loaded == len(source)
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())


def test_other_classes_are_told_with_both_shapes():
    model = Net(classes=5)
    before = model.cls.bias.clone()
    found = fit(Net().state_dict(), model)
    told = "2 of another shape: cls.weight (3, 4) for (5, 4), cls.bias (3,) for (5,)"
    assert found.faults() == told
    assert found.advice() == "use the config that it was trained with"
    assert found.loaded == 6
    assert torch.equal(model.cls.bias, before)


def test_missing_and_unused_names_are_told():
    state = Net().state_dict()
    state["extra"] = state.pop("cls.bias")
    del state["bn.num_batches_tracked"]  # means nothing
    told = "1 missing in the file: cls.bias; 1 without a counterpart in the model: extra"
    assert fit(state).faults() == told


def test_integers_do_not_become_weights():
    """torch would copy the values of a quantized model into float parameters."""
    state = Net().state_dict()
    state["cls.bias"] = state["cls.bias"].to(torch.int8)
    assert "cls.bias (3,) for (3,), torch.int8 for torch.float32" in fit(state).faults()


def test_half_precision_is_loaded():
    state = {name: value.half() for name, value in Net().state_dict().items() if "num" not in name}
    assert fit(state).faults() == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_told_once(value):
    state = Net().state_dict()
    state["conv.weight"][0, 0] = state["bn.weight"][1] = value
    with pytest.warns(
        UserWarning, match=r"in x\.pth, got NaN or infinity in conv\.weight, bn"
    ) as told:
        assert fit(state).faults() == ""
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(Net().state_dict())


def test_fused_models_are_recognized():
    model = Net().eval()
    fuse_conv_bn(model)
    found = fit(model.state_dict())
    assert "without a counterpart in the model: conv.bias" in found.faults()
    assert "fused into convolutions; save a model before that" in found.advice()


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["conv1.weight", "layer1.0.conv1.weight"], "warm_start.py converts what fits"),
        (["backbone.stem.conv1.weight", "sem_seg_head.predictor.x"], "hcformer_d2_to_mm.py"),
    ],
    ids=["backbone", "detectron2"],
)
def test_files_of_other_models_name_their_converter(names, advice):
    found = fit(dict(state_dict={name: torch.zeros(1) for name in names}))
    assert not found.loaded
    assert advice in found.advice()


def test_versions_of_modules_are_kept(tmp_path):
    """Modules rename what older versions wrote; the versions are in an attribute of the dict."""
    seen = []

    class Versioned(Net):
        _version = 7

        def _load_from_state_dict(self, state, prefix, metadata, *rest):
            seen.append(metadata.get("version"))
            super()._load_from_state_dict(state, prefix, metadata, *rest)

    model = Versioned()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "x.pth")
    fit(load_checkpoint(tmp_path / "x.pth"), model)
    assert seen == [7]
