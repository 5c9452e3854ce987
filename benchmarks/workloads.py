"""Calls to time: operators on random maps, inference on a random image, training on a batch."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import mmcv.ops
import torch
import torchvision.ops
from mmdet.models.backbones import ResNet
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures.mask import BitmapMasks
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config, DictAction
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Call, peak_resident
from hcformer_mm.acceleration.conv_bn_fusion import fuse_conv_bn, fuse_frozen_bn, has_fused_bn
from hcformer_mm.acceleration.inference import to_channels_last
from hcformer_mm.acceleration.training import feed_channels_last
from hcformer_mm.apis.inference import build_model
from hcformer_mm.models.heads import HCFormerFusionHead
from hcformer_mm.models.layers.clustering import ClusteringModule
from hcformer_mm.models.layers.deformable_downsampling import make_downsampling_deformable
from hcformer_mm.ops import decode
from hcformer_mm.ops.deform_conv import modulated_deform_conv2d
from hcformer_mm.ops.neighborhood import NUM_CANDIDATES, coarse_size
from hcformer_mm.structures.clustered_features import ClusteredFeatures
from hcformer_mm.utils.config import find_config, logging_from
from hcformer_mm.utils.random_inputs import random_image
from tests.helpers.reference import listing_decode, listing_module

Shape = tuple[int, int]
Functions = dict[str, Callable[..., Any]]
Inputs = tuple[Functions, list[Tensor], list[Tensor]]  # and their maps and parameters
Case = tuple[dict[str, Any], dict[str, Call]]  # a setting and its calls by name
OPERATORS = ("clustering", "decoding", "deform", "post-processing")
PASSES = ("forward", "forward+backward")
MODES = ("backbone", "forward", "predict")
PHASES = ("step", "head")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SHAPES = {"deform": (512, 672), "post-processing": (800, 1216)}
# Channels of the maps that a ResNet-50 downsamples, by stride; there are twice as many after.
RESNET50_CHANNELS = {4: 256, 8: 512, 16: 1024}


def operators(args: Namespace) -> Iterator[Case]:
    """Operators and their reference implementations; the first call of a case is the baseline."""
    if args.device != "cpu":
        torch.set_default_device(args.device)
    for operator in args.operator:
        for shape in args.shape or [SHAPES.get(operator, (800, 1344))]:
            torch.manual_seed(args.seed)
            setting = dict(operator=operator, shape=f"{shape[0]}x{shape[1]}")
            if operator == "post-processing":
                setting |= {"stride": 1, "channels": args.kept_queries, "pass": "forward"}
                yield setting, post_processing_calls(shape, args.kept_queries)
                continue
            settings: list[tuple[Any, Any, Callable[..., Inputs]]]
            if operator == "clustering":
                settings = [(s, "-", partial(clustering, shape, s)) for s in args.stride]
            elif operator == "decoding":
                pairs = product(args.stride, args.channels)
                settings = [(s, q, partial(decoding, shape, s, q)) for s, q in pairs]
            else:
                settings = [("4, 8, 16", "-", partial(deform, shape))]
            for (stride, number, make), one in product(settings, args.passes):
                setting |= {"stride": stride, "channels": number, "pass": one}
                flags = dict(backward=one == "forward+backward", compiled=args.compile)
                yield dict(setting), calls_on_maps(*make(), **flags)


def clustering(shape: Shape, stride: int) -> Inputs:
    """Listing 1 and ours at one level of a ResNet-50, including norms and projections."""
    channels = RESNET50_CHANNELS[stride]
    module = ClusteringModule(channels, 2 * channels)
    size = shape[0] // stride, shape[1] // stride
    maps = [torch.randn(1, channels, *size), torch.randn(1, 2 * channels, *coarse_size(*size))]
    functions = {"listing": partial(listing_module, module), "ours": module}
    return functions, maps, list(module.parameters())


def decoding(shape: Shape, stride: int, masks: int) -> Inputs:
    """Listing 2 and ours, decoding masks from ``2 * stride`` to ``stride``."""
    size = shape[0] // stride, shape[1] // stride
    assignment = torch.randn(1, NUM_CANDIDATES, *size).softmax(dim=1)
    maps = [torch.randn(1, masks, *coarse_size(*size)), assignment]
    return {"listing": listing_decode, "ours": decode}, maps, []


def deform(shape: Shape) -> Inputs:
    """DCNv2 in the six downsampling layers of a ResNet-50; plain convolutions show the scale."""
    layers: list[Any] = []
    maps: list[Tensor] = []
    network = ResNet(depth=50)
    for stride, stage in zip(RESNET50_CHANNELS, network.res_layers[1:], strict=True):
        block = getattr(network, stage)[0]
        size = shape[0] // stride, shape[1] // stride
        for name in make_downsampling_deformable(block):
            layers.append(block.get_submodule(name))
            taps = layers[-1].kernel_size[0] ** 2
            offset = torch.randn(1, 2 * taps, *coarse_size(*size))  # about a pixel
            mask = torch.rand(1, taps, *coarse_size(*size))
            maps += [torch.randn(1, layers[-1].in_channels, *size), offset, mask]
    functions: Functions = {
        "mmcv": lambda m, x, offset, mask: mmcv.ops.modulated_deform_conv2d(
            *(x, offset, mask, m.weight, m.bias, m.stride, m.padding),
            *(m.dilation, m.groups, m.deform_groups),
        ),
        "torchvision": lambda m, x, offset, mask: torchvision.ops.deform_conv2d(
            x, offset, m.weight, m.bias, m.stride, m.padding, mask=mask
        ),
        "ours": lambda m, x, offset, mask: modulated_deform_conv2d(
            x, offset, mask, m.weight, m.bias, stride=m.stride[0], padding=m.padding[0]
        ),
        "plain convolutions": lambda m, x, *_: F.conv2d(x, m.weight, m.bias, m.stride, m.padding),
    }

    def run_all(convolve: Callable[..., Tensor], *maps: Tensor) -> list[Tensor]:
        return [convolve(m, *maps[3 * i : 3 * i + 3]) for i, m in enumerate(layers)]

    functions = {name: partial(run_all, convolve) for name, convolve in functions.items()}
    return functions, maps, [p for layer in layers for p in (layer.weight, layer.bias)]


def calls_on_maps(
    functions: Functions,
    maps: list[Tensor],
    parameters: list[Tensor],
    *,
    backward: bool,
    compiled: bool,
) -> dict[str, Call]:
    """Call every function on contiguous and on channels-last maps.

    Backward passes start from a random gradient in the output's memory format and return the
    gradients of maps and parameters.
    """
    given = {
        layout: [x.contiguous(memory_format=memory).requires_grad_(backward) for x in maps]
        for layout, memory in LAYOUTS.items()
    }
    # mmcv reads channels-last maps as if they were contiguous.
    named = [(n, layout, f) for n, f in functions.items() for layout in LAYOUTS]
    named = [call for call in named if call[:2] != ("mmcv", "channels-last")]
    if compiled:
        torch.compiler.reset()  # PyTorch stops recompiling after many shapes.
        ours = torch.compile(functions["ours"], dynamic=False)
        named.append(("ours compiled", "channels-last", ours))
    gradients: dict[tuple[object, ...], Tensor] = {}
    calls: dict[str, Call] = {}
    for name, layout, function in named:
        forward = partial(function, *given[layout])
        calls[f"{name}, {layout}"] = torch.no_grad()(forward)
        if backward:
            outputs = forward()
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            keys = [(i, y.stride()) for i, y in enumerate(outputs)]
            for key, y in zip(keys, outputs, strict=True):
                gradients.setdefault(key, torch.randn_like(y))
            inputs = [*given[layout], *parameters]
            call = partial(_differentiate, forward, inputs, [gradients[key] for key in keys])
            calls[f"{name}, {layout}"] = call
    return calls


def _differentiate(forward: Callable[[], Any], inputs: list[Tensor], grads: list[Tensor]) -> object:
    # Plain convolutions do not read offsets.
    return torch.autograd.grad(forward(), inputs, grads, allow_unused=True)


def post_processing_calls(shape: Shape, queries: int) -> dict[str, Call]:
    """``panoptic_postprocess`` of mmdet's fusion head and of ours; every query wins some pixels."""
    classes: dict[str, Any] = dict(num_things_classes=80, num_stuff_classes=53)
    class_logits = confident_class_logits(queries, queries, sum(classes.values()))
    # A band of columns for every query, with a ragged border.
    columns = torch.arange(shape[1]) * queries // shape[1]
    mask_logits = torch.where(torch.arange(queries)[:, None, None] == columns, 4.0, -4.0)
    mask_logits = mask_logits + torch.randn(queries, *shape)
    test_cfg = dict(object_mask_thr=0.8, iou_thr=0.8, filter_low_score=True)
    calls: dict[str, Call] = {}
    for name, kind in (("mmdet", MaskFormerFusionHead), ("ours", HCFormerFusionHead)):
        process = kind(**classes, test_cfg=test_cfg).panoptic_postprocess
        calls[name] = torch.no_grad()(partial(process, class_logits, mask_logits))
    return calls


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
        config = Config.fromfile(self.file)
        config.merge_from_dict(self.options)
        return config

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
    layer.register_forward_hook(lambda module, args, y: logits.to(y).expand_as(y))


