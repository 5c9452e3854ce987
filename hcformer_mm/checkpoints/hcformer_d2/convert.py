"""From the released implementation's tensors to those of this package's model, and back."""

from collections.abc import Mapping
from copy import deepcopy
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from ...utils.config import without_pretrained
from ..io import some
from .architecture import Shapes, architecture_of_config, find_architecture, head_of, options_for
from .key_mapping import COUNTER, DROPPED, Rule, rules

COMPUTED = "relative_position_index"
"""A table that both implementations compute from the size of Swin's windows, and store."""

PIXELS = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
"""How every released model normalizes its pixels: red, green and blue of 0 to 255."""

BACKBONES = "a ResNet with bottleneck blocks (R50 and deeper) or a Swin"
"""What the released implementation has as backbone."""

HEADS, EPS = 8, 1e-5
"""Heads of the released attention over queries or cells, and the eps of its normalizations."""

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Conversion(NamedTuple):
    """Weights under their new names, and what became of the others.

    Attributes:
        state_dict: The weights.
        dropped: Tensors that were left behind, and why.
        filled: Tensors that the source has no counterpart of, and what they were set to.
    """

    state_dict: dict[str, Tensor]
    dropped: dict[str, str]
    filled: dict[str, str]


def convert(released: Mapping[str, Tensor], config: Config) -> Conversion:
    """Turn the tensors of a released checkpoint into those of a config's model.

    Every tensor is used or deliberately dropped, and every one of the model is filled.

    Args:
        released: Tensors under their released names.
        config: A whole config of the same architecture.

    Returns:
        Tensors for ``load_state_dict`` of the config's model, in the dtypes of the model.

    Raises:
        ValueError: Names or shapes do not fit, or the config has a setting that no tensor tells
            of and that differs from the released one; all of them are named.
    """
    architecture = find_architecture(shapes_of(released))
    if architecture != architecture_of_config(config):
        raise ValueError(_another_architecture(released, config))
    model = build(config)
    _check_settings(model, config)
    _check_pixels(released)
    dropped = {name: reason for name, reason in DROPPED.items() if name in released}
    weights = {name: value for name, value in released.items() if name not in dropped}
    names = rules(
        family=architecture.family,
        level=architecture.level,
        deformable=architecture.downsampling == "deform",
        decoder=architecture.decoder,
        head=head_of(config),
    )
    renamed, faults = _rename(weights, names)
    expected = model.state_dict()
    state_dict, filled = {}, {}
    for name, like in expected.items():
        if name in renamed:
            source, rule = renamed.pop(name)
            value = weights[source].to(like.dtype)
            if value.shape != like.shape:
                faults.append(
                    f"{source} {tuple(value.shape)} does not fit {name} {tuple(like.shape)}"
                )
                continue
            state_dict[name] = rule.change.to_ours(value) if rule.change else value
            if name.endswith(COMPUTED) and not torch.equal(value, like):
                faults.append(f"{source} is not the table that the model computes for {name}")
        elif name.endswith(COUNTER):
            state_dict[name] = torch.zeros_like(like)
            filled[name] = "0, as the released BatchNorm is frozen and counts nothing"
        else:
            faults.append(f"nothing fits {name} {tuple(like.shape)} of the model")
    for source, _ in renamed.values():
        faults.append(f"{source} {tuple(weights[source].shape)} has no place in the model")
    if faults:
        raise ValueError(
            _list(f"the tensors of {architecture} as {config.filename} builds it", faults)
        )
    return Conversion(state_dict, dropped, filled)


