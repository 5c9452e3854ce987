"""Conversion of checkpoints: every tensor is accounted for, and every misfit is named."""

import pytest
import torch
from mmengine.config import Config

from hcformer_mm.apis.inference import build_model
from hcformer_mm.checkpoints.hcformer_d2 import (
    choose_config,
    convert,
    convert_file,
    find_architecture,
    revert,
    revert_file,
)
from hcformer_mm.checkpoints.io import load_checkpoint, sha256
from hcformer_mm.utils.config import find_config
from hcformer_mm.version import __version__
from tests.helpers.released_checkpoints import position_index, released_keys
from tests.helpers.released_small import small

EMPTY_WEIGHT = torch.tensor([1.0, 1.0, 0.1])


def assert_equal(one, other):
    """The same names, dtypes and values."""
    assert set(one) == set(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def convert_model(model, tmp_path, name="ours.pth", **entries):
    """Convert the file of a small model."""
    path = tmp_path / "released.pth"
    torch.save({"model": model.state, **entries}, path)
    return convert_file(path, tmp_path / name, model.name, model.options)


# Tensors in the released files, tensors in our models, and how many of these no file contains:
# BatchNorm's counters, which become 0.
COVERAGE = {
    "hcformer_r50_coco_panoptic": (465, 518, 53),
    "hcformer_plus_r50_coco_panoptic": (539, 592, 53),
    "hcformer_swin_s_coco_panoptic": (533, 533, 0),
    "hcformer_plus_swin_l_coco_panoptic": (607, 607, 0),
    "hcformer_plus_r50_standard_decoder_coco_panoptic": (537, 590, 53),
}


@pytest.mark.parametrize("name", COVERAGE)
def test_coverage_of_the_released_models(name):
    released = {
        # One number per tensor: only names and shapes matter here.
        key: torch.full((1,), i / 1000).expand(shape)
        if not key.endswith("relative_position_index")
        else position_index(round(shape[0] ** 0.5))
        for i, (key, shape) in enumerate(released_keys()[name].items())
    }
    shapes = {key: tuple(value.shape) for key, value in released.items()}
    config = Config.fromfile(choose_config(find_architecture(shapes))[0])
    conversion = convert({**released, "criterion.empty_weight": EMPTY_WEIGHT}, config)
    assert set(conversion.dropped) == {"criterion.empty_weight"}
    assert (len(released), len(conversion.state_dict), len(conversion.filled)) == COVERAGE[name]
    assert len(conversion.state_dict) - len(conversion.filled) == len(released)
    assert all(key.endswith(".num_batches_tracked") for key in conversion.filled)
    assert_equal(revert(conversion.state_dict).state_dict, released)


@pytest.mark.parametrize(
    ("suffix", "semantic", "backbone"),
    [
        (".pth", False, "R50"),
        (".pth", True, "Swin-S"),
        (".safetensors", True, "R50"),
        (".safetensors", True, "Swin-S"),
    ],
)
def test_round_trip_of_files(suffix, semantic, backbone, tmp_path):
    model = small(backbone, semantic=semantic, level=2)
    model.state["criterion.empty_weight"] = EMPTY_WEIGHT
    ours, again = tmp_path / f"ours{suffix}", tmp_path / f"again{suffix}"
    report = convert_model(model, tmp_path, ours.name, iteration=7)
    assert report.left_out == ["iteration"]
    assert report.source == len(model.state)
    meta = load_checkpoint(ours)["meta"]
    assert meta["released"]["sha256"] == sha256(tmp_path / "released.pth")
    assert meta["released"]["architecture"]["level"] == 2
    assert meta["dataset_meta"]["classes"][0] == ("wall" if semantic else "person")
    revert_file(ours, again, model.name, model.options)
    content = load_checkpoint(again)
    assert_equal(content["model" if suffix == ".pth" else "state_dict"], model.state)
    # Back to our format.
    forth = convert_file(again, tmp_path / "forth.pth", model.name, model.options)
    assert_equal(forth.conversion.state_dict, report.conversion.state_dict)


def test_the_file_loads_and_states_its_origin(tmp_path):
    model = small()
    model.state["criterion.empty_weight"] = EMPTY_WEIGHT
    convert_model(model, tmp_path)
    network = build_model(model.config, tmp_path / "ours.pth")
    assert torch.equal(
        network.backbone.clusterings[0].scale, model.state["backbone.clustering_layers.2.temp"]
    )
    assert network.dataset_meta["classes"][:2] == ("person", "bicycle")
    content = load_checkpoint(tmp_path / "ours.pth")
    assert content["state_dict"].keys() == network.state_dict().keys()
    meta = content["meta"]
    assert meta["hcformer_mm_version"] == __version__
    assert meta["released"]["architecture"]["decoder_layers"] == 3
    assert meta["released"]["config"] == model.name
    config = Config.fromstring(meta["cfg"], ".py")
    assert config.model.to_dict() == model.config.model.to_dict()


@pytest.mark.parametrize("kind", ["arrays", "bare", "legacy"])
def test_forms_of_a_torch_file(kind, tmp_path):
    """Numpy arrays, tensors without an entry around them, and the format before PyTorch 1.6."""
    model = small("Swin-S", level=1, semantic=True)
    path = tmp_path / "released.pth"
    if kind == "arrays":
        arrays = {name: value.numpy() for name, value in model.state.items()}
        torch.save(dict(model=arrays, __author__="someone", matching_heuristics=True), path)
    elif kind == "bare":
        torch.save(model.state, path)
    else:
        torch.save(dict(model=model.state), path, _use_new_zipfile_serialization=False)
    report = convert_file(path, tmp_path / "ours.pth", model.name, model.options)
    assert_equal(report.conversion.state_dict, convert(model.state, model.config).state_dict)
    assert report.left_out == (["__author__", "matching_heuristics"] if kind == "arrays" else [])


def test_half_precision_becomes_the_dtype_of_the_model():
    model = small(level=0)
    half = {name: value.half() for name, value in model.state.items()}
    state_dict = convert(half, model.config).state_dict
    assert {value.dtype for value in state_dict.values()} == {torch.float32, torch.int64}


def refused(model, match):
    with pytest.raises(ValueError, match=match):
        convert(model.state, model.config)


def test_pixels_are_checked():
    model = small(level=0)
    model.state["pixel_mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    model.state["pixel_std"] = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    conversion = convert(model.state, model.config)
    assert set(conversion.dropped) == {"pixel_mean", "pixel_std"}
    model.state["pixel_mean"] = model.state["pixel_mean"].flip(0)
    refused(model, r"pixel_mean of the file: expected \[123.67.*, got \[103.5")


CLASS, MASK = "sem_seg_head.predictor.class_embed", "sem_seg_head.predictor.mask_proj"


@pytest.mark.parametrize(
    ("backbone", "changes", "match"),
    [
        ("R50", {"sem_seg_head.x.weight": torch.zeros(2)}, r"x\.weight \(2,\) has no counter"),
        ("Swin-S", {"backbone.norm0.weight": torch.zeros(16)}, r"norm0\.weight \(16,\) has no pl"),
        ("R50", {"backbone.layer2.0.conv2.weight": torch.zeros(8)}, r"conv2\..* and .* are both"),
        (
            "R50",
            {f"{MASK}.weight": torch.zeros(64, 100, 1, 1), f"{CLASS}.bias": torch.zeros(7)},
            r"(?s)the tensors of HCFormer R50 of width 4"
            r".*class_embed\.bias \(7,\) does not fit panoptic_head\.cls_embed\.bias \(134,\)"
            r".*mask_proj\.weight \(64, 100, 1, 1\) does not fit panoptic_.* \(64, 128, 1, 1\)",
        ),
        (
            "R50",
            {"backbone.layer1.0.conv1.weight": None},
            r"nothing fits backbone\.backbone\.layer1\.0\.conv1\.weight \(4, 4, 1, 1\)",
        ),
    ],
)
def test_tensors_that_do_not_fit(backbone, changes, match):
    model = small(backbone)
    model.state.update(changes)
    for name in [name for name, value in model.state.items() if value is None]:
        del model.state[name]
    refused(model, match)


def test_table_of_another_window():
    model = small("Swin-S")
    name = "backbone.layers.0.blocks.0.attn.relative_position_index"
    model.state[name] = model.state[name].T.contiguous()
    refused(model, f"{name} is not the table that the model computes")


def test_another_architecture_than_the_config():
    level = "model.backbone.hierarchical_level"
    model = small(level=2)
    model.options[level] = 3
    refused(model, rf"(?s)level: expected 3, got 2.*--cfg-options {level}=2")
    model = small()
    model.options["model.panoptic_head.num_stuff_classes"] = 7
    refused(model, r"(?s)classes: expected 87, got 133(?!.*--cfg-options)")


@pytest.mark.parametrize(
    "content",
    [
        {},
        dict(model={}),
        dict(model=[1, 2]),
        dict(state_dict={"backbone.conv1.weight": torch.zeros(1)}),
        dict(model={"sem_seg_head.predictor.class_embed.weight": "text"}),
    ],
)
def test_refuses_other_checkpoints(content, tmp_path):
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"expected .*other\.pth to hold a released HCFormer"):
        convert_file(path, tmp_path / "ours.pth")
    assert not (tmp_path / "ours.pth").exists()


def test_refuses_files_and_options_of_the_other_direction(tmp_path):
    model = small(level=0, semantic=True)
    convert_model(model, tmp_path)
    with pytest.raises(ValueError, match="a checkpoint of this package, which --reverse converts"):
        convert_file(tmp_path / "ours.pth", tmp_path / "x.pth")
    with pytest.raises(ValueError, match="weights of an HCFormer of this package"):
        revert_file(tmp_path / "released.pth", tmp_path / "x.pth")
    with pytest.raises(ValueError, match="expected another file to write to"):
        convert_file(tmp_path / "released.pth", tmp_path / "released.pth")
    with pytest.raises(ValueError, match="expected a config to override"):
        convert_file(tmp_path / "released.pth", tmp_path / "x.pth", cfg_options={"a": 1})


def test_refuses_to_revert_extra_tensors_and_other_dtypes(tmp_path):
    model = small(level=1)
    state_dict = convert(model.state, model.config).state_dict
    state_dict["panoptic_head.extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"panoptic_head\.extra\.weight \(1,\) has no counterpart"):
        revert(state_dict)
    del state_dict["panoptic_head.extra.weight"]
    state_dict["panoptic_head.mask_proj.bias"] = state_dict["panoptic_head.mask_proj.bias"].double()
    path = tmp_path / "ours.pth"
    torch.save(dict(state_dict=state_dict), path)
    with pytest.raises(ValueError, match="got another dtype in panoptic_head"):
        revert_file(path, tmp_path / "x.pth", model.name, model.options)
    assert not (tmp_path / "x.pth").exists()


def test_own_config_with_other_classes(tmp_path):
    """No config of the package has three classes."""
    config = tmp_path / "mine.py"
    config.write_text(
        f"_base_ = {str(find_config('hcformer_r50_8xb2-160k_ade20k-512x512'))!r}\n"
        "model = dict(decode_head=dict(num_classes=3))\n"
    )
    model = small(semantic=True)
    for kind in ("weight", "bias"):
        model.state[f"{CLASS}.{kind}"] = model.state[f"{CLASS}.{kind}"][:4].clone()
    path = tmp_path / "released.pth"
    torch.save(dict(model=model.state), path)
    report = convert_file(path, tmp_path / "ours.pth", config, model.options)
    assert report.conversion.state_dict["decode_head.cls_embed.bias"].shape == (4,)


CROSS_ATTENTION = "model.{head}.transformer_decoder.layer_cfg.cross_attn_cfg"
NORM = dict(type="BN", eps=1e-3, requires_grad=False)
SETTINGS = {
    "model.data_preprocessor.bgr_to_rgb": (False, "bgr_to_rgb: expected True, got False"),
    "model.data_preprocessor.mean": ([1, 2, 3], r"mean: expected \[123\.675, .*, got \[1\.0, 2\.0"),
    "model.data_preprocessor.std": ([1, 1, 1], r"std: expected \[58\.395, .*, got \[1\.0, 1\.0"),
    "model.backbone.backbone.norm_cfg": (
        NORM,
        r"eps: expected 1e-05, got 0\.001 in backbone\.backbone\.bn1, .* and \d+ more",
    ),
    f"{CROSS_ATTENTION}.num_heads": (
        4,
        r"num_heads: expected 8, got 4 in {head}\.transformer_decoder\.layers\.0\.cross_attn",
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("head", ["panoptic_head", "decode_head"])
def test_settings_that_no_tensor_reveals(setting, head):
    """All names and shapes fit, but the model would compute something else."""
    model = small(semantic=head == "decode_head")
    value, match = SETTINGS[setting]
    model.options[setting.replace("{head}", head)] = value
    refused(model, match.replace("{head}", head))


def test_heads_of_the_encoder():
    model = small(plus=True)
    model.options["model.neck.encoder.layer_cfg.self_attn_cfg.num_heads"] = 16
    refused(model, r"num_heads: expected 8, got 16 in neck\.encoder\.layers\.0\.self_attn")


def test_basic_blocks_are_refused(tmp_path):
    network = build_model(Config.fromfile(find_config("hcformer_r18_shapes-panoptic")))
    path = tmp_path / "ours.pth"
    torch.save(dict(state_dict=network.state_dict()), path)
    with pytest.raises(ValueError, match=r"ResNet with bottleneck blocks \(R50 and deeper\).*R18"):
        revert_file(path, tmp_path / "x.pth")
