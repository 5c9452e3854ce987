"""What layers of a model see of a small image, and who else reads what they return."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..models.backbones.taps import DRY_RUN_SIZES
from ..utils.random_inputs import model_call


class Call(NamedTuple):
    """Input and output of a layer, and what they were: activations change maps in place."""

    x: Tensor
    y: Tensor
    x_values: Tensor
    y_values: Tensor


class Calls(NamedTuple):
    """The calls of every layer in a run, and the ids of outputs that something else has read."""

    of: dict[nn.Module, list[Call]]
    read_by_others: set[int]


class _Watch(TorchFunctionMode):
    """Notes what is done to the outputs of layers, by anything but a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: defaultdict[nn.Module, list[Call]] = defaultdict(list)
        self.read: set[int] = set()
        self._written: set[int] = set()
        self._in_layers = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.note((args, kwargs))
        return func(*args, **(kwargs or {}))

    def note(self, values: Any) -> None:
        """Take down that these values are read, outputs of layers perhaps."""
        if not self._in_layers:
            ids = {id(x) for x in tree_leaves(values) if isinstance(x, Tensor)}
            self.read |= ids & self._written

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Before a layer."""
        self._in_layers += 1

    def leave(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        """After it."""
        self.calls[module].append(Call(args[0], y, args[0].clone(), y.clone()))
        self._written.add(id(y))
        self._in_layers -= 1


def record(model: nn.Module, layers: list[nn.Module]) -> Calls:
    """Run a model on a random image, of the first size that it takes, without gradients.

    Args:
        model: A detector, a segmentor or a module of images ``(1, 3, H, W)``.
        layers: Modules of one map that return one.

    Raises:
        RuntimeError: It does not run on an image alone.
    """
    failure = None
    for size in DRY_RUN_SIZES:
        watch = _Watch()
        handles = [layer.register_forward_pre_hook(watch.enter) for layer in layers]
        handles += [layer.register_forward_hook(watch.leave) for layer in layers]
        try:
            with watch:
                outputs = _run(model, size)
            watch.note(outputs)
        # Every model has its own way to refuse a size.
        except Exception as error:
            failure = failure or error
        else:
            return Calls(watch.calls, watch.read)
        finally:
            for handle in handles:
                handle.remove()
    raise RuntimeError(
        f"expected {type(model).__name__} to run on a random image of one of the sizes "
        f"{DRY_RUN_SIZES}; the first attempt failed with: {failure}"
    ) from failure


@torch.no_grad()
def _run(model: nn.Module, size: tuple[int, int]) -> Any:
    if isinstance(model, BaseModel):
        # Not in inference mode: what a layer keeps of its first run may be needed in training.
        return model_call(model, size, inference_mode=False)()
    generator = torch.Generator().manual_seed(0)
    return model(torch.randn(1, 3, *size, generator=generator).to(next(model.parameters())))
