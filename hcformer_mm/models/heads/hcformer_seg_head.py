"""HCFormerSegHead: HCFormerHead as a decode head of MMSegmentation."""

from collections.abc import Sequence
from typing import Any

from mmengine.structures import InstanceData
from mmseg.utils import SampleList
from torch import Tensor
from torch.nn import functional as F

from ...registry import MODELS
from ...structures.clustered_features import ClusteredFeatures
from ..utils.mask_decoding import MaskSpace
from ..utils.semantic_inference import semantic_scores
from .hcformer_head import Decoder, HCFormerHead


@MODELS.register_module()
class HCFormerSegHead(HCFormerHead):
    """The same head for semantic segmentation in the host's ``EncoderDecoder`` (Sec. 4.1).

    What it adds is the ground truth, one mask per class of an image, and the semantic inference.
    Its scores are sums of probabilities, not logits: nothing is to be normalized before the argmax.
    The host's ``SegTTAModel`` votes with their softmax, which keeps their order.

    Args:
        in_channels: See :class:`~hcformer_mm.models.HCFormerHead`, as for all that is not
            explained here.
        num_classes: Number of classes.
        out_channels: Channels in which mask queries and mask features meet. As an attribute,
            ``out_channels`` is the number of classes, which is what the host means by it.
        ignore_index: Label of pixels without a class.
        align_corners: How the host resizes the scores to the original size of an image.
        train_cfg: ``assigner``, ``sampler`` and so on; in the head's own config, as of the host's
            ``Mask2FormerHead``.

    Raises:
        ValueError: As of :class:`~hcformer_mm.models.HCFormerHead`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        feat_channels: int = 256,
        out_channels: int = 256,
        num_queries: int = 100,
        decoder: Decoder = "masked",
        transformer_decoder: dict[str, Any],
        positional_encoding: dict[str, Any],
        mask_space: MaskSpace = "logit",
        no_object_weight: float = 0.1,
        loss_cls: dict[str, Any],
        loss_mask: dict[str, Any],
        loss_dice: dict[str, Any],
        loss_scale_weight: float = 0.1,
        decode_matched_only: bool = True,
        ignore_index: int = 255,
        align_corners: bool = False,
        train_cfg: dict[str, Any] | None = None,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            feat_channels=feat_channels,
            out_channels=out_channels,
            num_things_classes=num_classes,
            num_stuff_classes=0,
            num_queries=num_queries,
            decoder=decoder,
            transformer_decoder=transformer_decoder,
            positional_encoding=positional_encoding,
            mask_space=mask_space,
            no_object_weight=no_object_weight,
            loss_cls=loss_cls,
            loss_mask=loss_mask,
            loss_dice=loss_dice,
            loss_scale_weight=loss_scale_weight,
            decode_matched_only=decode_matched_only,
            train_cfg=train_cfg,
            init_cfg=init_cfg,
        )
        self.out_channels = num_classes
        self.ignore_index = ignore_index
        self.align_corners = align_corners

    def masks_of_classes(self, label_map: Tensor) -> InstanceData:
        """Ground truth of an image: one mask per class that it shows.

        Args:
            label_map: Labels of the pixels, ``(1, H, W)``.

        Returns:
            ``labels`` ``(N,)`` and ``masks`` ``(N, H, W)``; none where all pixels are ignored.

        Raises:
            ValueError: There are labels of no class.
        """
        labels = label_map.unique()
        labels = labels[labels != self.ignore_index]
        strangers = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(strangers):
            raise ValueError(
                f"expected labels below num_classes={self.num_classes} or "
                f"ignore_index={self.ignore_index}, got {strangers.tolist()}; see num_classes of "
                "the head and reduce_zero_label of the dataset"
            )
        return InstanceData(labels=labels, masks=label_map == labels[:, None, None])

    def loss(
        self,
        inputs: ClusteredFeatures,
        batch_data_samples: SampleList,
        train_cfg: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of :meth:`HCFormerHead.loss` on semantic ground truth.

        Args:
            inputs: Feature maps with their clustering.
            batch_data_samples: Their ``gt_sem_seg``.
            train_cfg: The segmentor's; not read, as the head has its own.

        Returns:
            Losses by name.
        """
        return self.losses(
            inputs,
            [self.masks_of_classes(sample.gt_sem_seg.data) for sample in batch_data_samples],
            [sample.metainfo for sample in batch_data_samples],
        )

    def predict(  # type: ignore[override]  # segmentors call it with other things than detectors
        self,
        inputs: ClusteredFeatures,
        batch_img_metas: list[dict[str, Any]],
        test_cfg: dict[str, Any],
    ) -> Tensor:
        """Score the classes of every pixel.

        Args:
            inputs: Feature maps with their clustering.
            batch_img_metas: Sizes, as the host's segmentor hands them over.
            test_cfg: That of the segmentor, whose ``mode`` says which size the input has.

        Returns:
            Scores ``(B, K, H, W)`` of the classes, at the size of the input.
        """
        class_logits, mask_logits = self(inputs)
        masks = F.interpolate(
            mask_logits[-1],
            size=_input_size(batch_img_metas[0], test_cfg),
            mode="bilinear",
            align_corners=False,
        )
        return semantic_scores(class_logits[-1], masks)


def _input_size(img_meta: dict[str, Any], test_cfg: dict[str, Any]) -> Sequence[int]:
    """Height and width of what went through the network."""
    # The host writes the size of a window into img_shape, and leaves pad_shape as it was.
    if test_cfg.get("mode") == "slide":
        return img_meta["img_shape"][:2]
    return (img_meta.get("pad_shape") or img_meta["img_shape"])[:2]
