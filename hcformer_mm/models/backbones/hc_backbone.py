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
        embed_channels: Channels of the space in which similarities are taken.
        init_scale: Initial value of the scales.
        downsampling: ``'deform'`` replaces the strided convolutions of the clustered downsamplings
            by DCNv2 (Sec. 2.5, for CNNs); ``'original'`` keeps them, as transformers need.
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
        self.channels_last = run.channels_last
        tapping.attach(self.backbone, {call.name: call.channels_last for call in calls})
        if downsampling == "deform":
            for name, pair in zip(self.taps, pairs, strict=True):
                self._deform(name, pair)
        self.clusterings = nn.ModuleList(
            ClusteringModule(pair.fine.shape[1], pair.coarse.shape[1], embed_channels, init_scale)
            for pair in pairs
        )

    def _choose_taps(
        self, taps: Sequence[str] | None, level: int, run: tapping.DryRun
    ) -> list[str]:
        """Names of the ``level`` deepest taps, each of which halves the map of the one before."""
        family = type(self.backbone).__name__
        names = run.find_taps() if taps is None else list(taps)
        if not 0 <= level <= len(names):
            raise ValueError(
                f"expected hierarchical_level between 0 and {len(names)}, the number of taps of "
                f"{family}, got {level}; taps are modules whose input is the fine and whose output "
                f"is the coarse map, finest first; {run.describe_halving_modules()}"
            )
        names = names[len(names) - level :]
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

    def _deform(self, name: str, pair: tapping.Pair) -> None:
        block = self.backbone.get_submodule(name)
        if pair.tokens:
            raise ValueError(
                f"expected {name!r} to be the downsampling of a CNN to make it deformable, got "
                f"{type(block).__name__}, which yields tokens; use downsampling='original' for "
                "transformers"
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
        pairs = [captured[name] for name in self.taps]
        for name, pair in zip(self.taps, pairs, strict=True):
            self._check(name, pair)
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
                clustering(pair.fine, pair.coarse)
                for clustering, pair in zip(self.clusterings, pairs, strict=True)
            ],
            # Not get_parameter: inside FSDP's forward these are not nn.Parameters. Copies, because
            # after it FSDP frees the memory of parameters.
            scales=[cast(Tensor, clustering.scale).clone() for clustering in self.clusterings],
        )

    def _check(self, name: str, pair: tapping.Pair) -> None:
        fine, coarse = tuple(pair.fine.shape[-2:]), tuple(pair.coarse.shape[-2:])
        if coarse != coarse_size(*fine):
            raise ValueError(
                f"expected the tap {name!r} to halve a map of {fine} to {coarse_size(*fine)}, got "
                f"{coarse}; this backbone rounds down: pad images to a multiple of its stride "
                "(pad_size_divisor of the data preprocessor)"
            )
        if torch.is_grad_enabled() and not pair.coarse.requires_grad:
            tap = self.backbone.get_submodule(name)
            if any(parameter.requires_grad for parameter in tap.parameters()):
                raise RuntimeError(
                    f"expected the tap {name!r} to run with gradients, but its output has none: it "
                    "is inside reentrant activation checkpointing or no_grad. Checkpoint the "
                    "blocks beside it instead, or freeze it"
                )
