"""HCBackbone: hierarchical clustering around any registered multi-stage backbone."""

from collections.abc import Sequence
from typing import Any, Literal

from mmengine.model import BaseModule
from torch import Tensor, nn

from ...registry import MODELS
from ...structures import ClusteredFeatures
from ..clustering import ClusteringModule
from ..downsampling import DeformableDownsampling, make_downsampling_deformable
from . import taps as tapping


@MODELS.register_module()
class HCBackbone(BaseModule):
    """A backbone that also says, at every downsampling, which coarse cell a fine pixel belongs to.

    "Clustering after downsampling" (paper, Sec. 2): the maps before and after a downsampling layer
    are read while the backbone runs, and a :class:`~hcformer_mm.models.ClusteringModule` assigns
    the fine pixels to the coarse ones. The wrapped backbone's forward path, parameter names and
    pretrained loading stay as they are; with ``downsampling='original'`` its outputs are bit for
    bit those of the bare backbone.

    Args:
        backbone: Config of any registered backbone, e.g. ``dict(type='mmdet.ResNet', depth=50)``.
        hierarchical_level: How many downsamplings are clustered, counted from the deepest
            (Fig. II). 0 means none.
        embed_channels: Channels of the space in which similarities are taken.
        init_scale: Initial value of the scales.
        downsampling: ``'deform'`` replaces the strided convolutions of the clustered downsamplings
            by DCNv2 (Sec. 2.5, for CNNs); ``'original'`` leaves them.
        taps: Names of the modules whose input is the fine and whose output is the coarse map,
            finest first. By default those of the backbone's family: the first block of every ResNet
            stage but the first.
        init_cfg: Initialisation of the whole module, as everywhere in MMEngine. The wrapped
            backbone's own ``init_cfg`` stands in ``backbone``.

    Raises:
        ValueError: The taps are unknown, do not halve the resolution, or are fewer than
            ``hierarchical_level``.
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
        self.taps = self._choose_taps(taps, hierarchical_level)
        tapping.attach(self.backbone, self.taps)
        if downsampling == "deform":
            for name in self.taps:
                make_downsampling_deformable(self.backbone.get_submodule(name))
        self.clusterings = nn.ModuleList(
            ClusteringModule(fine.shape[1], coarse.shape[1], embed_channels, init_scale)
            for fine, coarse in self._probe()
        )

    def _choose_taps(self, taps: Sequence[str] | None, level: int) -> list[str]:
        """The ``level`` deepest taps."""
        if taps is None:
            taps = tapping.default_taps(self.backbone)
        if taps is None:
            if level == 0:
                return []
            raise ValueError(
                f"expected taps for {type(self.backbone).__name__}, a backbone without default "
                "ones; name modules whose input is the fine and whose output is the coarse map, "
                f"finest first, among {tapping.halving_modules(self.backbone)}"
            )
        if not 0 <= level <= len(taps):
            raise ValueError(
                f"expected hierarchical_level between 0 and {len(taps)}, the number of taps of "
                f"{type(self.backbone).__name__}, got {level}"
            )
        return list(taps[len(taps) - level :])

    def _probe(self) -> list[tapping.Pair]:
        """What the taps see of a blank image, checked."""
        if not self.taps:
            return []
        with tapping.recording() as captured:
            tapping.dry_run(self.backbone)
        for name in self.taps:
            if name not in captured or not tapping.halves(*captured[name]):
                raise ValueError(
                    f"expected the tap {name!r} to be run and to halve the resolution of a "
                    "map (B, C, H, W); those that do are "
                    f"{tapping.halving_modules(self.backbone)}"
                )
        return [captured[name] for name in self.taps]

    def init_weights(self) -> None:
        """Initialise as MMEngine does; deformable kernels start undeformed."""
        super().init_weights()
        if not (_is_pretrained(self) or _is_pretrained(self.backbone)):
            # A backbone trained from scratch initialises every convolution inside it, those of the
            # offsets included.
            for module in self.modules():
                if isinstance(module, DeformableDownsampling):
                    module.reset_offsets()

    def forward(self, x: Tensor) -> ClusteredFeatures:
        """Run the backbone and cluster.

        Args:
            x: Images ``(B, 3, H, W)``.

        Returns:
            The feature maps of the wrapped backbone with ``hierarchical_level`` assignments.
        """
        with tapping.recording() as captured:
            features = self.backbone(x)
        pairs = [captured[name] for name in self.taps]
        return ClusteredFeatures(
            (features,) if isinstance(features, Tensor) else features,
            assignments=[
                clustering(fine, coarse)
                for clustering, (fine, coarse) in zip(self.clusterings, pairs, strict=True)
            ],
            scales=[clustering.get_parameter("scale") for clustering in self.clusterings],
        )


def _is_pretrained(module: nn.Module) -> bool:
    init_cfg = getattr(module, "init_cfg", None)
    return isinstance(init_cfg, dict) and init_cfg.get("type") == "Pretrained"
