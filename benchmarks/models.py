"""Models to time, or to count the costs of: inference on a random image, training on a batch."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mmdet.structures.mask import BitmapMasks
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, DictAction
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import nn

from benchmarks.device_costs import Costs, PretendedGPU, ValueReadError, pretend_gpu
from benchmarks.measure import Call, Case, Shape, peak_resident
from benchmarks.operators import confident_class_logits
from hcformer_mm.acceleration.conv_bn_fusion import fuse_conv_bn, fuse_frozen_bn, has_fused_bn
from hcformer_mm.acceleration.inference import to_channels_last
from hcformer_mm.acceleration.training import feed_channels_last
from hcformer_mm.apis.inference import build_model
from hcformer_mm.structures.clustered_features import ClusteredFeatures
from hcformer_mm.utils.config import find_config, logging_from, read_config
from hcformer_mm.utils.random_inputs import random_image

MODES = ("backbone", "forward", "predict")
PHASES = ("step", "head")
COUNTED = ("network", "predict", "post-processing", "loss", "step")


@dataclass(frozen=True)
class ModelSpec:
    """A config with overrides, a checkpoint (None: random weights) and flags.

    ``fuse-conv-bn`` fuses BatchNorm into convolutions (in training, frozen BatchNorm only);
    ``channels-last`` changes the memory format of weights (in training, of images).
    """

    name: str
    file: Path
    options: dict[str, Any]
    checkpoint: str | None
    flags: frozenset[str]

    def config(self) -> Config:
        return read_config(self.file, self.options)

    def build(self, args: Namespace, *, training: bool = False) -> BaseModel:
        """Build the model in evaluation mode; raise a ValueError if a flag does not apply."""
        model = build_model(self.config(), self.checkpoint, device=args.device, seed=args.seed)
        if "fuse-conv-bn" in self.flags:
            (fuse_frozen_bn if training else fuse_conv_bn)(model)
            if training and not any(map(has_fused_bn, model.modules())):
                raise ValueError(f"expected frozen BatchNorm to fuse in {self.name}, found none")
        if "channels-last" in self.flags:
            (feed_channels_last if training else to_channels_last)(model)
        return model


def parse_specs(args: Namespace) -> list[ModelSpec]:
    """Parse ``args.configs``, each ``CONFIG[@key=value][@fuse-conv-bn][@channels-last]``.

    A config's own overrides take precedence over ``--cfg-options``.
    """
    checkpoints = args.checkpoints or ["random"] * len(args.configs)
    if len(checkpoints) != len(args.configs):
        raise ValueError(
            f"expected {len(args.configs)} --checkpoints, one per config, got {checkpoints}"
        )
    common = "@fuse-conv-bn" * args.fuse_conv_bn + "@channels-last" * args.channels_last
    parser = ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction)
    specs: list[ModelSpec] = []
    names: list[str] = []
    for text, checkpoint in zip(args.configs, checkpoints, strict=True):
        config, *settings = dict.fromkeys(f"{text}{common}".split("@"))
        pairs = [setting for setting in settings if "=" in setting]
        flags = frozenset(settings) - set(pairs)
        if not flags <= {"fuse-conv-bn", "channels-last"}:
            raise ValueError(
                "expected CONFIG, and after each @ key=value, fuse-conv-bn or channels-last, got "
                f"{text!r}"
            )
        own = parser.parse_args(["--cfg-options", *pairs]).cfg_options
        file = find_config(config)
        names.append("@".join([file.stem, *settings]))
        # A config may appear twice: the ratio to itself shows the noise.
        number = names.count(names[-1])
        name = f"{names[-1]} ({number})" if number > 1 else names[-1]
        weights = None if checkpoint == "random" else checkpoint
        specs.append(ModelSpec(name, file, {**args.cfg_options, **own}, weights, flags))
    return specs


def inference(args: Namespace) -> Iterator[Case]:
    """Inference of every model on one random image."""
    models = {spec.name: spec.build(args) for spec in parse_specs(args)}
    if args.kept_queries is not None:
        for model in models.values():
            keep_queries(model, args.kept_queries)
    for mode, shape, dtype in product(args.mode, args.shape, args.dtype):
        options = dict(mode=mode, dtype=getattr(torch, dtype), seed=args.seed)
        calls = {name: inference_call(model, shape, **options) for name, model in models.items()}
        yield dict(mode=mode, shape=f"{shape[0]}x{shape[1]}", dtype=dtype), calls


def inference_call(
    model: BaseModel, shape: Shape, *, mode: str, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Call:
    """Call of a model on one random image.

    ``'backbone'`` takes the normalized image to feature maps, ``'forward'`` to the head's output;
    ``'predict'`` adds pre- and post-processing. A dtype other than float32 means autocast.
    """
    device = next(model.parameters()).device.type
    data = random_image(model, shape, seed=seed)

    def preprocess() -> Any:
        # Models write their results to the samples.
        samples = [sample.clone() for sample in data["data_samples"]]
        return model.data_preprocessor({**data, "data_samples": samples}, False)

    def predict() -> Any:
        return model(**preprocess(), mode="predict")

    run: Call = predict
    if mode == "forward":
        run = partial(model, **preprocess(), mode="tensor")
    elif mode == "backbone":
        run = partial(model.backbone, preprocess()["inputs"])

    def call() -> object:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype != torch.float32):
            return run()

    return call


def keep_queries(model: nn.Module, number: int) -> None:
    """Force a number of queries of a mask transformer to be objects.

    With random weights no query is confident, and post-processing has nothing to do. A hook on
    ``panoptic_head.cls_embed`` replaces the class logits after the head has computed them.
    """
    head: Any = getattr(model, "panoptic_head", None)
    layer = getattr(head, "cls_embed", None)
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            "expected a mask transformer with a linear panoptic_head.cls_embed for --kept-queries, "
            f"got {type(model).__name__}"
        )
    if number > head.num_queries:
        raise ValueError(f"expected at most {head.num_queries} queries to keep, got {number}")
    logits = confident_class_logits(head.num_queries, number, layer.out_features - 1)
    logits = logits.to(layer.weight.device)
    layer.register_forward_hook(lambda module, args, y: logits.to(y).expand_as(y))


def training(args: Namespace) -> Iterator[Case]:
    """Training of every model on a random batch."""
    specs = parse_specs(args)
    models = [spec.build(args, training=True) for spec in specs]
    for phase, shape in product(args.phase, args.shape):
        calls = {}
        for spec, model in zip(specs, models, strict=True):
            data = random_batch(model, shape, batch=args.batch, objects=args.objects)
            calls[spec.name] = training_call(model, spec.config(), data, phase)
        yield dict(phase=phase, shape=f"{shape[0]}x{shape[1]}", batch=args.batch), calls


def random_batch(model: BaseModel, shape: Shape, *, batch: int, objects: int) -> dict[str, Any]:
    """Random images with random boxes and masks on four stripes of stuff, equal in every run.

    Detectors get instances, and semantic maps if their head has stuff; segmentors get semantic
    maps only.
    """
    segmentor, stuff = isinstance(model, BaseSegmentor), 0
    if segmentor:
        things = model.decode_head.num_classes
    elif (head := getattr(model, "panoptic_head", None)) is not None:
        things, stuff = head.num_things_classes, head.num_stuff_classes
    else:
        things = len((model.dataset_meta or {}).get("classes") or ())
    if not things:
        raise ValueError(
            "expected a panoptic_head, or a test set in the config that names classes, to make "
            f"ground truth for {type(model).__name__}, got neither"
        )
    # demo_mm_inputs counts labels from 1, and its semantic maps are noise with every class.
    options = dict(num_items=[objects] * batch, num_classes=things + 1, use_box_type=True)
    data = demo_mm_inputs(batch, (3, *shape), with_mask=True, **options)
    first, number = (things, stuff) if stuff else (0, things)
    stripes = first + torch.arange(shape[0]) * 4 // shape[0] * 37 % number
    semantic = stripes[:, None].repeat(1, shape[1])[None]
    for i, sample in enumerate(data["data_samples"]):
        sample.gt_instances.labels -= 1
        masks = sample.gt_instances.masks.masks.astype("uint8")
        sample.gt_instances.masks = BitmapMasks(masks, *shape)
        if segmentor:
            data["data_samples"][i] = SegDataSample(metainfo=sample.metainfo)
            data["data_samples"][i].gt_sem_seg = PixelData(data=semantic.clone())
        elif stuff:
            sample.gt_sem_seg = PixelData(sem_seg=semantic.clone())
    return data


def training_call(
    model: BaseModel, config: Config, data: Mapping[str, Any], phase: str = "step"
) -> Call:
    """Call that trains a model on a batch, without resizing its images.

    ``'step'`` is preprocessing, forward, losses, backward and the config's optimizer (AdamW by
    default) without mixed precision. ``'head'`` is forward, losses and backward of the head, from
    feature maps computed once to the gradients of these maps and of its parameters.
    """
    train_on_given_size(model, tuple(data["inputs"][0].shape[-2:]))
    if phase == "step":
        settings = dict(config.get("optim_wrapper") or dict(optimizer=dict(type="AdamW", lr=1e-4)))
        for name in ("loss_scale", "dtype", "use_fp16"):
            settings.pop(name, None)
        scope = config.get("default_scope", "mmdet")
        with DefaultScope.overwrite_default_scope(scope), logging_from("ERROR"):
            optimizer = build_optim_wrapper(model, deepcopy(settings | {"type": "OptimWrapper"}))
        # Models change samples in place.
        return lambda: model.train_step(deepcopy(dict(data)), optimizer)

    segmentor = isinstance(model, BaseSegmentor)
    head = getattr(model, "decode_head" if segmentor else "panoptic_head", None)
    if head is None:
        raise ValueError(
            "expected a detector with a panoptic_head or a segmentor with a decode_head for "
            f"--phase head, got {type(model).__name__}"
        )
    prepared = model.data_preprocessor(deepcopy(dict(data)), True)
    with torch.no_grad():
        features = model.extract_feat(prepared["inputs"])
    maps: Any = [x.requires_grad_() for x in features]
    leaves = list(maps)
    if isinstance(features, ClusteredFeatures):
        assignments = [x.requires_grad_() for x in features.assignments]
        scales = [x.detach().requires_grad_() for x in features.scales]
        leaves += assignments + scales
        maps = ClusteredFeatures(maps, assignments=assignments, scales=scales)
    inputs = [*leaves, *(p for p in head.parameters() if p.requires_grad)]
    loss_of = partial(head.loss, train_cfg=model.train_cfg) if segmentor else head.loss

    def call() -> object:
        loss, _ = model.parse_losses(loss_of(maps, deepcopy(prepared["data_samples"])))
        return torch.autograd.grad(loss, inputs, allow_unused=True)

    return call


def train_on_given_size(model: BaseModel, shape: Shape) -> None:
    """Set a model to training on images that are not padded or resized, which would differ."""
    model.train()
    model.data_preprocessor.batch_augments = None
    if isinstance(model, BaseSegmentor):
        model.data_preprocessor.size = shape
        model.data_preprocessor.size_divisor = None


def costs(args: Namespace) -> Iterator[tuple[dict[str, Any], str, Costs]]:
    """Settings, names and costs on a GPU of every model; see :mod:`benchmarks.device_costs`."""
    for spec in parse_specs(args):
        for phase, shape in product(args.phase, args.shape):
            training = phase in ("loss", "step")
            model = spec.build(args, training=training)
            options = dict(kept=args.kept_queries, batch=args.batch, objects=args.objects)
            setting = dict(phase=phase, shape=f"{shape[0]}x{shape[1]}")
            if training:
                setting |= dict(batch=args.batch, objects=args.objects)
            yield setting, spec.name, count_costs(model, shape, phase, **options)


def count_costs(
    model: BaseModel,
    shape: Shape,
    phase: str,
    *,
    kept: int | None = None,
    batch: int = 1,
    objects: int = 10,
) -> Costs:
    """Count what a model costs on a GPU.

    ``'network'`` is from the normalized image to the head's output, ``'predict'`` from the image in
    the CPU's memory to results, ``'post-processing'`` the fusion head alone; ``kept`` queries are
    confident (None: the weights decide). ``'loss'`` is what the panoptic head does beyond its
    network with ``objects`` per image, ``'step'`` forward, losses and backward from normalized
    images.
    """
    if phase in ("post-processing", "loss") and not hasattr(model, "panoptic_head"):
        raise ValueError(
            f"expected a detector with a panoptic_head for {phase}, got {type(model).__name__}"
        )
    if phase == "network":
        try:
            return _count_network(model, shape, values=False)
        except ValueReadError:
            return _count_network(model, shape, values=True)
    if phase in ("predict", "post-processing"):
        return _count_prediction(model, shape, kept, fusion_alone=phase == "post-processing")
    return _count_training(model, shape, batch, objects, loss_alone=phase == "loss")


def _count_network(model: BaseModel, shape: Shape, *, values: bool) -> Costs:
    data = model.data_preprocessor(random_image(model, shape), False)
    with pretend_gpu(values=values) as gpu, torch.no_grad():
        model, data = gpu.copy(model), _on_gpu(data, gpu)
        with gpu.count() as found:
            model(**data, mode="tensor")
    return found


def _count_prediction(
    model: BaseModel, shape: Shape, kept: int | None, *, fusion_alone: bool
) -> Costs:
    data = random_image(model, shape)
    with pretend_gpu() as gpu, torch.no_grad():
        model = gpu.copy(model)
        if kept is not None:
            keep_queries(model, kept)
        if fusion_alone:
            head = model.panoptic_fusion_head
            head.predict, found = counted(gpu, head.predict)
            model.test_step(data)
            return found
        with gpu.count() as found:
            model.test_step(data)
    return found


def _count_training(
    model: BaseModel, shape: Shape, batch: int, objects: int, *, loss_alone: bool
) -> Costs:
    train_on_given_size(model, shape)
    data = model.data_preprocessor(random_batch(model, shape, batch=batch, objects=objects), True)
    with pretend_gpu(backward=not loss_alone) as gpu:
        model, data = gpu.copy(model), _on_gpu(data, gpu)
        if loss_alone:
            head = model.panoptic_head
            for network in {"forward", "_predictions"} & set(dir(head)):
                setattr(head, network, counted(gpu, getattr(head, network))[0])
            head.loss, found = counted(gpu, head.loss)
            model(**data, mode="loss")
            return found
        with gpu.count() as found:
            loss, _ = model.parse_losses(model(**data, mode="loss"))
            loss.backward()
    return found


def counted(gpu: PretendedGPU, function: Callable[..., Any]) -> tuple[Callable[..., Any], Costs]:
    """A function whose calls add to costs of their own, and not to those of its caller."""
    found = Costs()

    def call(*args: Any, **kwargs: Any) -> Any:
        with gpu.count() as costs:
            result = function(*args, **kwargs)
        found.calls += costs.calls
        return result

    return call, found


def _on_gpu(data: Mapping[str, Any], gpu: PretendedGPU) -> dict[str, Any]:
    samples = [sample.to(gpu.device) for sample in data["data_samples"]]
    return {"inputs": data["inputs"].to(gpu.device), "data_samples": samples}


def peak_of_training(args: Namespace, index: int, shape: Shape, threads: int) -> int:
    """Train one config for three steps; return the peak bytes of this process.

    They are resident memory, or what is allocated on a GPU. The first step creates the optimizer
    state, so memory peaks in the second or third.
    """
    torch.set_num_threads(threads)
    spec = parse_specs(args)[index]
    model = spec.build(args, training=True)
    data = random_batch(model, shape, batch=args.batch, objects=args.objects)
    step = training_call(model, spec.config(), data)
    for _ in range(3):
        step()
    if args.device == "cpu":
        return peak_resident()
    return torch.cuda.max_memory_allocated(args.device)
