"""Which HCFormer a set of names and shapes, or a config, describes; and which config fits it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mmdet.models.backbones import ResNet
from mmengine.config import Config

from ...models.heads.hcformer_head import Decoder
from ...utils.config import CONFIGS
from ..io import some
from .key_mapping import STAGES

Shapes = Mapping[str, tuple[int, ...]]

SETTINGS = {
    "level": "model.backbone.hierarchical_level",
    "downsampling": "model.backbone.downsampling",
    "decoder": "model.{head}.decoder",
    "decoder_layers": "model.{head}.transformer_decoder.num_layers",
    "queries": "model.{head}.num_queries",
}
"""Where a config has what may be overridden on a command line. Everything else is another model."""


PATCHES = "backbone.patch_embed.proj"
"""The patch embedding of a released Swin."""


class _Names(NamedTuple):
    """How a released backbone says what it is."""

    stem: str
    blocks: list[str]  # a pattern for every stage, whose group is the number of a block
    tables: list[str]  # of relative positions, one for every stage
    clusterings: str


_NAMES = {
    "ResNet": _Names(
        stem="backbone.stem.0.weight",
        blocks=[rf"backbone\.layer{s + 1}\.(\d+)\..*" for s in range(STAGES)],
        tables=[],
        clusterings=r"backbone\.clustering_layers\.(\d+)\.temp",
    ),
    "SwinTransformer": _Names(
        stem=f"{PATCHES}.weight",
        blocks=[rf"backbone\.layers\.{s}\.blocks\.(\d+)\..*" for s in range(STAGES)],
        tables=[
            f"backbone.layers.{s}.blocks.0.attn.relative_position_bias_table" for s in range(STAGES)
        ],
        clusterings=r"backbone\.layers\.(\d+)\.clustering\.temp",
    ),
}


@dataclass(frozen=True)
class Architecture:
    """An HCFormer, as far as the names and shapes of its tensors tell.

    Attributes:
        family: ``'ResNet'`` or ``'SwinTransformer'``.
        depths: Blocks of every stage.
        width: Channels of a ResNet's stem, or of Swin's patch embedding.
        window: Side of Swin's windows; 0 for a ResNet.
        heads: Attention heads of every stage of Swin; none for a ResNet.
        level: Number of clustered downsamplings.
        downsampling: As of :class:`~hcformer_mm.models.HCBackbone`; ``'original'`` at level 0.
        encoder_layers: Layers of HCFormer+'s encoder; 0 without it.
        decoder: As of :class:`~hcformer_mm.models.HCFormerHead`.
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
        """The backbone's usual name, such as ``R50`` or ``Swin-L``."""
        if self.family == "ResNet":
            depths = {stages: depth for depth, (_, stages) in ResNet.arch_settings.items()}
            name = f"R{depths.get(self.depths, self.depths)}"
            return name if self.width == 64 else f"{name} of width {self.width}"
        letters = {(96, 6): "T", (96, 18): "S", (128, 18): "B", (192, 18): "L"}
        letter = letters.get((self.width, self.depths[2]), f"of width {self.width}")
        return f"Swin-{letter}, window {self.window}"

    def __str__(self) -> str:
        """In a line."""
        return (
            f"HCFormer{'+' if self.encoder_layers else ''} {self.backbone}, level {self.level}, "
            f"{self.downsampling} downsampling, {self.decoder} decoder of {self.decoder_layers} "
            f"layers, {self.queries} queries of {self.channels} channels, {self.classes} classes"
        )

    def differences(self, other: "Architecture") -> dict[str, tuple[Any, Any]]:
        """The attributes that differ, with their value here and there."""
        here, there = asdict(self), asdict(other)
        return {key: (here[key], there[key]) for key in here if here[key] != there[key]}


