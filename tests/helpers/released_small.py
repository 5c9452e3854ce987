"""Small HCFormers, each as a released checkpoint and as a config with overrides."""

from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

from mmengine.config import Config

from hcformer_mm.utils.config import find_config
from tests.helpers.released_checkpoints import (
    ResNetShape,
    Shapes,
    State,
    SwinShape,
    model_shapes,
    random_state,
)

COCO = "hcformer_{}_8xb2-lsj-50e_coco-panoptic"
COCO_PLUS = "hcformer-plus_{}_8xb2-lsj-100e_coco-panoptic"
ADE20K = "hcformer_{}_8xb2-160k_ade20k-512x512"
SWIN = SwinShape(width=16, depths=(2, 2, 2, 2), heads=(1, 2, 2, 4), window=4)
CHANNELS, HEADS, HIDDEN, LAYERS, QUERIES, EMBED = 64, 8, 96, 3, 30, 24


class Small(NamedTuple):
    """A model of few channels.

    Attributes:
        state: Random weights under their released names.
        name: A config of the package.
        options: Overrides that turn it into this model.
        swin_heads: Attention heads of the stages of Swin.
    """

    state: State
    name: str
    options: dict[str, Any]
    swin_heads: tuple[int, ...]

    @property
    def config(self) -> Config:
        config = deepcopy(read(self.name))
        config.merge_from_dict(self.options)
        return config


@cache
def read(name: str) -> Config:
    return Config.fromfile(find_config(name))


def small(
    backbone: str = "R50",
    *,
    level: int = 3,
    deformable: bool = True,
    plus: bool = False,
    standard: bool = False,
    semantic: bool = False,
    seed: int = 1,
) -> Small:
    """A small model; ``backbone`` is ``'R50'`` or ``'Swin-S'``."""
    shape = ResNetShape(4, deformable=deformable) if backbone == "R50" else SWIN
    shapes: Shapes = model_shapes(
        shape,
        level=level,
        encoder_layers=2 if plus else 0,
        standard=standard,
        decoder_layers=LAYERS,
        channels=CHANNELS,
        hidden=HIDDEN,
        queries=QUERIES,
        classes=150 if semantic else 133,
        embed=EMBED,
    )
    head = "decode_head" if semantic else "panoptic_head"
    attention = dict(embed_dims=CHANNELS, num_heads=HEADS)
    ffn_cfg = dict(embed_dims=CHANNELS, feedforward_channels=HIDDEN)
    layer_cfg = dict(self_attn_cfg=attention, ffn_cfg=ffn_cfg)
    wrapper = dict(hierarchical_level=level, embed_channels=EMBED)
    if backbone == "R50":
        wrapper["backbone"] = dict(base_channels=4)
        wrapper["downsampling"] = "deform" if deformable else "original"
    else:
        size = dict(depths=SWIN.depths, num_heads=SWIN.heads, window_size=SWIN.window)
        wrapper["backbone"] = dict(embed_dims=SWIN.width, **size)
    last = shape.channels[-1]
    model = dict(backbone=wrapper)
    model[head] = dict(
        in_channels=CHANNELS if plus else last,
        feat_channels=CHANNELS,
        out_channels=CHANNELS,
        num_queries=QUERIES,
        decoder="standard" if standard else "masked",
        transformer_decoder=dict(
            num_layers=LAYERS, layer_cfg=dict(layer_cfg, cross_attn_cfg=attention)
        ),
        positional_encoding=dict(num_feats=CHANNELS // 2),
    )
    if plus:
        model["neck"] = dict(
            in_channels=last,
            out_channels=CHANNELS,
            encoder=dict(num_layers=2, layer_cfg=layer_cfg),
            positional_encoding=dict(num_feats=CHANNELS // 2),
        )
    name = ADE20K if semantic else COCO_PLUS if plus else COCO
    name = name.format("r50" if backbone == "R50" else "swin-s-p4-w7-224")
    return Small(random_state(shapes, seed), name, dict(flatten(model, "model")), SWIN.heads)


def flatten(options: dict[str, Any], prefix: str) -> Any:
    """Yield paths and values, as on a command line."""
    for key, value in options.items():
        path = f"{prefix}.{key}"
        if isinstance(value, dict):
            yield from flatten(value, path)
        else:
            yield path, value
