"""Names and shapes of the released implementation's tensors, and random weights for them.

Written from a list of the names in five released model classes; nothing of the package is used.
"""

import gzip
import json
import math
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

KEYS = Path(__file__).parents[1] / "data" / "released_checkpoint_keys.json.gz"
PREDICTOR = "sem_seg_head.predictor"

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def released_keys() -> dict[str, Shapes]:
    """Names and shapes of every tensor of five released model classes."""
    classes = json.loads(gzip.decompress(KEYS.read_bytes()))
    return {
        name: {key: tuple(shape) for key, shape in shapes.items()}
        for name, shapes in classes.items()
    }


class ResNetShape(NamedTuple):
    """A ResNet of bottlenecks."""

    width: int = 64
    depths: tuple[int, ...] = (3, 4, 6, 3)
    deformable: bool = True

    @property
    def channels(self) -> list[int]:
        return [4 * self.width * 2**i for i in range(4)]


class SwinShape(NamedTuple):
    """A Swin."""

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7

    @property
    def channels(self) -> list[int]:
        return [self.width * 2**i for i in range(4)]


def model_shapes(
    backbone: ResNetShape | SwinShape,
    *,
    level: int = 3,
    encoder_layers: int = 0,
    standard: bool = False,
    decoder_layers: int = 8,
    channels: int = 256,
    hidden: int = 2048,
    queries: int = 100,
    classes: int = 133,
    embed: int = 128,
) -> Shapes:
    """Names and shapes of a released model."""
    is_resnet = isinstance(backbone, ResNetShape)
    shapes = _resnet_shapes(backbone, level) if is_resnet else _swin_shapes(backbone)
    for index, stage in enumerate(range(3 - level, 3)):
        name = (
            f"clustering_layers.{level - 1 - index}" if is_resnet else f"layers.{stage}.clustering"
        )
        sides = {"fine": backbone.channels[stage], "coarse": backbone.channels[stage + 1]}
        shapes[f"backbone.{name}.temp"] = (1,)
        for side, width in sides.items():
            shapes[f"backbone.{name}.{side}_emb.weight"] = (embed, width, 1, 1)
            shapes |= _affine(f"backbone.{name}.{side}_norm", width)
    last = backbone.channels[-1]

    def transformer_layer(name: str, *attentions: str) -> Shapes:
        layer = _feed_forward_shapes(name, channels, hidden)
        for k, attention in enumerate(attentions):
            layer |= _attention_shapes(f"{name}.{attention}", channels)
            layer |= _affine(f"{name}.norm{k + 1}", channels)
        return layer | _affine(f"{name}.norm{len(attentions) + 1}", channels)

    if encoder_layers:
        shapes |= _linear("backbone.aux.input_proj.0", channels, last, 1, 1)
        shapes |= _affine("backbone.aux.input_proj.1", channels)
        for i in range(encoder_layers):
            shapes |= transformer_layer(f"backbone.aux.encoder.layers.{i}", "self_attn")
        last = channels
    for i in range(decoder_layers):
        if standard:
            layer = f"{PREDICTOR}.transformer.decoder.layers.{i}"
            shapes |= transformer_layer(layer, "self_attn", "multihead_attn")
        else:
            for kind, part in (("self", "self_attn"), ("cross", "multihead_attn")):
                layer = f"{PREDICTOR}.transformer_{kind}_attention_layers.{i}"
                shapes |= _attention_shapes(f"{layer}.{part}", channels)
                shapes |= _affine(f"{layer}.norm", channels)
            layer = f"{PREDICTOR}.transformer_ffn_layers.{i}"
            shapes |= _feed_forward_shapes(layer, channels, hidden)
            shapes |= _affine(f"{layer}.norm", channels)
    norm = "transformer.decoder.norm" if standard else "decoder_norm"
    shapes |= _affine(f"{PREDICTOR}.{norm}", channels)
    if not standard:
        shapes[f"{PREDICTOR}.query_feat.weight"] = (queries, channels)
        shapes[f"{PREDICTOR}.level_embed.weight"] = (1, channels)
    shapes[f"{PREDICTOR}.query_embed.weight"] = (queries, channels)
    if last != channels:
        shapes |= _linear(f"{PREDICTOR}.input_proj", channels, last, 1, 1)
    shapes |= _linear(f"{PREDICTOR}.mask_proj", channels, last, 1, 1)
    shapes |= _linear(f"{PREDICTOR}.class_embed", classes + 1, channels)
    for k in range(3):
        shapes |= _linear(f"{PREDICTOR}.mask_embed.layers.{k}", channels, channels)
    return shapes


