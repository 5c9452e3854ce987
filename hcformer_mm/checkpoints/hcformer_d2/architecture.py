"""Architecture of a released checkpoint or a config, and the config that fits an architecture."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmdet.models.backbones import ResNet
from mmengine.config import Config

from ...models.heads.hcformer_head import Decoder
from ...utils.config import CONFIGS, read_config
from ...utils.errors import some
from .key_mapping import STAGES

Shapes = Mapping[str, tuple[int, ...]]

FAMILIES = ("ResNet", "SwinTransformer")
"""Backbones of the released models."""

SETTINGS = {
    "level": "model.backbone.hierarchical_level",
    "downsampling": "model.backbone.downsampling",
    "decoder": "model.{head}.decoder",
    "decoder_layers": "model.{head}.transformer_decoder.num_layers",
    "queries": "model.{head}.num_queries",
}
"""Settings that ``cfg_options`` may override. Any other difference makes another model."""


@dataclass(frozen=True)
class Architecture:
    """Architecture of an HCFormer, as far as names and shapes of its tensors determine it.

    Attributes:
        family: ``'ResNet'`` or ``'SwinTransformer'``.
        depths: Blocks of every stage.
        width: Channels of a ResNet's stem, or of Swin's patch embedding.
        window: Side of Swin's windows; 0 for a ResNet.
        heads: Attention heads of every stage of Swin; empty for a ResNet.
        level: Number of clustered downsamplings.
        downsampling: As in :class:`~hcformer_mm.models.HCBackbone`; ``'original'`` at level 0.
        encoder_layers: Layers of HCFormer+'s encoder; 0 without it.
        decoder: As in :class:`~hcformer_mm.models.HCFormerHead`.
        decoder_layers: Layers of the decoder.
        channels: Channels of the queries.
        queries: Number of queries.
        classes: Number of classes, without "no object".
    """

    family: str
    depths: tuple[int, ...]
    width: int
    window: int
    heads: tuple[int, ...]
    level: int
    downsampling: str
    encoder_layers: int
    decoder: Decoder
    decoder_layers: int
    channels: int
    queries: int
    classes: int

    @property
    def backbone(self) -> str:
        """Usual name of the backbone, such as ``R50`` or ``Swin-L, window 12``."""
        if self.family == "ResNet":
            depths = {stages: depth for depth, (_, stages) in ResNet.arch_settings.items()}
            name = f"R{depths.get(self.depths, self.depths)}"
            return name if self.width == 64 else f"{name} of width {self.width}"
        letters = {(96, 6): "T", (96, 18): "S", (128, 18): "B", (192, 18): "L"}
        letter = letters.get((self.width, self.depths[2]), f"of width {self.width}")
        return f"Swin-{letter}, window {self.window}"

    def __str__(self) -> str:
        return (
            f"HCFormer{'+' if self.encoder_layers else ''} {self.backbone}, level {self.level}, "
            f"{self.downsampling} downsampling, {self.decoder} decoder of {self.decoder_layers} "
            f"layers, {self.queries} queries of {self.channels} channels, {self.classes} classes"
        )

    def differences(self, other: "Architecture") -> dict[str, tuple[Any, Any]]:
        """Return every attribute that differs, with its values in ``self`` and ``other``."""
        mine, theirs = asdict(self), asdict(other)
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}


def find_architecture(shapes: Shapes) -> Architecture:
    """Recognize the architecture of a released checkpoint by its tensors.

    Args:
        shapes: Shapes of the tensors by their released names.

    Raises:
        ValueError: The names do not belong to an HCFormer.
    """
    stem = "backbone.patch_embed.proj.weight"
    is_swin = stem in shapes
    if is_swin:
        stages = [f"backbone.layers.{s}.blocks" for s in range(STAGES)]
        clusterings = r"backbone\.layers\.(\d+)\.clustering\.temp"
    else:
        stem = "backbone.stem.0.weight"
        stages = [f"backbone.layer{s + 1}" for s in range(STAGES)]
        clusterings = r"backbone\.clustering_layers\.(\d+)\.temp"
    predictor = "sem_seg_head.predictor"
    is_masked = f"{predictor}.query_feat.weight" in shapes
    layers = "transformer_ffn_layers" if is_masked else "transformer.decoder.layers"

    def count(pattern: str) -> int:
        """Count the different numbers that the group of a pattern matches."""
        matches = (re.fullmatch(pattern, name) for name in shapes)
        return len({match.group(1) for match in matches if match})

    try:
        queries, channels = shapes[f"{predictor}.query_embed.weight"]
        # A table has a row for every offset between two cells of a window: (2w - 1)² rows.
        tables = [
            shapes[f"{stage}.0.attn.relative_position_bias_table"]
            for stage in (stages if is_swin else ())
        ]
        return Architecture(
            family="SwinTransformer" if is_swin else "ResNet",
            depths=tuple(count(rf"{re.escape(stage)}\.(\d+)\..*") for stage in stages),
            width=shapes[stem][0],
            window=(round(tables[0][0] ** 0.5) + 1) // 2 if is_swin else 0,
            heads=tuple(table[1] for table in tables),
            level=count(clusterings),
            downsampling="deform" if any(".deform." in name for name in shapes) else "original",
            encoder_layers=count(r"backbone\.aux\.encoder\.layers\.(\d+)\..*"),
            decoder="masked" if is_masked else "standard",
            decoder_layers=count(rf"{re.escape(f'{predictor}.{layers}')}\.(\d+)\..*"),
            channels=channels,
            queries=queries,
            classes=shapes[f"{predictor}.class_embed.weight"][0] - 1,
        )
    except (LookupError, ValueError) as error:
        raise ValueError(
            f"expected the tensors of a released HCFormer, among them {error}, got {some(shapes)}"
        ) from None


def head_of(config: Config) -> str:
    """Return the key of the head in a model's config: ``panoptic_head`` or ``decode_head``."""
    return "decode_head" if "decode_head" in config.model else "panoptic_head"


