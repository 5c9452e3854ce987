"""Mask losses that decode only the masks they need.

Decoding is linear per mask (eq. (5)). Matching reads every mask, but only at random points, so it
decodes masks at these points. The mask losses read only the matched masks, which are decoded in
full, for all decoder layers at once. The losses equal those of mmdet's ``Mask2FormerHead`` on fully
decoded masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.ops import point_sample
from mmdet.models.task_modules.samplers import BaseSampler
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..utils.mask_decoding import MaskSpace, decode_mask_logits, full_precision, mask_logits_at
from .finite_assigner import FiniteAssigner


@dataclass(frozen=True)
class Match:
    """Hungarian match of one image at one decoder layer.

    Attributes:
        labels: Target class of every query, ``(Q,)``; K is "no object".
        queries: Matched queries, ``(N,)``.
        objects: Their ground-truth objects, ``(N,)``, ascending.
        num_objects: Number of objects by which losses are averaged: the sampler's ``avg_factor``.
    """

    labels: Tensor
    queries: Tensor
    objects: Tensor
    num_objects: int


@dataclass(frozen=True, kw_only=True)
class MaskCriterion:
    """Set criterion of ``Mask2FormerHead`` for masks that are not decoded yet.

    Attributes:
        assigner: Assigns queries to objects by the logits at random points.
        sampler: Lists the queries that the assigner matched.
        loss_cls: Classification loss.
        loss_mask: Pointwise mask loss.
        loss_dice: Dice loss.
        class_weight: Weights of the K classes and of "no object".
        num_points: Number of points at which a mask is sampled.
        oversample_ratio: Number of random candidates per point.
        importance_sample_ratio: Share of the points that are the most uncertain candidates.
        mask_space: ``'logit'`` or ``'probability'``; see
            :func:`~hcformer_mm.models.utils.mask_decoding.decode_mask_logits`.
    """

    assigner: FiniteAssigner
    sampler: BaseSampler
    loss_cls: nn.Module
    loss_mask: nn.Module
    loss_dice: nn.Module
    class_weight: Sequence[float]
    num_points: int
    oversample_ratio: float
    importance_sample_ratio: float
    mask_space: MaskSpace

    def __call__(
        self,
        all_class_logits: Sequence[Tensor],
        all_mask_logits: Sequence[Tensor],
        assignments: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict[str, Any]],
    ) -> dict[str, Tensor]:
        """Match the predictions of every decoder layer and return their losses.

        The computation never runs in half precision.

        Args:
            all_class_logits: Class logits ``(B, Q, K + 1)`` of every decoder layer.
            all_mask_logits: Mask logits of the coarsest cells ``(B, Q, h, w)`` of every layer.
            assignments: Assignments, finest first.
            batch_gt_instances: ``labels`` ``(N,)`` and ``masks`` ``(N, H', W')`` of every image.
            batch_img_metas: Metainfo of every image, for the assigner.

        Returns:
            Losses by mmdet's names: ``loss_cls``, ``loss_mask`` and ``loss_dice`` for every decoder
            layer, the last without a prefix and the others with ``d0.``, ``d1.``, ...
        """
        all_class_logits = [full_precision(logits) for logits in all_class_logits]
        all_mask_logits = [full_precision(logits) for logits in all_mask_logits]
        targets = [
            # Convert masks to floats once, since every decoder layer samples them.
            InstanceData(labels=gt.labels, masks=gt.masks.to(all_mask_logits[0].dtype))
            for gt in batch_gt_instances
        ]
        # In float16 the mask cost, a sum over all points, overflows; so does the number of masks
        # times points, by which the mask loss is divided.
        with torch.autocast(all_mask_logits[0].device.type, enabled=False):
            # Not a decorator of _match: Dynamo cannot call a decorated method of a dataclass.
            with torch.no_grad():
                matches = [
                    self._match(class_logits, mask_logits, assignments, targets, batch_img_metas)
                    for class_logits, mask_logits in zip(
                        all_class_logits, all_mask_logits, strict=True
                    )
                ]  # [layer][image]
            masks = self._matched_masks(all_mask_logits, assignments, matches)
            layers = [
                self._losses(class_logits, layer_masks, layer_matches, targets)
                for class_logits, layer_masks, layer_matches in zip(
                    all_class_logits, masks, matches, strict=True
                )
            ]
        losses = layers[-1]
        for i, layer in enumerate(layers[:-1]):
            losses |= {f"d{i}.{name}": loss for name, loss in layer.items()}
        return losses

    def _matched_masks(
        self,
        all_mask_logits: Sequence[Tensor],
        assignments: Sequence[Tensor],
        matches: Sequence[Sequence[Match]],
    ) -> list[Tensor]:
        """Decode the matched masks: ``(N, H, W)`` of every layer, image by image."""
        masks = []  # [image][layer]
        for i in range(len(matches[0])):
            queries = [layer[i].queries for layer in matches]
            logits = torch.cat(
                [mask_logits[i, q] for mask_logits, q in zip(all_mask_logits, queries, strict=True)]
            )
            image_assignments = [assignment[i : i + 1] for assignment in assignments]
            decoded = decode_mask_logits(logits[None], image_assignments, self.mask_space)[0]
            # Each mask is read at its own points, so its pixels should be adjacent in memory.
            masks.append(decoded.contiguous().split([len(q) for q in queries]))
        return [torch.cat(of_images) for of_images in zip(*masks, strict=True)]

    def _match(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        assignments: Sequence[Tensor],
        targets: Sequence[InstanceData],
        batch_img_metas: Sequence[dict[str, Any]],
    ) -> list[Match]:
        """Match queries and objects of every image at one decoder layer, at random points."""
        points = torch.rand(
            (len(targets), self.num_points, 2), dtype=mask_logits.dtype, device=mask_logits.device
        )
        predicted = mask_logits_at(mask_logits, assignments, points, self.mask_space)  # (B, Q, P)
        matches = []
        for scores, masks, gt, at, img_meta in zip(
            class_logits, predicted, targets, points, batch_img_metas, strict=True
        ):
            num_objects = len(gt.labels)
            gt_masks = point_sample(gt.masks[:, None], at.repeat(num_objects, 1, 1))[:, 0]
            predictions = InstanceData(scores=scores, masks=masks)
            objects = InstanceData(labels=gt.labels, masks=gt_masks)
            assigned = self.assigner.assign(
                pred_instances=predictions, gt_instances=objects, img_meta=img_meta
            )
            sampled = self.sampler.sample(assigned, predictions, objects)
            no_object = len(self.class_weight) - 1
            labels = gt.labels.new_full((len(scores),), no_object, dtype=torch.long)
            labels[sampled.pos_inds] = gt.labels[sampled.pos_assigned_gt_inds]
            # Sort by object, so that masks of objects need not be copied; see _read.
            order = sampled.pos_assigned_gt_inds.argsort()
            matches.append(
                Match(
                    labels=labels,
                    queries=sampled.pos_inds[order],
                    objects=sampled.pos_assigned_gt_inds[order],
                    num_objects=sampled.avg_factor,
                )
            )
        return matches

    def _losses(
        self,
        class_logits: Tensor,
        masks: Tensor,
        matches: Sequence[Match],
        targets: Sequence[InstanceData],
    ) -> dict[str, Tensor]:
        """Losses of one layer: class logits ``(B, Q, K + 1)``, matched masks ``(N, H, W)``."""
        labels = torch.cat([match.labels for match in matches])
        loss_cls = self.loss_cls(
            class_logits.flatten(0, 1),
            labels,
            torch.ones_like(labels),
            avg_factor=class_logits.new_tensor(self.class_weight)[labels].sum(),
        )
        # A mean over all processes, so every process has to reach this line.
        number = reduce_mean(class_logits.new_tensor([sum(m.num_objects for m in matches)]))
        number = number.clamp(min=1)
        if not len(masks):
            return dict(loss_cls=loss_cls, loss_mask=masks.sum(), loss_dice=masks.sum())
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                masks[:, None],
                None,
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )  # (N, P, 2)
            of_images = points.split([len(match.objects) for match in matches])
            wanted = torch.cat(
                [
                    self._read(gt.masks, match.objects, at)
                    for gt, match, at in zip(targets, matches, of_images, strict=True)
                ]
            )
        predicted = point_sample(masks[:, None], points)[:, 0]  # (N, P)
        loss_dice = self.loss_dice(predicted, wanted, avg_factor=number)
        loss_mask = self.loss_mask(
            predicted.flatten(), wanted.flatten(), avg_factor=number * self.num_points
        )
        return dict(loss_cls=loss_cls, loss_mask=loss_mask, loss_dice=loss_dice)

    def _read(self, masks: Tensor, objects: Tensor, points: Tensor) -> Tensor:
        """Sample the masks ``(N, H', W')`` of objects ``(M,)`` at points ``(M, P, 2)``."""
        # Masks are as large as the image, so do not copy them if every object is matched, as usual.
        # A Hungarian match is one to one: its length tells, without reading indices back.
        if not (self.assigner.one_to_one and len(objects) == len(masks)):
            masks = masks[objects]
        return point_sample(masks[:, None], points)[:, 0]
