"""HCBackbone: hierarchical clustering around any registered multi-stage backbone."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...ops.neighborhood import coarse_size
from ...registry import MODELS
from ...structures.clustered_features import ClusteredFeatures
from ..layers.clustering import ClusteringModule
from ..layers.deformable_downsampling import DeformableDownsampling, make_downsampling_deformable
from ..utils.pretrained import TIMM_MODEL, is_pretrained, rename_timm_weights
from . import taps as tapping

PAPER_LEVELS = 3
"""Downsamplings that the paper clusters: those below the stem."""

IMAGE_CHANNELS = 16
"""Channels of the map of the image's pixels, which level 5 clusters."""


@MODELS.register_module()
class HCBackbone(BaseModule):
    """Wrap a backbone so that it also clusters the pixels at every downsampling.

    "Clustering after downsampling" (paper, Sec. 2): hooks read the maps before and after a
    downsampling layer, and a :class:`~hcformer_mm.models.ClusteringModule` assigns the fine pixels
    to the coarse cells. The wrapped backbone's forward path, parameter names and pretrained loading
    stay as they are; with ``downsampling='original'`` its outputs are bit for bit the bare
    backbone's.

    Args:
        backbone: Config of any registered backbone, e.g. ``dict(type='mmdet.ResNet', depth=50)``.
        hierarchical_level: Number of clustered downsamplings, counted from the deepest (Fig. II).
            The paper's models cluster up to three, down to stride 4. Where the stem halves the
            image twice, as in ResNets, 4 clusters the pixels of its map of stride 2, and 5 those of
            the image itself, by a learned 3×3 convolution with :data:`IMAGE_CHANNELS` channels.
        embed_channels: Channels of the space in which similarities are taken; at levels 4 and 5 at
            most as many as the fine map has, of which a projection makes no more.
        init_scale: Initial value of the scales.
        downsampling: ``'deform'`` replaces the strided convolutions of the clustered downsamplings
            by DCNv2 (Sec. 2.5, for CNNs); ``'original'`` keeps them, as transformers need. A stem
            keeps its first convolution and its pooling in either case.
        taps: Names of the modules whose input is the fine and whose output is the coarse map,
            finest first; maps, or tokens with their size. By default a dry run finds them
            (:meth:`~hcformer_mm.models.backbones.taps.DryRun.find_taps`).
        init_cfg: Initialization config of the whole module. The wrapped backbone has its own, in
            ``backbone``.

    Raises:
        ValueError: ``downsampling`` is unknown, the backbone does not run on blank images, or the
            taps are unknown, do not halve the resolution one after the other, are fewer than
            ``hierarchical_level``, or cannot be made deformable.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        hierarchical_level: int = 3,
        embed_channels: int = 128,
        init_scale: float = 0.1,
        downsampling: Literal["deform", "original"] = "deform",
        taps: Sequence[str] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if downsampling not in ("deform", "original"):
            raise ValueError(f"expected downsampling 'deform' or 'original', got {downsampling!r}")
        self.backbone = MODELS.build(backbone)
        if hasattr(self.backbone, TIMM_MODEL):
            self.backbone.register_load_state_dict_pre_hook(rename_timm_weights)
        run = tapping.dry_run(self.backbone)
        self.taps = self._choose_taps(taps, hierarchical_level, run)
        calls = [run.calls[name] for name in self.taps]
        pairs = [cast(tapping.Pair, call.pair) for call in calls]
        # Channels before and after each downsampling, and of the space of similarities.
        channels = [(pair.fine.shape[1], pair.coarse.shape[1]) for pair in pairs]
        embeds = [
            min(embed_channels, fine) if level > PAPER_LEVELS else embed_channels
            for level, (fine, _) in zip(range(len(pairs), 0, -1), channels, strict=True)
        ]
        self.image_map = None
        if hierarchical_level > len(self.taps):
            self.image_map = nn.Sequential(
                nn.Conv2d(run.in_channels, IMAGE_CHANNELS, 3, padding=1), nn.ReLU(inplace=True)
            )
            channels.insert(0, (IMAGE_CHANNELS, channels[0][0]))
            embeds.insert(0, min(embed_channels, IMAGE_CHANNELS))
        self.channels_last = run.channels_last
        tapping.attach(self.backbone, {call.name: call.channels_last for call in calls})
        if downsampling == "deform":
            for call, pair in zip(calls, pairs, strict=True):
                self._deform(call, pair)
        self.clusterings = nn.ModuleList(
            ClusteringModule(*sides, embed, init_scale)
            for sides, embed in zip(channels, embeds, strict=True)
        )

    def _choose_taps(
        self, taps: Sequence[str] | None, level: int, run: tapping.DryRun
    ) -> list[str]:
        """Names of the ``level`` deepest taps, each of which halves the map of the one before.

        They are one less where the finest level is that of the image, which needs no tap: its
        coarse map is the fine one of the first tap.
        """
        family = type(self.backbone).__name__
        names = run.find_taps() if taps is None else list(taps)
        if taps is None and not 0 <= level <= len(names):
            names = run.find_taps(stem=True)
        # The image's level needs a map of half its size.
        finest = run.calls.get(names[0]) if names else None
        most = len(names) + (finest is not None and finest.halvings[0] == 1)
        if not 0 <= level <= most:
            raise ValueError(
                f"expected hierarchical_level between 0 and {most}, the number of taps of "
                f"{family}, and one for the image if the first tap is at stride 2, got {level}; "
                "taps are modules whose input is the fine and whose output is the coarse map, "
                f"finest first; {run.describe_halving_modules()}"
            )
        names = names[max(0, len(names) - level) :]
        modules = dict(self.backbone.named_modules())
        for name in names:
            if name not in modules:
                raise ValueError(
                    f"expected taps to name modules of {family}, got {name!r}; "
                    f"{run.describe_halving_modules()}"
                )
            pair = run.calls[name].pair if name in run.calls else None
            if pair is None or not tapping.halves(pair):
                raise ValueError(
                    f"expected the tap {name!r} to run and to halve the resolution of a map; "
                    f"{run.describe_halving_modules()}"
                )
        for first, second in pairwise(names):
            coarse, fine = run.calls[first].shapes[1][2:], run.calls[second].shapes[0][2:]
            if coarse != fine:
                raise ValueError(
                    f"expected taps without gaps, finest first, got {names}: {first!r} ends "
                    f"at {coarse}, but {second!r} starts at {fine}"
                )
        return names

    def _deform(self, call: tapping.Call, pair: tapping.Pair) -> None:
        block = self.backbone.get_submodule(call.name)
        if call.in_stem and not any(True for _ in block.parameters()):
            return  # pooling
        if pair.tokens:
            raise ValueError(
                f"expected {call.name!r} to be the downsampling of a CNN to make it deformable, "
                f"got {type(block).__name__}, which yields tokens; use downsampling='original' "
                "for transformers"
            )
        make_downsampling_deformable(block)

    def init_weights(self) -> None:
        """Initialize as MMEngine does; deformable kernels start undeformed."""
        is_first = not self.is_init
        super().init_weights()
        if is_first and not (is_pretrained(self) or is_pretrained(self.backbone)):
            # A backbone trained from scratch initializes the offsets' convolutions too.
            for module in self.modules():
                if isinstance(module, DeformableDownsampling):
                    module.reset_offsets()

    def forward(self, x: Tensor) -> ClusteredFeatures:
        """Run the backbone and cluster.

        Args:
            x: Images ``(B, 3, H, W)``.

        Returns:
            The feature maps of the wrapped backbone with ``hierarchical_level`` assignments.
            There may be fewer maps than assignments, depending on the backbone's ``out_indices``.

        Raises:
            ValueError: A downsampling rounds an odd side down, or the backbone's outputs are not
                maps.
            RuntimeError: Activation checkpointing cuts off the gradient of a tap.
        """
        with tapping.recording() as captured:
            features = self.backbone(x)
        maps = [captured[name][:2] for name in self.taps]
        for name, pair in zip(self.taps, maps, strict=True):
            self._check_gradient(name, pair[1])
        if self.image_map is not None:
            maps.insert(0, (self.image_map(x), maps[0][0]))
        for fine, coarse in maps:
            self._check_sizes(tuple(fine.shape[-2:]), tuple(coarse.shape[-2:]))
        features = (features,) if isinstance(features, Tensor) else tuple(features)
        if any(feature.dim() != 4 for feature in features):
            raise ValueError(
                f"expected {type(self.backbone).__name__} to return maps (B, C, H, W), got "
                f"{[tuple(feature.shape) for feature in features]}; turn its pooling off "
                "(gap_before_final_norm=False in ConvNeXt)"
            )
        return ClusteredFeatures(
            # Contiguous, as mmcv's operators on the CPU expect maps.
            tuple(
                tapping.channels_first(feature, last).contiguous() if last else feature
                for feature, last in zip(features, self.channels_last, strict=True)
            ),
            assignments=[
                clustering(*pair) for clustering, pair in zip(self.clusterings, maps, strict=True)
            ],
            # Not get_parameter: inside FSDP's forward these are not nn.Parameters. Copies, because
            # after it FSDP frees the memory of parameters.
            scales=[cast(Tensor, clustering.scale).clone() for clustering in self.clusterings],
        )

    def _check_sizes(self, fine: tuple[int, ...], coarse: tuple[int, ...]) -> None:
        height, width = fine
        if coarse != coarse_size(height, width):
            raise ValueError(
                f"expected {type(self.backbone).__name__} to halve a map of {fine} to "
                f"{coarse_size(height, width)}, got {coarse}; this backbone rounds down: pad "
                "images to a multiple of its stride (pad_size_divisor of the data preprocessor)"
            )

    def _check_gradient(self, name: str, coarse: Tensor) -> None:
        if torch.is_grad_enabled() and not coarse.requires_grad:
            tap = self.backbone.get_submodule(name)
            if any(parameter.requires_grad for parameter in tap.parameters()):
                raise RuntimeError(
                    f"expected the tap {name!r} to run with gradients, but its output has none: it "
                    "is inside reentrant activation checkpointing or no_grad. Checkpoint the "
                    "blocks beside it instead, or freeze it"
                )
