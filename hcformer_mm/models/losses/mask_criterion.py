"""Mask losses that decode only the masks they need, in few steps.

Decoding is linear per mask (eq. (5)). Matching reads every mask, but only at random points, so it
decodes masks at these points. The mask losses read only the matched masks, which are decoded in
full. Every step takes all decoder layers together, and the costs of all images are matched after a
single transfer. The losses equal those of mmdet's ``Mask2FormerHead`` on fully decoded masks, but
for the number that averages mask and dice losses: :func:`num_objects`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmcv.ops import point_sample
from mmdet.models.task_modules.samplers import BaseSampler, MaskPseudoSampler
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...ops.bands import is_eager_cpu
from ...ops.precision import autocast_off
from ..utils.mask_decoding import MaskSpace, decode_mask_logits, full_precision, mask_logits_at
from .finite_assigner import FiniteAssigner

EPS = torch.finfo(torch.float32).eps
"""What mmdet's losses add to the number by which they divide their sum."""

DECODED_NUMEL = 2**27
"""Mask logits that are decoded at once: 512 MiB of float32. Clusters down to the pixels of a large
image exceed it; then each decoder layer is decoded alone, and again in the backward pass."""


@dataclass(frozen=True)
class Match:
    """Matched pairs of query and object of one image, of all decoder layers.

    Attributes:
        queries: Matched queries ``(M,)``, layer by layer; query q of layer l is l·Q + q.
        objects: Their ground-truth objects ``(M,)``.
        counts: Number of pairs in every layer.
        complete: Whether every layer is known to match all objects, in their order.
    """

    queries: Tensor
    objects: Tensor
    counts: list[int]
    complete: bool


def num_objects(batch_gt_instances: Sequence[InstanceData]) -> int:
    """Number of objects of a batch, matched or not, by which mask and dice losses are averaged.

    mmdet counts an image without objects as one, and of an image with more objects than queries
    only those that are matched; the released implementation counts as this does.
    """
    return sum(len(gt.labels) for gt in batch_gt_instances)


