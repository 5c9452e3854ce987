"""Taps: modules of a backbone at which the maps before and after a downsampling are read.

The input of a tap is the fine map and its output the coarse one. Each is a tensor ``(B, C, H, W)``,
a tensor ``(B, H, W, C)``, or tokens ``(B, H·W, C)`` followed by their size ``(H, W)``.
"""

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...ops.neighborhood import coarse_size

DRY_RUN_SIZES = ((64, 96), (128, 192), (224, 224), (256, 256), (384, 384), (512, 512))
"""Sizes of the blank images of a dry run. The first are not square, so that pooling a whole map to
a pixel does not look like halving it, and ``(B, H, W, C)`` does not look like ``(B, C, H, W)``; the
others serve backbones with fixed sizes or windows."""

MAX_HALVINGS = 7
"""Halvings of the image after which its maps are no longer recognized (stride 128)."""

STEM_HALVINGS = 2
"""Halvings of the stem (stride 4), which the paper leaves unclustered."""

_LOCAL = threading.local()


class Pair(NamedTuple):
    """The maps at a tap.

    Attributes:
        fine: Map ``(B, C, H, W)`` before the downsampling.
        coarse: Map ``(B, C', ⌈H/2⌉, ⌈W/2⌉)`` after it.
        tokens: Whether the module returned the coarse map as tokens.
    """

    fine: Tensor
    coarse: Tensor
    tokens: bool


class ChannelsLast(NamedTuple):
    """Whether the maps at a tap are ``(B, H, W, C)``."""

    fine: bool = False
    coarse: bool = False


def channels_first(x: Tensor, channels_last: bool) -> Tensor:
    """Return a map as ``(B, C, H, W)``."""
    return x.movedim(-1, 1) if channels_last else x


def _read_map(values: Any, channels_last: bool) -> tuple[Tensor, bool] | None:
    """Map at the start of ``values`` and whether it came as tokens; None if there is none."""
    match values if isinstance(values, (tuple, list)) else (values,):
        case [Tensor() as x, *rest] if x.dim() == 4:
            # Several maps are the features of a whole backbone, or inputs to fuse.
            several = any(isinstance(value, Tensor) and value.dim() == 4 for value in rest)
            return None if several else (channels_first(x, channels_last), False)
        case [Tensor() as x, [height, width], *_] if x.dim() == 3:
            # Under tracing the sides are symbols or tensors of zero dimensions.
            sides = (height, width)
            scalar = all(
                isinstance(s, int | torch.SymInt) or getattr(s, "shape", None) == () for s in sides
            )
            if scalar and height * width == x.shape[1]:
                return x.transpose(1, 2).unflatten(2, sides), True
    return None


def _read_pair(inputs: Any, output: Any, channels_last: ChannelsLast) -> Pair | None:
    fine = _read_map(inputs, channels_last.fine)
    coarse = _read_map(output, channels_last.coarse)
    return Pair(fine[0], *coarse) if fine is not None and coarse is not None else None


def _capture(
    name: str,
    channels_last: ChannelsLast,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
) -> None:
    captured = getattr(_LOCAL, "captured", None)
    if captured is not None:
        pair = _read_pair((*args, *kwargs.values()), output, channels_last)
        if pair is not None:
            captured[name] = pair


def attach(backbone: nn.Module, taps: Mapping[str, ChannelsLast]) -> None:
    """Make ``backbone`` report the maps at ``taps`` to :func:`recording`."""
    # The hooks hold no reference to the backbone, so those of a copied model work as well.
    for name, channels_last in taps.items():
        backbone.get_submodule(name).register_forward_hook(
            partial(_capture, name, channels_last), with_kwargs=True
        )


@contextmanager
def recording() -> Iterator[dict[str, Pair]]:
    """Collect the maps at the taps by name, for this call and this thread alone."""
    outer = getattr(_LOCAL, "captured", None)
    captured: dict[str, Pair] = {}
    _LOCAL.captured = captured
    try:
        yield captured
    finally:
        _LOCAL.captured = outer


def halves(pair: Pair) -> bool:
    """Whether the coarse map has half the resolution of the fine one."""
    fine, coarse = tuple(pair.fine.shape[-2:]), tuple(pair.coarse.shape[-2:])
    return coarse == coarse_size(*fine) != fine


