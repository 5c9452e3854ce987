"""Losses of a mask transformer that decode the masks they need, and no others.

Decoding is linear per mask (eq. (5)). Matching looks at every query, but at random points alone, so
masks are decoded there; the mask losses look at the queries that were matched, so those are decoded
in full, of all stages of the decoder at once. What is computed is what the host's
``Mask2FormerHead`` computes of masks that are all decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from mmcv.ops import point_sample
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from ..utils.mask_decoding import decode_mask_logits, mask_logits_at

if TYPE_CHECKING:
    from ..heads.hcformer_head import HCFormerHead


@dataclass(frozen=True)
class Match:
    """Which query of an image is to show which object, at one stage.

    Attributes:
        labels: Class of every query, ``(Q,)``; K is "no object".
        queries: Matched queries, ``(N,)``.
        objects: Their objects, ``(N,)``.
        number: What the host counts as the number of objects.
    """

    labels: Tensor
    queries: Tensor
    objects: Tensor
    number: int


def matched_losses(
    head: "HCFormerHead",
    all_class_logits: Sequence[Tensor],
    all_mask_logits: Sequence[Tensor],
    assignments: Sequence[Tensor],
    batch_gt_instances: Sequence[InstanceData],
    batch_img_metas: Sequence[dict[str, Any]],
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Match and compare the predictions of all stages of a decoder.

    Args:
        head: Whose assigner, sampler, losses and numbers of points are used.
        all_class_logits: Class logits ``(B, Q, K + 1)`` of every stage.
        all_mask_logits: Mask logits of the coarsest cells ``(B, Q, h, w)`` of every stage.
        assignments: Assignments, finest first.
        batch_gt_instances: ``labels`` ``(N,)`` and ``masks`` ``(N, H', W')`` of every image.
        batch_img_metas: For the assigner.

    Returns:
        Classification, mask and dice loss of every stage.
    """
    truth = [
        # Read at points once per stage and more: turned into numbers once.
        InstanceData(labels=instances.labels, masks=instances.masks.to(all_mask_logits[0].dtype))
        for instances in batch_gt_instances
    ]
    matches = [
        _match(head, class_logits, mask_logits, assignments, truth, batch_img_metas)
        for class_logits, mask_logits in zip(all_class_logits, all_mask_logits, strict=True)
    ]  # of every stage and image
    masks = []  # of every image: the matched masks of all stages, (N, H, W)
    for image in range(len(truth)):
        logits = torch.cat(
            [
                mask_logits[image, of_stage[image].queries]
                for mask_logits, of_stage in zip(all_mask_logits, matches, strict=True)
            ]
        )
        of_image = [assignment[image : image + 1] for assignment in assignments]
        decoded = decode_mask_logits(logits[None], of_image, head.mask_space)[0]
        # Each mask is read at points of its own: its pixels are to lie together.
        decoded = decoded.contiguous()
        masks.append(decoded.split([len(of_stage[image].queries) for of_stage in matches]))
    return [
        _losses(head, class_logits, torch.cat(of_images), of_stage, truth)
        for class_logits, of_stage, of_images in zip(
            all_class_logits, matches, zip(*masks, strict=True), strict=True
        )
    ]


@torch.no_grad()
def _match(
    head: "HCFormerHead",
    class_logits: Tensor,
    mask_logits: Tensor,
    assignments: Sequence[Tensor],
    truth: Sequence[InstanceData],
    batch_img_metas: Sequence[dict[str, Any]],
) -> list[Match]:
    """Match the queries of one stage with the objects, at random points of every image."""
    points = torch.rand(
        (len(truth), head.num_points, 2), dtype=mask_logits.dtype, device=mask_logits.device
    )
    predicted = mask_logits_at(mask_logits, assignments, points, head.mask_space)  # (B, Q, P)
    matches = []
    for scores, masks, instances, at, img_meta in zip(
        class_logits, predicted, truth, points, batch_img_metas, strict=True
    ):
        number = len(instances.labels)
        true_masks = point_sample(instances.masks.unsqueeze(1), at.repeat(number, 1, 1)).squeeze(1)
        predictions = InstanceData(scores=scores, masks=masks)
        objects = InstanceData(labels=instances.labels, masks=true_masks)
        assigned = head.assigner.assign(
            pred_instances=predictions, gt_instances=objects, img_meta=img_meta
        )
        sampled = head.sampler.sample(assigned, predictions, objects)
        labels = instances.labels.new_full((len(scores),), head.num_classes, dtype=torch.long)
        labels[sampled.pos_inds] = instances.labels[sampled.pos_assigned_gt_inds]
        # In the order of the objects, so that the masks of all of them are read where they lie.
        order = sampled.pos_assigned_gt_inds.argsort()
        matches.append(
            Match(
                labels=labels,
                queries=sampled.pos_inds[order],
                objects=sampled.pos_assigned_gt_inds[order],
                number=sampled.avg_factor,
            )
        )
    return matches


def _losses(
    head: "HCFormerHead",
    class_logits: Tensor,
    masks: Tensor,
    matches: Sequence[Match],
    truth: Sequence[InstanceData],
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of one stage: class logits ``(B, Q, K + 1)``, matched masks ``(N, H, W)``."""
    class_weight = class_logits.new_tensor(head.class_weight)
    labels = torch.cat([match.labels for match in matches])
    loss_cls = head.loss_cls(
        class_logits.flatten(0, 1),
        labels,
        torch.ones_like(labels),
        avg_factor=class_weight[labels].sum(),
    )
    number = reduce_mean(class_logits.new_tensor([sum(match.number for match in matches)]))
    number = number.clamp(min=1)
    if not len(masks):
        return loss_cls, masks.sum(), masks.sum()
    with torch.no_grad():
        points = get_uncertain_point_coords_with_randomness(
            masks.unsqueeze(1),
            None,
            head.num_points,
            head.oversample_ratio,
            head.importance_sample_ratio,
        )
        of_images = points.split([len(match.objects) for match in matches])
        targets = torch.cat(
            [
                _read(instances.masks, match.objects, at)
                for instances, match, at in zip(truth, matches, of_images, strict=True)
            ]
        )
    predicted = point_sample(masks.unsqueeze(1), points).squeeze(1)  # (N, P)
    loss_dice = head.loss_dice(predicted, targets, avg_factor=number)
    loss_mask = head.loss_mask(
        predicted.flatten(), targets.flatten(), avg_factor=number * head.num_points
    )
    return loss_cls, loss_mask, loss_dice


def _read(masks: Tensor, objects: Tensor, points: Tensor) -> Tensor:
    """The masks of objects ``(N,)``, each at its own points ``(N, P, 2)``: ``(N, P)``."""
    # Masks have the size of the image, and almost always each of them is wanted once.
    if not torch.equal(objects, torch.arange(len(masks), device=objects.device)):
        masks = masks[objects]
    return point_sample(masks.unsqueeze(1), points).squeeze(1)
