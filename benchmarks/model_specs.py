"""What is timed beside each other: configs with settings of their own, written in one word each."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.model import BaseModel

from hcformer_mm.acceleration.conv_bn_fusion import fuse_frozen_bn, is_scaled
from hcformer_mm.acceleration.inference import fuse_conv_bn, to_channels_last
from hcformer_mm.acceleration.training import image_channels_last
from hcformer_mm.apis.inference import build_model
from hcformer_mm.utils.config import find_config


@dataclass(frozen=True)
class Variant:
    """A config with overrides, weights, and how its model is prepared.

    Attributes:
        name: The config's name with what sets it apart, unique among those that are compared.
        file: The config.
        options: Overrides of settings, by dotted key.
        weights: Checkpoint; None for random weights.
        fuse_bn: Whether BatchNorm is fused into convolutions; in training, frozen BatchNorm alone.
        channels_last: Whether weights and images are channels-last; in training, images alone.
    """

    name: str
    file: Path
    options: Mapping[str, Any]
    weights: Path | None = None
    fuse_bn: bool = False
    channels_last: bool = False

    def config(self) -> Config:
        """The config with the overrides."""
        config = Config.fromfile(self.file)
        config.merge_from_dict(dict(self.options))
        return config

    def build(self, seed: int, *, training: bool = False) -> BaseModel:
        """The model in evaluation mode, prepared as the variant says.

        Args:
            seed: Seed of random weights.
            training: Whether it is prepared for training.

        Raises:
            ValueError: There is nothing to fuse, or memory cannot be channels-last.
        """
        model = build_model(self.config(), self.weights, seed=seed)
        if training:
            if self.fuse_bn:
                fuse_frozen_bn(model)
                if not any(map(is_scaled, model.modules())):
                    raise ValueError(
                        f"expected frozen BatchNorm to fuse for training in {self.name}, found none"
                    )
            if self.channels_last:
                image_channels_last(model)
            return model
        if self.fuse_bn:
            model = fuse_conv_bn(model)
        return to_channels_last(model) if self.channels_last else model


def parse_variants(
    texts: Sequence[str],
    *,
    options: Mapping[str, Any] | None = None,
    weights: Sequence[str] | None = None,
    fuse_bn: bool = False,
    channels_last: bool = False,
) -> list[Variant]:
    """Read variants as the command line has them: a config and settings, joined by ``@``.

    A setting is ``key=value``, ``fuse-conv-bn`` or ``channels-last``, such as in
    ``hcformer_r18_shapes-panoptic@fuse-conv-bn@model.panoptic_head.num_queries=50``.

    Args:
        texts: The variants; for the config see :func:`find_config`.
        options: Overrides of all variants; those of a variant itself go first.
        weights: Checkpoint of each, or ``'random'``; by default all are random.
        fuse_bn: Fuse BatchNorm in all.
        channels_last: Channels-last memory in all.

    Raises:
        ValueError: A config does not exist, a part of a text is of neither kind, or there are not
            as many weights as variants.
    """
    weights = weights or ["random"] * len(texts)
    if len(weights) != len(texts):
        raise ValueError(
            f"expected {len(texts)} --checkpoints, one per config, got {list(weights)}"
        )
    variants: list[Variant] = []
    names: list[str] = []
    for text, checkpoint in zip(texts, weights, strict=True):
        config, *settings = text.split("@")
        file = find_config(config)
        flags = {setting for setting in settings if "=" not in setting}
        if not flags <= {"fuse-conv-bn", "channels-last"}:
            raise ValueError(
                "expected CONFIG, and after each @ key=value, fuse-conv-bn or channels-last, got "
                f"{text!r}"
            )
        name = "@".join([file.stem, *settings])
        # The same one may be given twice: the ratio then shows how far ratios can be trusted.
        names.append(name)
        number = names.count(name)
        variants.append(
            Variant(
                name=f"{name} ({number})" if number > 1 else name,
                file=file,
                options={**(options or {}), **_overrides([s for s in settings if "=" in s])},
                weights=None if checkpoint == "random" else Path(checkpoint),
                fuse_bn=fuse_bn or "fuse-conv-bn" in flags,
                channels_last=channels_last or "channels-last" in flags,
            )
        )
    return variants


def _overrides(settings: list[str]) -> dict[str, Any]:
    """Settings ``key=value``, read as by ``--cfg-options`` of every tool."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction, default={})
    return parser.parse_args(["--cfg-options", *settings]).cfg_options