def revert(state_dict: Mapping[str, Tensor]) -> Conversion:
    """Turn the weights of an HCFormer of this package into released ones.

    Args:
        state_dict: Weights under this package's names.

    Returns:
        Tensors under their released names, with the same values.

    Raises:
        ValueError: The backbone is a ResNet of basic blocks (R18, R34), which the released
            implementation has not, or some tensors have no counterpart there; all are named.
    """
    head = "decode_head" if "decode_head.cls_embed.weight" in state_dict else "panoptic_head"
    is_swin = "backbone.backbone.patch_embed.projection.weight" in state_dict
    first = "backbone.backbone.layer1.0.conv{}.weight"
    if first.format(2) in state_dict and first.format(3) not in state_dict:
        raise ValueError(
            f"expected {BACKBONES}, as the released implementation has, got a ResNet with basic "
            "blocks (R18 or R34)"
        )
    names = rules(
        family="SwinTransformer" if is_swin else "ResNet",
        level=sum(
            name.startswith("backbone.clusterings.") and name.endswith(".scale")
            for name in state_dict
        ),
        deformable=any(".conv_offset." in name for name in state_dict),
        decoder="masked" if f"{head}.query_feat.weight" in state_dict else "standard",
        head=head,
    )
    dropped = {
        name: "counts updates; the released BatchNorm is frozen and counts nothing"
        for name in state_dict
        if name.endswith(COUNTER)
    }
    weights = {name: value for name, value in state_dict.items() if name not in dropped}
    renamed, faults = _rename(weights, names, reverse=True)
    if faults:
        raise ValueError(_list(f"the weights of an HCFormer with {BACKBONES}", faults))
    released = {
        name: rule.change.to_released(weights[source]) if rule.change else weights[source]
        for name, (source, rule) in renamed.items()
    }
    find_architecture(shapes_of(released))
    return Conversion(released, dropped, {})


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Name and shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _rename(
    weights: Mapping[str, Tensor], names: list[Rule], *, reverse: bool = False
) -> tuple[dict[str, tuple[str, Rule]], list[str]]:
    """Source and rule of every new name, and what is wrong with the others."""
    renamed: dict[str, tuple[str, Rule]] = {}
    faults = []
    for source, value in weights.items():
        for rule in names:
            if (name := rule.rename(source, reverse=reverse)) is not None:
                break
        else:
            faults.append(f"{source} {tuple(value.shape)} has no counterpart")
            continue
        if name in renamed:
            faults.append(f"{source} and {renamed[name][0]} are both {name}")
        renamed[name] = source, rule
    return renamed, faults


def build(config: Config) -> BaseModel:
    """Build the model of a config as it is constructed, without initializing its weights."""
    with DefaultScope.overwrite_default_scope(config.get("default_scope", "mmdet")):
        return MODELS.build(without_pretrained(deepcopy(config.model)))


def _check_settings(model: BaseModel, config: Config) -> None:
    """Raise a ValueError if a model differs in what no tensor of a released file tells."""
    preprocessor = model.data_preprocessor
    faults = []
    for setting in ("mean", "std"):
        values = getattr(preprocessor, setting, torch.empty(0)).flatten().double()
        if not _close(values, PIXELS[setting]):
            got = [round(value, 3) for value in values.tolist()]
            faults.append(f"data_preprocessor.{setting}: expected {PIXELS[setting]}, got {got}")
    # The attribute of mmdet's, and of mmseg's.
    names = ("_channel_conversion", "channel_conversion")
    if not any(getattr(preprocessor, name, False) for name in names):
        faults.append("data_preprocessor.bgr_to_rgb: expected True, got False")
    for kinds, setting, wanted in (
        ((nn.MultiheadAttention,), "num_heads", HEADS),
        (NORMS, "eps", EPS),
    ):
        others: dict[float, list[str]] = {}
        for name, module in model.named_modules():
            if isinstance(module, kinds) and getattr(module, setting) != wanted:
                others.setdefault(getattr(module, setting), []).append(name)
        faults += [
            f"{setting}: expected {wanted}, got {value} in {some(names)}"
            for value, names in others.items()
        ]
    if faults:
        raise ValueError(_list(f"{config.filename} to compute what a released model does", faults))


def _check_pixels(released: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a file says that its pixels are normalized otherwise."""
    for name, setting in (("pixel_mean", "mean"), ("pixel_std", "std")):
        if name in released and not _close(released[name].flatten(), PIXELS[setting]):
            raise ValueError(
                f"expected {name} of {PIXELS[setting]}, as the released models have it, "
                f"got {released[name].flatten().tolist()}"
            )


def _close(values: Tensor, expected: list[float]) -> bool:
    wanted = torch.tensor(expected, dtype=torch.float64)
    return values.shape == wanted.shape and torch.allclose(values.to(wanted), wanted)


def _another_architecture(released: Mapping[str, Tensor], config: Config) -> str:
    architecture = find_architecture(shapes_of(released))
    described = architecture_of_config(config)
    differences = architecture.differences(described).items()
    message = _list(
        f"{described}, as {config.filename} describes it",
        [f"{key}: expected {ours!r}, got {theirs!r}" for key, (theirs, ours) in differences],
        f"got {architecture}",
    )
    options = options_for(architecture, config)
    if options is not None:
        overrides = " ".join(f"{key}={value}" for key, value in options.items())
        message += f"\nThe config fits with --cfg-options {overrides}"
    return message


def _list(expected: str, faults: list[str], but: str = "but") -> str:
    return f"expected {expected}, {but}:\n  " + "\n  ".join(sorted(faults))