def find_architecture(shapes: Shapes) -> Architecture:
    """Tell the architecture from the names and shapes of a released checkpoint.

    Args:
        shapes: Name and shape of every tensor.

    Raises:
        ValueError: These are not the names of an HCFormer.
    """
    family = "SwinTransformer" if f"{PATCHES}.weight" in shapes else "ResNet"
    names = _NAMES[family]
    predictor = "sem_seg_head.predictor"
    is_masked = f"{predictor}.query_feat.weight" in shapes
    layers = "transformer_ffn_layers" if is_masked else "transformer.decoder.layers"
    try:
        width = shapes[names.stem][0]
        queries, channels = shapes[f"{predictor}.query_embed.weight"]
        classes = shapes[f"{predictor}.class_embed.weight"][0] - 1
        tables = [shapes[table] for table in names.tables]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"expected the tensors of a released HCFormer, among them {error}, got {some(shapes)}"
        ) from None
    return Architecture(
        family=family,
        depths=tuple(_count(shapes, blocks) for blocks in names.blocks),
        width=width,
        # A table has a row for every offset between two cells of a window: (2w - 1)² rows.
        window=(round(tables[0][0] ** 0.5) + 1) // 2 if tables else 0,
        heads=tuple(table[1] for table in tables),
        level=_count(shapes, names.clusterings),
        downsampling="deform" if any(".deform." in name for name in shapes) else "original",
        encoder_layers=_count(shapes, r"backbone\.aux\.encoder\.layers\.(\d+)\..*"),
        decoder="masked" if is_masked else "standard",
        decoder_layers=_count(shapes, rf"{re.escape(f'{predictor}.{layers}')}\.(\d+)\..*"),
        channels=channels,
        queries=queries,
        classes=classes,
    )


def _count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the names have at the group of the pattern."""
    matches = (re.fullmatch(pattern, name) for name in names)
    return len({match.group(1) for match in matches if match})


def head_of(config: Config) -> str:
    """Where the model of a config has its head: ``'panoptic_head'`` or ``'decode_head'``."""
    return "decode_head" if "decode_head" in config.model else "panoptic_head"


def architecture_of_config(config: Config) -> Architecture:
    """The architecture that a config describes.

    Raises:
        ValueError: It is no HCFormer with a ResNet or a Swin of the host.
    """
    try:
        head = config.model[head_of(config)]
        wrapper, backbone = config.model.backbone, config.model.backbone.backbone
        family = backbone.type.rpartition(".")[2]
        is_resnet = family == "ResNet"
        level = wrapper.hierarchical_level
        classes = head.get("num_classes")
        if classes is None:
            classes = head.num_things_classes + head.num_stuff_classes
        return Architecture(
            family=family,
            depths=tuple(ResNet.arch_settings[backbone.depth][1] if is_resnet else backbone.depths),
            width=backbone.get("stem_channels") or backbone.get("base_channels", 64)
            if is_resnet
            else backbone.embed_dims,
            window=0 if is_resnet else backbone.window_size,
            heads=() if is_resnet else tuple(backbone.num_heads),
            level=level,
            # Without clusters nothing is replaced, whatever the setting.
            downsampling=wrapper.downsampling if level else "original",
            encoder_layers=config.model.neck.encoder.num_layers if config.model.get("neck") else 0,
            decoder=head.decoder,
            decoder_layers=head.transformer_decoder.num_layers,
            channels=head.feat_channels,
            queries=head.num_queries,
            classes=classes,
        )
    except (AttributeError, KeyError) as error:
        raise ValueError(
            f"expected a config of HCFormer with a ResNet or a Swin, got {config.filename}: "
            f"without {error}"
        ) from None


def options_for(architecture: Architecture, config: Config) -> dict[str, Any] | None:
    """Overrides that turn the model of a config into an architecture.

    Args:
        architecture: The wanted one.
        config: Any config of HCFormer.

    Returns:
        Values by path in the config; None if no overrides do it, as it is another model.
    """
    differences = architecture.differences(architecture_of_config(config))
    if not differences.keys() <= SETTINGS.keys():
        return None
    head = head_of(config)
    return {SETTINGS[key].format(head=head): wanted for key, (wanted, _) in differences.items()}


@cache
def _architecture_of(path: Path) -> tuple[Config, Architecture]:
    config = Config.fromfile(path)
    return config, architecture_of_config(config)


def known_variants() -> Iterator[tuple[Path, Config, Architecture]]:
    """File, content and architecture of every config of HCFormer in this package, short names first."""
    for path in sorted(CONFIGS.glob("hcformer/*.py"), key=lambda path: (len(path.name), path)):
        yield path, *_architecture_of(path)


def choose_config(architecture: Architecture) -> tuple[Path, dict[str, Any]]:
    """The config of this package that describes an architecture with the fewest overrides.

    Returns:
        Its file, and the overrides.

    Raises:
        ValueError: None does.
    """
    fitting = []
    for path, config, known in known_variants():
        if known == architecture:
            return path, {}
        if (options := options_for(architecture, config)) is not None:
            fitting.append((path, options))
    if not fitting:
        known_ones = sorted({str(known) for *_, known in known_variants()})
        raise ValueError(
            f"expected one of the models of configs/hcformer, got {architecture}; give a config of "
            "your own that describes it (--config). There are:\n  " + "\n  ".join(known_ones)
        )
    return min(fitting, key=lambda fit: len(fit[1]))
