"""HCFormerSegHead: HCFormerHead as a decode head of mmseg."""

from collections.abc import Sequence
from typing import Any

from mmengine.structures import InstanceData
from mmseg.utils import SampleList
from torch import Tensor
from torch.nn import functional as F

from ...registry import MODELS
from ...structures.clustered_features import ClusteredFeatures
from ..utils.label_maps import present_labels
from ..utils.post_processing import semantic_scores
from .hcformer_head import HCFormerHead


@MODELS.register_module()
class HCFormerSegHead(HCFormerHead):
    """:class:`HCFormerHead` for semantic segmentation in mmseg's ``EncoderDecoder`` (Sec. 4.1).

    It builds the ground truth, one mask per class of an image, and computes class scores. The
    scores are sums of probabilities, not logits: their argmax needs no softmax. mmseg's
    ``SegTTAModel`` averages the softmax of the scores of all views, which keeps the order of the
    classes in each view.

    The attribute ``out_channels`` is the number of classes, as mmseg expects; the option of that
    name is the number of mask channels.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of pixels without a class.
        align_corners: Option with which mmseg resizes the scores to the original size of an image.
        options: Arguments of :class:`~hcformer_mm.models.HCFormerHead` other than the numbers of
            classes and ``test_cfg``. ``train_cfg`` belongs to the head's own config.

    Raises:
        TypeError: An option is unknown.
        ValueError: There are less than two classes, or as in
            :class:`~hcformer_mm.models.HCFormerHead`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_index: int = 255,
        align_corners: bool = False,
        **options: Any,
    ) -> None:
        if num_classes < 2:  # mmseg would take the score of a single one for a logit
            raise ValueError(
                f"expected num_classes of at least 2 for {type(self).__name__}, got {num_classes}; "
                "let the background be a class too, in the label maps as well"
            )
        # HCFormerHead rejects unknown options, and Python rejects options that are passed twice.
        super().__init__(
            num_things_classes=num_classes, num_stuff_classes=0, test_cfg=None, **options
        )
        self.out_channels = num_classes
        self.ignore_index = ignore_index
        self.align_corners = align_corners

    def masks_of_classes(self, label_map: Tensor) -> InstanceData:
        """Split a label map into one mask for each class in it.

        Args:
            label_map: Labels of the pixels, ``(1, H, W)``.

        Returns:
            ``labels`` ``(N,)`` and ``masks`` ``(N, H, W)``; N = 0 if all pixels are ignored.

        Raises:
            ValueError: A label is neither a class nor ``ignore_index``.
        """
        label_map = label_map.long()  # 8 bits would wrap num_classes=256
        ignored = label_map == self.ignore_index
        unknown = ~ignored & ((label_map < 0) | (label_map >= self.num_classes))
        if unknown.any():
            raise ValueError(
                f"expected labels below num_classes={self.num_classes} or "
                f"ignore_index={self.ignore_index}, got {label_map[unknown].unique().tolist()}; "
                "see num_classes of the head and reduce_zero_label of the dataset"
            )
        labels = present_labels(label_map.masked_fill(ignored, -1), 0, self.num_classes)
        return InstanceData(labels=labels, masks=label_map == labels[:, None, None])

    def _ground_truth(self, batch_data_samples: SampleList) -> list[InstanceData]:
        truth = []
        for sample in batch_data_samples:
            try:
                truth.append(self.masks_of_classes(sample.gt_sem_seg.data))
            except ValueError as error:
                file = sample.get("seg_map_path") or sample.get("img_path")
                raise ValueError(f"{error}: {file}") from None
        return truth

    def loss(
        self,
        x: ClusteredFeatures,
        batch_data_samples: SampleList,
        train_cfg: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of :meth:`HCFormerHead.loss` on ``gt_sem_seg``.

        ``train_cfg``, which the segmentor passes, is unused: the head has its own.
        """
        return super().loss(x, batch_data_samples)

    def predict(  # type: ignore[override]  # segmentors and detectors call it differently
        self,
        inputs: ClusteredFeatures,
        batch_img_metas: list[dict[str, Any]],
        test_cfg: dict[str, Any],
    ) -> Tensor:
        """Score the classes of every pixel.

        Args:
            inputs: Feature maps with their clustering.
            batch_img_metas: Metainfo of the images, as mmseg's segmentor passes it.
            test_cfg: Config of the segmentor; its ``mode`` determines where the size of the input
                is found.

        Returns:
            Class scores ``(B, K, H, W)`` at the size of the input.

        Raises:
            TypeError: The features carry no clustering.
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
    """Height and width of the network's input."""
    # For a sliding window, mmseg sets img_shape to the window's size and leaves pad_shape as it is.
    if test_cfg.get("mode") == "slide":
        return img_meta["img_shape"][:2]
    return (img_meta.get("pad_shape") or img_meta["img_shape"])[:2]