@dataclass
class Call:
    """What a module did in a dry run.

    Attributes:
        name: Name of the module.
        module: The module.
        start: Time at which it was called; times count calls and returns.
        end: Time at which it returned.
        pair: The maps that it read and returned; None if they were no maps of the image.
        channels_last: Whether these were ``(B, H, W, C)``.
        halvings: How often the image had been halved before and after the module; None if it was
            not halved.
        node: Node of the autograd graph that made the output.
    """

    name: str
    module: nn.Module
    start: int
    end: int
    pair: Pair | None
    channels_last: ChannelsLast
    halvings: tuple[int | None, int | None]
    node: Any

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes ``(B, C, H, W)`` of the maps."""
        return () if self.pair is None else tuple(tuple(x.shape) for x in self.pair[:2])

    @property
    def in_stem(self) -> bool:
        """Whether the module halves a map of the stem, finer than stride 4."""
        return self.halvings[0] is not None and self.halvings[0] < STEM_HALVINGS

    @property
    def mixes(self) -> bool:
        """Whether the module itself holds a matrix or a kernel, and is no mere normalization."""
        return any(parameter.dim() > 1 for parameter in self.module.parameters(recurse=False))

    @property
    def mixes_space(self) -> bool:
        """Whether the module is a convolution with a kernel larger than a pixel."""
        return isinstance(self.module, nn.Conv2d) and max(self.module.kernel_size) > 1


@dataclass
class DryRun:
    """A run of a backbone on a blank image.

    Attributes:
        calls: Calls of its modules in the order in which they returned.
        channels_last: For each value returned by the backbone, whether it is a map
            ``(B, H, W, C)``.
        halvings: For each of these, how often the image was halved; None if it is no map.
        image: Node of the autograd graph that made the image.
        deepest: Node of the graph that made the deepest map; None if there is no map.
        in_channels: Channels of the image.
    """

    calls: dict[str, Call]
    channels_last: list[bool]
    halvings: list[int | None]
    image: Any
    deepest: Any
    in_channels: int

    def describe_halving_modules(self) -> str:
        """List the modules that can be taps, as a clause of an error message."""
        names = [name for name, call in self.calls.items() if call.pair and halves(call.pair)]
        if names:
            return f"these halve the resolution in a dry run: {names}"
        return (
            "a dry run found no module that halves the resolution of a map (B, C, H, W) or "
            "(B, H, W, C), or of tokens (B, H·W, C) with their size"
        )

    def find_taps(self, *, stem: bool = False) -> list[str]:
        """Names of the modules to tap, finest first.

        For each halving below the stem, the map before it is the last one of a stage, and the map
        after it that of the first block of the next stage or of the patch merging (paper, Sec. 2).
        A module that makes this map is a bottleneck: without its output, nothing of the image
        reaches the deepest map. Such modules lie inside each other, such as a stage, its first
        block and a convolution, and :func:`_is_first_part` says how far to go inside. Branches that
        run side by side, as in HRNet, have no bottleneck; there the first branch counts.

        Args:
            stem: Whether to look for a tap of the stem's second halving, from stride 2, as well.

        Returns:
            Names of modules without gaps down to the deepest map; fewer than halvings where a
            module does not halve as clusters need it, or reads or returns something else.
        """
        taps: list[str] = []
        present = [halvings for halvings in self.halvings if halvings is not None]
        finest = 1 if stem else STEM_HALVINGS
        for before in range(min(finest, *present), max(present)) if present else ():
            calls = [call for call in self.calls.values() if call.halvings == (before, before + 1)]
            chain = [call for call in calls if self._is_bottleneck(call)] or [
                call for call in calls if call.start <= calls[0].start
            ]
            if not chain:
                taps.clear()
                continue
            chain.sort(key=lambda call: call.start)
            tap = chain[0]
            for inner in chain[1:]:
                if self._is_first_part(inner, tap):
                    tap = inner
            taps.append(tap.name)
        return taps

    def _is_bottleneck(self, call: Call) -> bool:
        seen, stack = {call.node}, [self.deepest]
        while stack:
            node = stack.pop()
            if node is self.image:
                return False
            if node is not None and node not in seen:
                seen.add(node)
                stack += [previous for previous, _ in node.next_functions]
        return self.deepest is not None

    def _is_first_part(self, inner: Call, outer: Call) -> bool:
        """Whether ``outer`` is a stage or a container, and ``inner`` its downsampling or block."""
        parts = [call for call in self.calls.values() if call.name.startswith(f"{outer.name}.")]
        before = [call for call in parts if call.end < inner.start]
        after = [call for call in parts if call.start > inner.end]
        (inner_fine, inner_coarse), (fine, coarse) = inner.shapes, outer.shapes
        # Blocks follow: they keep the shape and have at least two layers, or mix space again.
        if any(call.mixes_space for call in after) or (
            inner_coarse == coarse and sum(call.mixes for call in after) > 1
        ):
            return True
        # Blocks precede, or the inner module is the only block. A lone convolution or pooling is
        # taken for a layer of a block.
        return (
            any(inner.module.children())
            and (inner_fine, inner_coarse) == (fine, coarse)
            and (
                any(call.mixes for call in before)
                or (isinstance(outer.module, nn.Sequential) and not before and not after)
            )
        )


def _count_halvings(sides: Sequence[int], size: Sequence[int]) -> int | None:
    """How often an image of ``size`` was halved to a map with ``sides``; None if it was not."""
    for count in range(MAX_HALVINGS + 1):
        if all(side << count == n for side, n in zip(sides, size, strict=True)):
            return count
    return None


def _recognize(x: Any, size: Sequence[int]) -> tuple[int | None, bool]:
    """How often the image was halved to a tensor, and whether it is a map ``(B, H, W, C)``."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        return None, False
    count = _count_halvings(x.shape[2:], size)
    if count is None and (last := _count_halvings(x.shape[1:3], size)) is not None:
        return last, True
    return count, False