@dataclass(frozen=True, kw_only=True)
class MaskCriterion:
    """Set criterion of ``Mask2FormerHead`` for masks that are not decoded yet.

    Attributes:
        assigner: Assigns queries to objects by the logits at random points.
        sampler: Lists the queries that the assigner matched.
        loss_cls: Classification loss. As the others, a loss of mmdet, which takes
            ``reduction_override="none"``; the criterion averages it, whatever its own reduction.
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
            Losses by mmdet's names, ``loss_cls``, ``loss_mask`` and ``loss_dice`` for every decoder
            layer, the last without a prefix and the others with ``d0.``, ``d1.``, ...
        """
        class_logits = full_precision(torch.stack(list(all_class_logits), dim=1))
        mask_logits = full_precision(torch.stack(list(all_mask_logits), dim=1))
        targets = [
            # Convert masks to floats once, since every decoder layer samples them.
            InstanceData(labels=gt.labels, masks=gt.masks.to(mask_logits.dtype))
            for gt in batch_gt_instances
        ]
        # In float16 the mask cost, a sum over all points, overflows; so does the number of masks
        # times points, by which the mask loss is divided.
        with autocast_off(mask_logits.device.type):
            # Not a decorator of _match: Dynamo cannot call a decorated method of a dataclass.
            with torch.no_grad():
                matches = self._match(
                    class_logits, mask_logits, assignments, targets, batch_img_metas
                )
            of_layers = self._losses(class_logits, mask_logits, assignments, targets, matches)
        layers = [
            dict(zip(of_layers, losses, strict=True))
            for losses in zip(*(losses.unbind() for losses in of_layers.values()), strict=True)
        ]
        losses = layers[-1]
        for i, layer in enumerate(layers[:-1]):
            losses |= {f"d{i}.{name}": loss for name, loss in layer.items()}
        return losses

    def _match(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        assignments: Sequence[Tensor],
        targets: Sequence[InstanceData],
        batch_img_metas: Sequence[dict[str, Any]],
    ) -> list[Match]:
        """Match the queries ``(B, L, Q, ...)`` of all layers with the objects of their images."""
        together = self.assigner.hungarian and type(self.sampler) is MaskPseudoSampler
        layers, num_queries = class_logits.shape[1:3]
        costs: list[Tensor] = []
        found: list[tuple[Tensor, Tensor]] = []  # of every layer of every image
        for i, (gt, img_meta) in enumerate(zip(targets, batch_img_metas, strict=True)):
            of_image = [assignment[i : i + 1] for assignment in assignments]
            for sample in self._samples(class_logits[i], mask_logits[i], of_image, gt):
                if together:
                    costs.append(self.assigner.costs(*sample, img_meta))
                else:
                    found.append(self._assign(*sample, img_meta))
        if together:  # as the sampler does, without looking indices up on the device
            found = self.assigner.match(costs)
        index = torch.cat(
            [
                torch.stack((queries + k % layers * num_queries, objects))
                for k, (queries, objects) in enumerate(found)
            ],
            dim=1,
        ).to(class_logits.device)
        matches = []
        for i, gt in enumerate(targets):
            of_layers = found[i * layers : (i + 1) * layers]
            counts = [len(queries) for queries, _ in of_layers]
            queries, objects = index[:, : sum(counts)]
            index = index[:, sum(counts) :]
            matches.append(
                Match(
                    queries=queries,
                    objects=objects,
                    counts=counts,
                    complete=together and len(gt.labels) <= num_queries,
                )
            )
        return matches

    def _samples(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        assignments: Sequence[Tensor],
        gt: InstanceData,
    ) -> Iterator[tuple[InstanceData, InstanceData]]:
        """Yield an image's predictions and objects of every layer, each at its random points."""
        # On a CPU the masks of one layer fit the cache; probabilities are decoded in full.
        separate = is_eager_cpu(mask_logits) or self.mask_space == "probability"
        number = len(mask_logits) * mask_logits.shape[1]
        separate |= _decoded_numel(number, assignments[1:]) > DECODED_NUMEL
        step = 1 if separate else len(mask_logits)
        for scores, logits in zip(class_logits.split(step), mask_logits.split(step), strict=True):
            points = torch.rand(
                (len(logits), self.num_points, 2), dtype=logits.dtype, device=logits.device
            )
            of_layers = [assignment.expand(len(logits), -1, -1, -1) for assignment in assignments]
            predicted = mask_logits_at(logits, of_layers, points, self.mask_space)
            wanted = _sample(gt.masks, points.unsqueeze(1).expand(-1, len(gt.masks), -1, -1))
            for layer in zip(scores, predicted, wanted, strict=True):
                yield (
                    InstanceData(scores=layer[0], masks=layer[1]),
                    InstanceData(labels=gt.labels, masks=layer[2]),
                )

    def _assign(
        self, predictions: InstanceData, objects: InstanceData, img_meta: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Matched queries and their objects."""
        assigned = self.assigner.assign(predictions, objects, img_meta)
        sampled = self.sampler.sample(assigned, predictions, objects)
        return sampled.pos_inds, sampled.pos_assigned_gt_inds

    def _losses(
        self,
        class_logits: Tensor,
        mask_logits: Tensor,
        assignments: Sequence[Tensor],
        targets: Sequence[InstanceData],
        matches: Sequence[Match],
    ) -> dict[str, Tensor]:
        """Losses ``(L,)`` of all layers by name, from logits ``(B, L, Q, ...)``."""
        images, layers, _ = class_logits.shape[:3]
        # One transfer serves both.
        class_weight, number = class_logits.new_tensor(
            [*self.class_weight, num_objects(targets)]
        ).split([len(self.class_weight), 1])
        number = reduce_mean(number).clamp(min=1)  # a mean over all processes

        no_object = len(self.class_weight) - 1
        labels = class_logits.new_full(class_logits.shape[:3], no_object, dtype=torch.long)
        for of_image, gt, match in zip(labels.flatten(1), targets, matches, strict=True):
            of_image[match.queries] = gt.labels[match.objects]
        loss_cls = self.loss_cls(
            class_logits.flatten(0, 2), labels.flatten(), reduction_override="none"
        )
        loss_cls = loss_cls.view(images, layers, -1).sum(dim=(0, 2))

        # Not slices: the gradient of each would be as large as the batch.
        parts = [assignment.split(1) for assignment in assignments]
        of_images = [
            self._mask_losses(logits, [part[i] for part in parts], gt.masks, match)
            for i, (logits, gt, match) in enumerate(zip(mask_logits, targets, matches, strict=True))
        ]
        loss_mask, loss_dice = torch.stack(of_images).sum(dim=0)
        return dict(
            loss_cls=loss_cls / (class_weight[labels].sum(dim=(0, 2)) + EPS),
            loss_mask=loss_mask / (number * self.num_points + EPS),
            loss_dice=loss_dice / (number + EPS),
        )

    def _mask_losses(
        self, mask_logits: Tensor, assignments: Sequence[Tensor], masks: Tensor, match: Match
    ) -> Tensor:
        """Mask and dice losses ``(2, L)`` of one image, from mask logits ``(L, Q, h, w)``."""
        logits = mask_logits.flatten(0, 1).index_select(0, match.queries)
        if _decoded_numel(len(logits), assignments) <= DECODED_NUMEL:
            return self._matched_losses(logits, assignments, masks, match)
        of_layers = [
            checkpoint(
                *(self._matched_losses, of_layer, assignments, masks),
                replace(match, queries=queries, objects=objects, counts=[len(queries)]),
                use_reentrant=False,
            )
            for of_layer, queries, objects in zip(
                *(x.split(match.counts) for x in (logits, match.queries, match.objects)),
                strict=True,
            )
        ]
        return torch.cat(of_layers, dim=1)

    def _matched_losses(
        self, logits: Tensor, assignments: Sequence[Tensor], masks: Tensor, match: Match
    ) -> Tensor:
        """:meth:`_mask_losses` from the mask logits of the matched queries, ``(M, h, w)``."""
        decoded = decode_mask_logits(logits[None], assignments, self.mask_space).squeeze(0)
        predicted, wanted = self._at_uncertain_points(decoded, masks, match)
        loss_mask = self.loss_mask(predicted.flatten(), wanted.flatten(), reduction_override="none")
        loss_dice = self.loss_dice(predicted, wanted, reduction_override="none")
        losses = torch.stack((loss_mask.view(-1, self.num_points).sum(dim=1), loss_dice))
        of_layers = losses.split(match.counts, dim=1)
        return torch.stack([losses.sum(dim=1) for losses in of_layers], dim=1)

    def _at_uncertain_points(
        self, decoded: Tensor, masks: Tensor, match: Match
    ) -> tuple[Tensor, Tensor]:
        """Sample matched masks ``(M, H, W)`` and their targets, mostly where masks are uncertain.

        Both results are ``(M, P)``.
        """
        # Each mask is read at its own points, so its pixels should be adjacent in memory. PyTorch
        # transposes matrices faster than maps.
        decoded = decoded.flatten(1).contiguous().view(len(decoded), 1, *decoded.shape[1:])
        with torch.no_grad():
            # On a CPU the candidates of one layer fit the cache.
            step = match.counts if is_eager_cpu(decoded) else [len(decoded)]
            points = torch.cat(
                [
                    get_uncertain_point_coords_with_randomness(
                        of_layer,
                        None,
                        self.num_points,
                        self.oversample_ratio,
                        self.importance_sample_ratio,
                    )
                    for of_layer in decoded.split(step)
                ]
            )
            wanted = _targets(masks, match, points)
        return point_sample(decoded, points)[:, 0], wanted


def _decoded_numel(number: int, assignments: Sequence[Tensor]) -> int:
    """Mask logits of a number of masks that are decoded by assignments of one image."""
    return number * assignments[0].shape[-2] * assignments[0].shape[-1] if assignments else 0


def _targets(masks: Tensor, match: Match, points: Tensor) -> Tensor:
    """Sample the matched masks of objects ``(N, H', W')`` at points ``(M, P, 2)``."""
    if match.complete:
        # Masks are as large as the image, so do not copy them if every object is matched, as usual.
        return _sample(masks, points.unflatten(0, (len(match.counts), len(masks)))).flatten(0, 1)
    return torch.cat(
        [
            point_sample(masks[objects][:, None], at)[:, 0]
            for objects, at in zip(
                match.objects.split(match.counts), points.split(match.counts), strict=True
            )
        ]
    )


def _sample(masks: Tensor, points: Tensor) -> Tensor:
    """Sample masks ``(N, H, W)`` at points ``(L, N, P, 2)`` of L layers: ``(L, N, P)``."""
    layers, _, number, _ = points.shape
    at = points.transpose(0, 1).flatten(1, 2)
    return point_sample(masks[:, None], at)[:, 0].unflatten(1, (layers, number)).transpose(0, 1)
