"""Conversion of tensors between a released checkpoint and a model of this package."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn

from ...utils.config import build_without_weights
from ...utils.errors import some
from .architecture import (
    Architecture,
    Shapes,
    architecture_of_config,
    find_architecture,
    head_of,
    options_for,
)
from .key_mapping import COUNTER, DROPPED, Rule, rules

COMPUTED = "relative_position_index"
"""Table that both implementations compute from the size of Swin's windows, and save."""

PIXELS = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
"""Normalization of every released model: red, green and blue from 0 to 255."""

BACKBONES = "a ResNet with bottleneck blocks (R50 and deeper) or a Swin"
"""Backbones of the released implementation."""

HEADS, EPS = 8, 1e-5
"""Heads of the released encoder's and decoder's attention; eps of every released norm."""

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Conversion(NamedTuple):
    """Result of a conversion.

    Attributes:
        state_dict: Weights under their new names.
        dropped: Tensors that were not converted, with the reason.
        filled: Tensors that the source lacks, with the value they got.
    """

    state_dict: dict[str, Tensor]
    dropped: dict[str, str]
    filled: dict[str, str]


def convert(released: Mapping[str, Tensor], config: Config) -> Conversion:
    """Convert the tensors of a released checkpoint for a config's model.

    Every tensor is converted or dropped for a stated reason, and every tensor of the model is set.

    Args:
        released: Tensors under their released names.
        config: Complete config of the same architecture.

    Returns:
        A ``state_dict`` for the config's model, in the dtypes of the model.

    Raises:
        ValueError: Names or shapes do not fit, or a setting that no tensor reveals differs from
            the released one; the message lists all of them.
    """
    architecture = find_architecture(shapes_of(released))
    _check_architecture(architecture, config)
    model = build_without_weights(config)
    _check_settings(model, config, released)
    dropped = {name: reason for name, reason in DROPPED.items() if name in released}
    weights = {name: value for name, value in released.items() if name not in dropped}
    renamed, faults = _rename(
        weights,
        rules(
            family=architecture.family,
            level=architecture.level,
            deformable=architecture.downsampling == "deform",
            decoder=architecture.decoder,
            head=head_of(config),
        ),
    )
    state_dict, filled = {}, {}
    for name, like in model.state_dict().items():
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
    """Convert the weights of an HCFormer of this package to the released names and layout.

    Args:
        state_dict: Weights under this package's names.

    Returns:
        Tensors under their released names, with the same values.

    Raises:
        ValueError: The backbone is a ResNet with basic blocks (R18, R34), which the released
            implementation lacks, or tensors have no counterpart there; the message lists them.
    """
    head = "decode_head" if "decode_head.cls_embed.weight" in state_dict else "panoptic_head"
    is_swin = "backbone.backbone.patch_embed.projection.weight" in state_dict
    block = "backbone.backbone.layer1.0"
    if f"{block}.conv2.weight" in state_dict and f"{block}.conv3.weight" not in state_dict:
        raise ValueError(
            f"expected {BACKBONES}, as the released implementation has, got a ResNet with basic "
            "blocks (R18 or R34)"
        )
    scales = [name for name in state_dict if name.startswith("backbone.clusterings.")]
    dropped = {
        name: "counts updates; the released BatchNorm is frozen and counts nothing"
        for name in state_dict
        if name.endswith(COUNTER)
    }
    weights = {name: value for name, value in state_dict.items() if name not in dropped}
    renamed, faults = _rename(
        weights,
        rules(
            family="SwinTransformer" if is_swin else "ResNet",
            level=sum(name.endswith(".scale") for name in scales),
            deformable=any(".conv_offset." in name for name in state_dict),
            decoder="masked" if f"{head}.query_feat.weight" in state_dict else "standard",
            head=head,
        ),
        reverse=True,
    )
    if faults:
        raise ValueError(_list(f"the weights of an HCFormer with {BACKBONES}", faults))
    released = {
        name: rule.change.to_released(weights[source]) if rule.change else weights[source]
        for name, (source, rule) in renamed.items()
    }
    find_architecture(shapes_of(released))
    return Conversion(released, dropped, {})


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of every tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _rename(
    weights: Mapping[str, Tensor], names: list[Rule], *, reverse: bool = False
) -> tuple[dict[str, tuple[str, Rule]], list[str]]:
    """Return the source and the rule of every new name, and the faults of the others."""
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


def _check_settings(model: BaseModel, config: Config, released: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a setting differs that names and shapes do not reveal."""
    preprocessor = model.data_preprocessor
    faults = []
    for setting, values in PIXELS.items():
        wanted = torch.tensor(values, dtype=torch.float64)
        for name, got in (
            (f"data_preprocessor.{setting}", getattr(preprocessor, setting, torch.empty(0))),
            (f"pixel_{setting} of the file", released.get(f"pixel_{setting}", wanted)),
        ):
            got = got.flatten().double().cpu()
            if got.shape != wanted.shape or not torch.allclose(got, wanted):
                rounded = [round(value, 3) for value in got.tolist()]
                faults.append(f"{name}: expected {values}, got {rounded}")
    # mmdet's attribute, and mmseg's.
    flags = ("_channel_conversion", "channel_conversion")
    if not any(getattr(preprocessor, flag, False) for flag in flags):
        faults.append("data_preprocessor.bgr_to_rgb: expected True, got False")
    for kinds, setting, wanted_value in (
        ((nn.MultiheadAttention,), "num_heads", HEADS),
        (NORMS, "eps", EPS),
    ):
        others: dict[float, list[str]] = {}
        for name, module in model.named_modules():
            if isinstance(module, kinds) and getattr(module, setting) != wanted_value:
                others.setdefault(getattr(module, setting), []).append(name)
        faults += [
            f"{setting}: expected {wanted_value}, got {value} in {some(names)}"
            for value, names in others.items()
        ]
    if faults:
        raise ValueError(_list(f"the settings of the released models in {config.filename}", faults))


def _check_architecture(architecture: Architecture, config: Config) -> None:
    """Raise a ValueError with all differences if a config describes another architecture."""
    described = architecture_of_config(config)
    if not (differences := architecture.differences(described)):
        return
    message = _list(
        f"{described}, as {config.filename} describes it",
        [
            f"{key}: expected {ours!r}, got {theirs!r}"
            for key, (theirs, ours) in differences.items()
        ],
        f"got {architecture}",
    )
    if (options := options_for(architecture, config)) is not None:
        overrides = " ".join(f"{key}={value}" for key, value in options.items())
        message += f"\nThe config fits with --cfg-options {overrides}"
    raise ValueError(message)


def _list(expected: str, faults: list[str], but: str = "but") -> str:
    return f"expected {expected}, {but}:\n  " + "\n  ".join(sorted(faults))
