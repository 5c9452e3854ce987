"""Fusion of BatchNorm into convolutions, wherever a run on a small image shows that it is exact."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from mmcv.cnn.bricks.wrappers import Conv2d
from mmcv.ops import ModulatedDeformConv2d
from mmengine.model import BaseModel
from mmengine.model.efficient_conv_bn_eval import efficient_conv_bn_eval_forward
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..models.backbones.taps import DRY_RUN_SIZES
from ..models.layers.deformable_downsampling import DeformableDownsampling
from ..utils.random_inputs import random_image

TOLERANCE = 1e-2
"""Largest accepted error of a fused model, relative to the largest value of a map. Rounding errors
are far smaller, even in TF32; the errors of layers that cannot be fused are far larger."""

Undo = Callable[[], None]
Fused = dict[Any, tuple[Any, Any]]
"""Convolutions, each with the BatchNorm that reads it and the function that computes both."""

# Forward methods of plain layers; a subclass that overrides them may compute something else.
_PLAIN_CONVS = {nn.Conv2d.forward, Conv2d.forward, DeformableDownsampling.forward}
_PLAIN_NORMS = {_BatchNorm.forward, nn.SyncBatchNorm.forward}


@torch.no_grad()
def fuse_conv_bn(model: nn.Module) -> Undo:
    """Fuse every BatchNorm into the plain or deformable convolution whose output it reads.

    A run on a small random image finds these pairs. (mmcv's ``fuse_conv_bn`` pairs layers by the
    order of their names, even with an activation in between.) Layers that the run does not reach,
    layers with hooks, and convolutions whose output anything else reads are not fused.

    Args:
        model: A detector, a segmentor, or a module that takes an image ``(1, 3, H, W)``, in
            evaluation mode; changed in place. Its outputs stay equal up to rounding.

    Returns:
        A function that unfuses the model.

    Raises:
        ValueError: The model is in training mode.
        RuntimeError: The model does not run on an image alone, or fusing changes its results; the
            model is left unchanged.
    """
    if model.training:
        raise ValueError(
            f"expected {type(model).__name__} in evaluation mode to fuse BatchNorm, got one in "
            "training mode; call its eval()"
        )
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d | ModulatedDeformConv2d)]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return _fuse(model, convs, norms, _fused_copy, _replace)


@torch.no_grad()
def fuse_frozen_bn(model: nn.Module) -> Undo:
    """Fuse frozen BatchNorm into convolutions in a way that allows training.

    At every call a convolution multiplies its weights by those of the BatchNorm, as MMEngine's
    ``efficient_conv_bn_eval`` does for models that torch.fx can trace. The backward pass keeps the
    product of the weights instead of the map between the two layers, which saves memory unless
    images are tiny. Modules and parameters stay in place; gradients are equal up to rounding.

    A BatchNorm is frozen if it is in evaluation mode while the model trains, and its parameters
    need no gradient. The run that finds the pairs is in evaluation mode, so it misses an operation
    between the two layers that happens only in training.

    Args:
        model: A model that predicts from an image alone, in any mode; changed in place.

    Returns:
        A function that unfuses the model.

    Raises:
        RuntimeError: As for :func:`fuse_conv_bn`.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        frozen = [m for m in model.modules() if _is_frozen(m)]
        model.eval()
        convs = [m for m in model.modules() if type(m).forward in _PLAIN_CONVS]
        return _fuse(model, convs, frozen, partial(partial, _convolve_scaled), _override)
    finally:
        for module, mode in modes.items():
            module.training = mode


def has_fused_bn(module: nn.Module) -> bool:
    """Whether :func:`fuse_frozen_bn` has fused a BatchNorm into this convolution."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _convolve_scaled


def _is_frozen(module: nn.Module) -> bool:
    is_norm = isinstance(module, _BatchNorm) and type(module).forward in _PLAIN_NORMS
    return is_norm and not module.training and not any(p.requires_grad for p in module.parameters())


def _is_observed(module: nn.Module) -> bool:
    """Whether a module has hooks, or an instance attribute in place of its ``forward``."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return "forward" in vars(module) or any(getattr(module, name) for name in hooks)


def _fuse(
    model: nn.Module,
    convs: list[Any],
    norms: list[Any],
    fuse: Callable[[Any, _BatchNorm], Callable[[Tensor], Tensor]],
    install: Callable[[nn.Module, Fused, ExitStack], dict[Any, nn.Module]],
) -> Undo:
    """Trace a model, fuse the pairs that the trace shows, and verify by a second trace.

    Args:
        model: The model, in evaluation mode.
        convs: Convolutions that may be fused.
        norms: BatchNorms that may be fused.
        fuse: Returns the function that computes a convolution and a BatchNorm.
        install: Installs these functions in the model, and pushes onto the stack the callbacks that
            remove them. Returns the new module for each module that it replaced.
    """
    convs = [conv for conv in convs if not _is_observed(conv)]
    norms = [norm for norm in norms if norm.running_mean is not None and not _is_observed(norm)]
    if not norms:
        return lambda: None
    before = _trace(model, [*convs, *norms])
    fused = {conv: (norm, fuse(conv, norm)) for conv, norm in before.pairs()}
    # The results differ where a layer does more than its base class: a convolution that
    # standardizes its weights, a BatchNorm that ends in an activation.
    for conv, (norm, function) in list(fused.items()):
        if not _agree([function(call.x) for call in before.calls[conv]], before.calls[norm]):
            del fused[conv]
    with ExitStack() as undo:
        new = install(model, fused, undo)
        expected = {new.get(k, k): calls for k, calls in before.calls.items() if k not in fused}
        after = _trace(model, list(expected)).calls
        if not all(_agree([call.y for call in after[k]], calls) for k, calls in expected.items()):
            raise RuntimeError(
                f"expected {type(model).__name__} to give the same results after fusing BatchNorm, "
                "got others; does it predict at random, or read the output of a convolution "
                "outside PyTorch?"
            )
        return undo.pop_all().close