def _family(backbone: dict[str, Any]) -> str:
    """Name of a backbone's class, without its scope."""
    return backbone["type"].rpartition(".")[2]


def architecture_of_config(config: Config) -> Architecture:
    """Return the architecture that a config describes.

    Raises:
        ValueError: It does not describe an HCFormer with a ResNet or a Swin of mmdet or mmseg.
    """
    try:
        head = config.model[head_of(config)]
        wrapper, backbone = config.model.backbone, config.model.backbone.backbone
        family = _family(backbone)
        if family == "ResNet":
            depths = ResNet.arch_settings[backbone.depth][1]
            width = backbone.get("stem_channels") or backbone.get("base_channels", 64)
            window, heads = 0, ()
        else:
            depths, width = backbone.depths, backbone.embed_dims
            window, heads = backbone.window_size, backbone.num_heads
        classes = head.get("num_classes")
        if classes is None:
            classes = head.num_things_classes + head.num_stuff_classes
        return Architecture(
            family=family,
            depths=tuple(depths),
            width=width,
            window=window,
            heads=tuple(heads),
            level=wrapper.hierarchical_level,
            # At level 0 nothing is replaced, whatever the setting.
            downsampling=wrapper.downsampling if wrapper.hierarchical_level else "original",
            encoder_layers=config.model.neck.encoder.num_layers if config.model.get("neck") else 0,
            decoder=head.decoder,
            decoder_layers=head.transformer_decoder.num_layers,
            channels=head.feat_channels,
            queries=head.num_queries,
            classes=classes,
        )
    except (AttributeError, KeyError) as error:
        raise ValueError(
            f"expected a config of HCFormer with a ResNet or a Swin, got {config.filename} "
            f"without {error}"
        ) from None


def options_for(architecture: Architecture, config: Config) -> dict[str, Any] | None:
    """Return the overrides with which a config describes an architecture.

    Returns:
        Values by their path in the config; None if :data:`SETTINGS` do not cover the differences.
    """
    differences = architecture.differences(architecture_of_config(config))
    if not differences.keys() <= SETTINGS.keys():
        return None
    head = head_of(config)
    return {SETTINGS[key].format(head=head): wanted for key, (wanted, _) in differences.items()}


@cache
def _load(path: Path) -> tuple[Config, Architecture] | None:
    config = read_config(path)
    family = _family(config.model.backbone.backbone)
    return (config, architecture_of_config(config)) if family in FAMILIES else None


def known_architectures() -> Iterator[tuple[Path, Config, Architecture]]:
    """Yield path, content and architecture of every config of a released model.

    Those of HCFormer with other backbones are left out. Short names come first.
    """
    for path in sorted(CONFIGS.glob("hcformer/*.py"), key=lambda path: (len(path.name), path)):
        if (loaded := _load(path)) is not None:
            yield path, *loaded


def choose_config(architecture: Architecture) -> tuple[Path, dict[str, Any]]:
    """Choose the config of configs/hcformer that needs the fewest overrides.

    Returns:
        Path of the config, and the overrides with which it describes the architecture.

    Raises:
        ValueError: No config fits.
    """
    fitting = []
    for path, config, known in known_architectures():
        if known == architecture:
            return path, {}
        if (options := options_for(architecture, config)) is not None:
            fitting.append((path, options))
    if not fitting:
        names = sorted({str(known) for *_, known in known_architectures()})
        raise ValueError(
            f"expected one of the models of configs/hcformer, got {architecture}; give your own "
            "config for it (--config). The models are:\n  " + "\n  ".join(names)
        )
    return min(fitting, key=lambda fit: len(fit[1]))
