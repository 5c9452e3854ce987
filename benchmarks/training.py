"""Training of any config of mmdet or mmseg, on random images with random objects."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, Literal, get_args

import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, mask2bbox
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor

from benchmarks.model_specs import Variant
from hcformer_mm.structures.clustered_features import ClusteredFeatures
from hcformer_mm.utils.config import logging_from

Phase = Literal["step", "head"]
"""A whole step of training; the head alone, from feature maps to their gradients."""

PHASES: tuple[Phase, ...] = get_args(Phase)
DEFAULT_OPTIMIZER = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4))
"""That of configs that name none."""

STEPS_OF_MEMORY = 3
"""Steps after which the memory of training has peaked: the first one makes the optimizer's state,
which the second holds beside its activations; one more for what an allocator keeps."""


def random_batch(
    model: BaseModel, shape: tuple[int, int], *, batch: int = 2, objects: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Random images with rectangles of random classes on random stuff.

    Detectors get instances with masks and boxes, and semantic maps if their head has stuff;
    segmentors get semantic maps. For one seed, models of the same classes get the same.

    Args:
        model: A model of :func:`~hcformer_mm.apis.inference.build_model`.
        shape: Height and width of the images, in pixels.
        batch: Number of images.
        objects: Number of rectangles on each.
        seed: Seed of both.

    Returns:
        ``inputs`` and ``data_samples``, as a data loader would hand them over.

    Raises:
        ValueError: The classes of the model are unknown.
    """
    generator = torch.Generator().manual_seed(seed)
    things, stuff = _number_of_classes(model)
    images, samples = [], []
    for _ in range(batch):
        image = torch.randint(256, (3, *shape), dtype=torch.uint8, generator=generator)
        labels = torch.randint(things, (objects,), generator=generator)
        masks = _rectangles(objects, shape, generator)
        semantic = _stripes(things, stuff, shape, generator)
        for label, mask in zip(labels, masks, strict=True):
            semantic[mask] = label
        images.append(image)
        samples.append(_sample(model, labels, masks, semantic, has_stuff=stuff > 0))
    return dict(inputs=images, data_samples=samples)


def _number_of_classes(model: BaseModel) -> tuple[int, int]:
    """Classes of things and of stuff; in a segmentor every class counts as a thing's."""
    if isinstance(model, BaseSegmentor):
        return model.decode_head.num_classes, 0
    head = getattr(model, "panoptic_head", None)
    if head is not None:
        return head.num_things_classes, head.num_stuff_classes
    classes = (model.dataset_meta or {}).get("classes")
    if not classes:
        raise ValueError(
            "expected a panoptic_head, or a test set in the config that names classes, to make "
            f"ground truth for {type(model).__name__}, got neither"
        )
    return len(classes), 0