def _fused_copy(conv: Any, norm: _BatchNorm) -> nn.Module:
    fused = fuse_conv_bn_eval(conv, norm)
    for name, child in conv.named_children():  # the layer that predicts offsets, not its copy
        setattr(fused, name, child)
    return fused


def _replace(model: nn.Module, fused: Fused, undo: ExitStack) -> dict[Any, nn.Module]:
    """Replace convolutions by fused ones, and BatchNorms by identities."""
    new: dict[Any, nn.Module] = {conv: module for conv, (_, module) in fused.items()}
    new |= {norm: nn.Identity() for norm, _ in fused.values()}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in new:
                setattr(parent, name, new[child])
                undo.callback(setattr, parent, name, child)
    return new


def _override(model: nn.Module, fused: Fused, undo: ExitStack) -> dict[Any, nn.Module]:
    """Let convolutions compute both layers, and BatchNorms return their input."""
    for conv, (norm, function) in fused.items():
        for module, forward in ((conv, function), (norm, _identity)):
            module.forward = forward
            undo.callback(delattr, module, "forward")
    return {}


def _convolve_scaled(conv: Any, norm: _BatchNorm, x: Tensor) -> Tensor:
    """Convolve with weights multiplied by those of a frozen BatchNorm."""
    if norm.training:
        raise RuntimeError(
            "expected a BatchNorm that stays in evaluation mode, as it was fused into a "
            "convolution, got one in training mode; unfuse it first"
        )
    return efficient_conv_bn_eval_forward(norm, conv, x)


def _identity(x: Tensor) -> Tensor:
    return x


class _Call(NamedTuple):
    """One call of a layer: input, the layer that returned the input, and output.

    Input and output are copies, since later operations may change the originals in place.
    """

    x: Tensor
    source: nn.Module | None
    y: Tensor


class _Trace(TorchFunctionMode):
    """Records the calls of layers, and which layers' outputs other operations read."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.calls: dict[nn.Module, list[_Call]] = {layer: [] for layer in layers}
        self._sources: dict[Tensor, nn.Module] = {}
        self._read_by_others: set[nn.Module] = set()
        self._depth = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.note_reads((args, kwargs))
        return func(*args, **(kwargs or {}))

    def note_reads(self, values: Any) -> None:
        """Note the layers whose outputs are among the inputs of an operation outside any layer."""
        if self._depth == 0:
            tensors = {x for x in tree_leaves(values) if isinstance(x, Tensor)}
            self._read_by_others |= {self._sources[x] for x in tensors & self._sources.keys()}

    def enter(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Forward pre-hook of every layer."""
        self._depth += 1

    def leave(self, layer: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        """Forward hook of every layer."""
        self.calls[layer].append(_Call(args[0].clone(), self._sources.get(args[0]), y.clone()))
        self._sources[y] = layer
        self._depth -= 1

    def pairs(self) -> Iterator[tuple[Any, _BatchNorm]]:
        """Yield each convolution whose output only one BatchNorm reads, with that BatchNorm."""
        sources = {layer: {call.source for call in calls} for layer, calls in self.calls.items()}
        readers: defaultdict[nn.Module | None, set[nn.Module]] = defaultdict(set)
        for layer, found in sources.items():
            for source in found:
                readers[source].add(layer)
        for conv, (norm, *others) in readers.items():
            if others or not isinstance(norm, _BatchNorm) or norm.training:
                continue
            if isinstance(conv, _BatchNorm | None) or conv in self._read_by_others:
                continue
            if sources[norm] == {conv} and len(self.calls[norm]) == len(self.calls[conv]):
                yield conv, norm


@torch.no_grad()
def _trace(model: nn.Module, layers: list[nn.Module]) -> _Trace:
    """Trace layers, from one tensor to one tensor, in a run on a random image.

    The image has the first of :data:`DRY_RUN_SIZES` that the model accepts.
    """
    failure = None
    for size in DRY_RUN_SIZES:
        trace = _Trace(layers)
        handles = [layer.register_forward_pre_hook(trace.enter) for layer in layers]
        handles += [layer.register_forward_hook(trace.leave) for layer in layers]
        try:
            with trace:
                trace.note_reads(_run(model, size))
        # Models refuse a size by exceptions of any type.
        except Exception as error:
            failure = failure or error
        else:
            return trace
        finally:
            for handle in handles:
                handle.remove()
    raise RuntimeError(
        f"expected {type(model).__name__} to run on a random image of one of the sizes "
        f"{DRY_RUN_SIZES}; the first attempt failed with: {failure}"
    ) from failure


def _run(model: nn.Module, size: tuple[int, int]) -> Any:
    if isinstance(model, BaseModel):
        # Not in inference mode: training may need tensors that a layer keeps from its first run.
        batch = model.data_preprocessor(random_image(model, size), False)
        return model(**batch, mode="predict")
    generator = torch.Generator().manual_seed(0)
    return model(torch.randn(1, 3, *size, generator=generator).to(next(model.parameters())))


def _agree(outputs: list[Tensor], calls: list[_Call]) -> bool:
    """Whether outputs equal those of the calls, up to rounding."""
    return len(outputs) == len(calls) and all(
        torch.allclose(y, call.y, rtol=0, atol=TOLERANCE * float(call.y.abs().max()))
        for y, call in zip(outputs, calls, strict=True)
    )