def _resnet_shapes(backbone: ResNetShape, level: int) -> Shapes:
    width = backbone.width
    shapes: Shapes = {"backbone.stem.0.weight": (width, 3, 7, 7)}
    shapes |= _batch_norm("backbone.stem.1", width)
    inner = width
    for stage, depth in enumerate(backbone.depths):
        mid, outer = width * 2**stage, 4 * width * 2**stage
        for i in range(depth):
            block = f"backbone.layer{stage + 1}.{i}"
            deformable = i == 0 and stage > 3 - level and backbone.deformable
            convs = {"conv1": (mid, inner, 1), "conv2": (mid, mid, 3), "conv3": (outer, mid, 1)}
            if i == 0:
                convs["downsample.0"] = (outer, inner, 1)
            for name, (out, into, kernel) in convs.items():
                conv = f"{block}.{name}"
                if deformable and name in ("conv2", "downsample.0"):
                    shapes |= _linear(f"{conv}.deform", out, into, kernel, kernel)
                    shapes |= _linear(f"{conv}.offset", 3 * kernel**2, into, 3, 3)
                else:
                    shapes[f"{conv}.weight"] = (out, into, kernel, kernel)
            for k, channels in ((1, mid), (2, mid), (3, outer)):
                shapes |= _batch_norm(f"{block}.bn{k}", channels)
            if i == 0:
                shapes |= _batch_norm(f"{block}.downsample.1", outer)
            inner = outer
    return shapes


def _swin_shapes(backbone: SwinShape) -> Shapes:
    shapes = _linear("backbone.patch_embed.proj", backbone.width, 3, 4, 4)
    shapes |= _affine("backbone.patch_embed.norm", backbone.width)
    cells = backbone.window**2
    for stage, depth in enumerate(backbone.depths):
        width = backbone.channels[stage]
        for i in range(depth):
            block = f"backbone.layers.{stage}.blocks.{i}"
            offsets = (2 * backbone.window - 1) ** 2
            table = f"{block}.attn.relative_position"
            shapes[f"{table}_bias_table"] = (offsets, backbone.heads[stage])
            shapes[f"{table}_index"] = (cells, cells)
            shapes |= _linear(f"{block}.attn.qkv", 3 * width, width)
            shapes |= _linear(f"{block}.attn.proj", width, width)
            shapes |= _linear(f"{block}.mlp.fc1", 4 * width, width)
            shapes |= _linear(f"{block}.mlp.fc2", width, 4 * width)
            for k in (1, 2):
                shapes |= _affine(f"{block}.norm{k}", width)
        if stage < 3:
            merging = f"backbone.layers.{stage}.downsample"
            shapes[f"{merging}.reduction.weight"] = (2 * width, 4 * width)
            shapes |= _affine(f"{merging}.norm", 4 * width)
    return shapes | _affine("backbone.norm3", backbone.channels[-1])


def _affine(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _batch_norm(name: str, channels: int) -> Shapes:
    return {
        f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")
    }


def _linear(name: str, outer: int, inner: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (outer, inner, *kernel), f"{name}.bias": (outer,)}


def _attention_shapes(name: str, channels: int) -> Shapes:
    packed = {
        f"{name}.in_proj_weight": (3 * channels, channels),
        f"{name}.in_proj_bias": (3 * channels,),
    }
    return packed | _linear(f"{name}.out_proj", channels, channels)


def _feed_forward_shapes(name: str, channels: int, hidden: int) -> Shapes:
    first = _linear(f"{name}.linear1", hidden, channels)
    return first | _linear(f"{name}.linear2", channels, hidden)


def position_index(window: int) -> Tensor:
    """Row of the bias table for every pair of cells of a window, by their offset, row-major."""
    cells = list(product(range(window), repeat=2))
    side = 2 * window - 1
    return torch.tensor(
        [[(y - v + window - 1) * side + x - u + window - 1 for v, u in cells] for y, x in cells]
    )


def random_state(shapes: Shapes, seed: int = 0) -> State:
    """Random weights at scales where every tensor affects the outputs and nothing overflows."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        noise = torch.randn(shape, generator=generator)
        if kind == "relative_position_index":
            state[name] = position_index(math.isqrt(shape[0]))
        elif kind == "running_var":
            state[name] = 0.5 + torch.rand(shape, generator=generator)
        elif kind == "temp":
            state[name] = 0.1 + 0.05 * noise.abs()
        elif kind == "weight" and len(shape) == 1:  # of a norm: small where residuals add up
            state[name] = (0.4 if module.endswith("bn3") else 1.0) * (1 + 0.2 * noise)
        elif kind in ("bias", "in_proj_bias", "running_mean"):
            state[name] = 0.2 * noise
        elif kind == "weight" and module.endswith(("query_embed", "query_feat", "level_embed")):
            state[name] = noise
        elif kind == "relative_position_bias_table":
            state[name] = 0.5 * noise
        else:
            state[name] = noise / math.sqrt(math.prod(shape[1:]))
    return state