def _rectangles(number: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Bool ``(N, H, W)``, sides of an eighth to a half of the image's."""
    masks = torch.zeros(number, *shape, dtype=torch.bool)
    for mask in masks:
        share = torch.rand(4, generator=generator)
        sides = [max(1, int(s * (1 + 3 * r) / 8)) for s, r in zip(shape, share[:2], strict=True)]
        top, left = (
            int(r * (s - side)) for r, s, side in zip(share[2:], shape, sides, strict=True)
        )
        mask[top : top + sides[0], left : left + sides[1]] = True
    return masks


def _stripes(things: int, stuff: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Semantic map ``(H, W)`` of four stripes: of stuff, or of any class where there is none."""
    first, number = (things, stuff) if stuff else (0, things)
    labels = first + torch.randint(number, (4,), generator=generator)
    rows = labels[torch.arange(shape[0]) * 4 // shape[0]]
    return rows[:, None].repeat(1, shape[1])


def _sample(
    model: BaseModel, labels: Tensor, masks: Tensor, semantic: Tensor, *, has_stuff: bool
) -> DetDataSample | SegDataSample:
    height, width = shape = tuple(semantic.shape)
    metainfo = dict(
        img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1.0, 1.0), flip=False
    )
    if isinstance(model, BaseSegmentor):
        return SegDataSample(metainfo=metainfo, gt_sem_seg=PixelData(data=semantic[None]))
    sample = DetDataSample(metainfo=metainfo)
    boxes = HorizontalBoxes(mask2bbox(masks))
    bitmaps = BitmapMasks(masks.numpy().astype("uint8"), height, width)
    sample.gt_instances = InstanceData(labels=labels, bboxes=boxes, masks=bitmaps)
    sample.ignored_instances = InstanceData(bboxes=HorizontalBoxes(torch.zeros(0, 4)))
    if has_stuff:
        sample.gt_sem_seg = PixelData(sem_seg=semantic[None])
    return sample


def training_call(
    model: BaseModel, config: Config, data: Mapping[str, Any], phase: Phase = "step"
) -> Callable[[], object]:
    """What is timed: training of a model on one batch.

    The model is put into training mode. Its images are taken as large as they are: batch
    augmentations that pad or resize them are left out, so that models see the same.

    Args:
        model: A model of :func:`~hcformer_mm.apis.inference.build_model`.
        config: Its config; its ``optim_wrapper`` makes the optimizer, AdamW if there is none.
            Mixed precision is left out.
        data: A batch of :func:`random_batch`.
        phase: ``'step'``: preprocessing, forward, losses, backward and the optimizer's step.
            ``'head'``: forward, losses and backward of the head alone, with the gradients of its
            parameters and of the features that it gets, which are computed once beforehand.

    Returns:
        A function that does it once. It raises RuntimeError if the model cannot be trained so.

    Raises:
        ValueError: The head is asked for, and there is none that could be trained alone.
    """
    model.train()
    preprocessor = model.data_preprocessor
    preprocessor.batch_augments = None
    if isinstance(model, BaseSegmentor):
        preprocessor.size, preprocessor.size_divisor = tuple(data["inputs"][0].shape[-2:]), None
    if phase == "step":
        optimizer = _optimizer(model, config)
        # Heads and preprocessors change samples in place; a loader hands over new ones.
        return _explaining(model, lambda: model.train_step(deepcopy(dict(data)), optimizer))
    return _explaining(model, _head_call(model, data))


def _optimizer(model: BaseModel, config: Config) -> OptimWrapper:
    settings = deepcopy(dict(config.get("optim_wrapper") or DEFAULT_OPTIMIZER))
    if settings["type"] == "AmpOptimWrapper":
        # It refuses to be built without an accelerator.
        settings["type"] = "OptimWrapper"
        for name in ("loss_scale", "dtype", "use_fp16"):
            settings.pop(name, None)
    scope = config.get("default_scope", "mmdet")
    with DefaultScope.overwrite_default_scope(scope), logging_from("ERROR"):
        return build_optim_wrapper(model, settings)


def _head_call(model: BaseModel, data: Mapping[str, Any]) -> Callable[[], object]:
    segmentor = isinstance(model, BaseSegmentor)
    head = getattr(model, "decode_head" if segmentor else "panoptic_head", None)
    if head is None:
        raise ValueError(
            "expected a detector with a panoptic_head or a segmentor with a decode_head, to train "
            f"the head alone, got {type(model).__name__}"
        )
    batch = model.data_preprocessor(deepcopy(dict(data)), True)
    with torch.no_grad():
        features = model.extract_feat(batch["inputs"])
    features, leaves = _as_leaves(features)
    inputs = [*leaves, *(p for p in head.parameters() if p.requires_grad)]
    loss_of = partial(head.loss, train_cfg=model.train_cfg) if segmentor else head.loss

    def call() -> object:
        loss, _ = model.parse_losses(loss_of(features, deepcopy(batch["data_samples"])))
        return torch.autograd.grad(loss, inputs, allow_unused=True)

    return call


def _as_leaves(features: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The same features with gradients of their own, and all tensors in them."""
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    if isinstance(features, ClusteredFeatures):
        new: tuple[Tensor, ...] = ClusteredFeatures(
            map(leaf, features),
            assignments=[leaf(x) for x in features.assignments],
            scales=[leaf(x) for x in features.scales],
        )
    else:
        new = tuple(map(leaf, features))
    return new, leaves


def _explaining(model: BaseModel, function: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        try:
            return function()
        except Exception as error:
            raise RuntimeError(
                f"{type(model).__name__} cannot be trained on random images with masks, boxes "
                f"and labels: {error}"
            ) from error

    return call


def train_for_memory(
    variant: Variant, shape: tuple[int, int], *, batch: int, objects: int, threads: int, seed: int
) -> None:
    """Train a few steps: what a process of its own does to tell its peak of memory.

    Args:
        variant: What is trained.
        shape: Height and width of the images.
        batch: Number of images.
        objects: Number of objects on each.
        threads: Threads of PyTorch.
        seed: Seed of weights and images.
    """
    torch.set_num_threads(threads)
    model = variant.build(seed, training=True)
    data = random_batch(model, shape, batch=batch, objects=objects, seed=seed)
    step = training_call(model, variant.config(), data)
    for _ in range(STEPS_OF_MEMORY):
        step()
