"""Per-pixel classification with hierarchical clustering (paper, Appendix F.1)."""

from typing import Any

from mmseg.models.decode_heads import ASPPHead, FCNHead, PSPHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.utils import SampleList
from torch import Tensor

from ...ops.neighborhood import coarse_size
from ...registry import MODELS
from ...structures.clustered_features import ClusteredFeatures, require_clustering
from ..losses.scale_regularizer import scale_losses
from ..utils.mask_decoding import MaskSpace, check_mask_space, decode_class_logits


class ClusteredDecodeHead(BaseDecodeHead):
    r"""Base class that adds hierarchical clustering to a decode head of mmseg.

    The wrapped head classifies the coarsest cells: it runs unchanged on the coarsest feature map.
    Its logits are decoded through the assignments (eq. (5)) before mmseg's loss and prediction. The
    scale regularizer :math:`\lambda_{reg} \sum_i |s^{(i)}|` is added to its losses. With
    ``hierarchical_level=0`` nothing is decoded.

    List it before mmseg's head among the bases. Any head works whose ``forward`` returns one map of
    logits::

        @MODELS.register_module()
        class HCSegformerHead(ClusteredDecodeHead, SegformerHead): ...

    A head that fuses several maps returns logits at the size of the finest, so pass it only the
    coarsest (``in_index=[3], in_channels=[2048]``).

    Args:
        args: Arguments of mmseg's head.
        mask_space: ``'logit'`` or ``'probability'``; see
            :func:`~hcformer_mm.models.utils.mask_decoding.decode_class_logits`.
        loss_scale_weight: :math:`\lambda_{reg}`.
        kwargs: Arguments of mmseg's head, which rejects unknown ones.

    Raises:
        ValueError: ``mask_space`` is unknown.
    """

    def __init__(
        self,
        *args: Any,
        mask_space: MaskSpace = "logit",
        loss_scale_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        check_mask_space(mask_space)
        super().__init__(*args, **kwargs)
        self.mask_space = mask_space
        self.loss_scale_weight = loss_scale_weight

    def forward(self, inputs: ClusteredFeatures) -> Tensor:
        """Classify the coarsest cells and decode.

        Args:
            inputs: Feature maps, finest first, with their clustering.

        Returns:
            Class logits of the finest level, ``(B, K, H, W)``.

        Raises:
            TypeError: The features carry no clustering, or mmseg's head returns more than logits.
            ValueError: The logits of mmseg's head do not have the size of the coarsest cells.
        """
        assignments = require_clustering(inputs).assignments
        logits = super().forward(inputs)  # (B, K, h, w)
        if not assignments:
            return logits
        name, expected = type(self).__name__, coarse_size(*assignments[-1].shape[-2:])
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"expected {name} to return one map of logits, got {type(logits).__name__}; heads "
                "that return more cannot be clustered"
            )
        if tuple(logits.shape[-2:]) != expected:
            raise ValueError(
                f"expected {name} to classify the coarsest cells, {expected}, got logits of "
                f"{tuple(logits.shape[-2:])}; pass it only the coarsest feature map, by in_index "
                f"(now {self.in_index})"
            )
        return decode_class_logits(logits, assignments, self.mask_space)

    def loss(
        self, inputs: ClusteredFeatures, batch_data_samples: SampleList, train_cfg: Any
    ) -> dict[str, Tensor]:
        """Compute mmseg's losses on the decoded logits, and the scale regularizer (Sec. 4.1).

        Args:
            inputs: Feature maps with their clustering.
            batch_data_samples: Ground truth, as in mmseg.
            train_cfg: As in mmseg.

        Returns:
            Losses by name; ``loss_scale`` is the regularizer.
        """
        losses = super().loss(inputs, batch_data_samples, train_cfg)
        return losses | scale_losses(inputs, self.loss_scale_weight)


@MODELS.register_module()
class HCFCNHead(ClusteredDecodeHead, FCNHead):
    """HC-FCN-32s: mmseg's FCN head on clusters, with the arguments of both bases."""


@MODELS.register_module()
class HCPSPHead(ClusteredDecodeHead, PSPHead):
    """HC-PSPNet: mmseg's pyramid pooling head on clusters, with the arguments of both bases."""


@MODELS.register_module()
class HCASPPHead(ClusteredDecodeHead, ASPPHead):
    """HC-Deeplabv3: mmseg's ASPP head on clusters, with the arguments of both bases."""