def _first(values: Any) -> Any:
    return next(iter(values), None) if isinstance(values, (tuple, list)) else values


@contextmanager
def _recording_calls(backbone: nn.Module, size: Sequence[int]) -> Iterator[dict[str, Call]]:
    """Collect the calls of all modules on an image of ``size``, in the order of their returns."""
    calls: dict[str, Call] = {}
    started: dict[str, int] = {}
    layouts: dict[str, bool] = {}
    clock = iter(range(2**62))

    def enter(
        name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        started[name] = next(clock)
        # Now, as the module may change its input in place.
        layouts[name] = _recognize(_first((*args, *kwargs.values())), size)[1]

    def leave(
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
    ) -> None:
        first = _first(output)
        last = ChannelsLast(layouts[name], _recognize(first, size)[1])
        pair = _read_pair((*args, *kwargs.values()), output, last)
        fine, coarse = (
            (_count_halvings(x.shape[2:], size) for x in pair[:2]) if pair else (None,) * 2
        )
        node = first.grad_fn if pair else None
        calls[name] = Call(
            name, module, started[name], next(clock), pair, last, (fine, coarse), node
        )

    with ExitStack() as stack:
        for name, module in backbone.named_modules():
            if name:
                for handle in (
                    module.register_forward_pre_hook(partial(enter, name), with_kwargs=True),
                    module.register_forward_hook(partial(leave, name), with_kwargs=True),
                ):
                    stack.callback(handle.remove)
        yield calls


def dry_run(backbone: nn.Module) -> DryRun:
    """Run the backbone on a blank image, without side effects.

    Raises:
        ValueError: The backbone fails on every size of :data:`DRY_RUN_SIZES`.
    """
    # Usually the first convolution is the stem, but some models register another one before it.
    convs = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    channels = dict.fromkeys((3, *(conv.in_channels for conv in (next(convs, None),) if conv)))
    shapes = [(1, count, *size) for count in channels for size in DRY_RUN_SIZES]
    # A copy, as some backbones freeze parameters in `eval()` or adapt buffers to the image.
    probe = copy.deepcopy(backbone)
    probe.eval()
    parameter = next(probe.parameters(), torch.zeros(()))
    gpus = {p.device for p in probe.parameters() if p.is_cuda}
    failure, partly = None, None
    for shape in shapes:
        try:
            with torch.enable_grad(), torch.random.fork_rng(gpus):
                # Not the leaf itself, which must not be changed in place.
                run = _dry_run(probe, parameter.new_zeros(shape).requires_grad_().clone())
        # Backbones reject a size with exceptions of any type.
        except Exception as error:
            failure = failure or error
            continue
        # The sides of the last map were odd, or the backbone made them even: a larger image may do.
        if run.halvings[-1] is not None:
            return run
        partly = partly or run
    if partly:
        return partly
    raise ValueError(
        f"expected {type(backbone).__name__} to run on a blank image of one of the shapes "
        f"{shapes}; the first attempt failed with: {failure}"
    ) from failure


def _dry_run(backbone: nn.Module, image: Tensor) -> DryRun:
    size, node = image.shape[2:], image.grad_fn
    with _recording_calls(backbone, size) as calls:
        outputs = backbone(image)
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    halvings, channels_last = zip(*(_recognize(x, size) for x in outputs), strict=True)
    deepest = max(
        (i for i, count in enumerate(halvings) if count is not None),
        key=lambda i: (halvings[i], i),
        default=None,
    )
    return DryRun(
        calls,
        list(channels_last),
        list(halvings),
        node,
        None if deepest is None else outputs[deepest].grad_fn,
        image.shape[1],
    )