def confident_class_logits(queries: int, kept: int, num_classes: int) -> Tensor:
    """Class logits ``(Q, K + 1)``: ``kept`` confident objects, the other queries no object."""
    best = torch.full((queries,), num_classes)
    objects = torch.arange(kept) * queries // max(kept, 1)
    # 37 is coprime to most K, so a few queries already cover things and stuff.
    best[objects] = torch.arange(kept) * 37 % num_classes
    return 20.0 * F.one_hot(best, num_classes + 1)


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
    model.train()
    # Otherwise models that pad or resize would get different images.
    model.data_preprocessor.batch_augments = None
    segmentor = isinstance(model, BaseSegmentor)
    if segmentor:
        model.data_preprocessor.size = tuple(data["inputs"][0].shape[-2:])
        model.data_preprocessor.size_divisor = None
    if phase == "step":
        settings = dict(config.get("optim_wrapper") or dict(optimizer=dict(type="AdamW", lr=1e-4)))
        for name in ("loss_scale", "dtype", "use_fp16"):
            settings.pop(name, None)
        scope = config.get("default_scope", "mmdet")
        with DefaultScope.overwrite_default_scope(scope), logging_from("ERROR"):
            optimizer = build_optim_wrapper(model, deepcopy(settings | {"type": "OptimWrapper"}))
        # Models change samples in place.
        return lambda: model.train_step(deepcopy(dict(data)), optimizer)

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


def peak_of_training(args: Namespace, index: int, shape: Shape, threads: int) -> int:
    """Train one config for three steps; return the peak resident bytes of this process.

    The first step creates the optimizer state, so memory peaks in the second or third.
    """
    torch.set_num_threads(threads)
    spec = parse_specs(args)[index]
    model = spec.build(args, training=True)
    data = random_batch(model, shape, batch=args.batch, objects=args.objects)
    step = training_call(model, spec.config(), data)
    for _ in range(3):
        step()
    return peak_resident()
