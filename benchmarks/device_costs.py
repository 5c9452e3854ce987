"""Count what a call costs on a GPU, on a machine without one.

Tensors say that they are on a GPU, so the model takes its path for GPUs, while a CPU computes their
values, or only their shapes (``values=False``). Every operator is counted as the kernels that
PyTorch launches for it on CUDA::

    with pretend_gpu() as gpu:
        model = gpu.copy(model)
        with gpu.count() as costs:
            model.test_step(data)
    print(costs.row())
    print(costs.table())          # by operator; costs.table("place") by line of code

A CPU tensor of more than one element that meets a tensor of the GPU raises a RuntimeError, as it
would there. A backward pass needs ``pretend_gpu(backward=True)``: autograd asks for a CUDA context
otherwise.

What is counted:

- *Operators* that are neither views nor allocations, as a profiler lists them, and the bytes of
  their *operands*, inputs and outputs.
- *Launches* of kernels. Operators that PyTorch builds of others launch what these do; ``LAUNCHES``
  lists kernels that launch several.
- *Bytes moved*: what kernels read and write, every input and output once, of a gather's table only
  what it reads. Caches are not modeled.
- *Operations*: twice the multiply-adds of matrix products, convolutions and attention, as
  ``torch.utils.flop_counter`` counts them; elementwise arithmetic is not counted.
- *Syncs*: the CPU waits for the GPU, since it needs a value or a size.
- *Uploads*: tensors that are copied to the GPU.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import mmcv.ops.multi_scale_deform_attn as MMCV
import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils.flop_counter import flop_registry

from benchmarks.measure import as_table
from hcformer_mm.ops import neighborhood_products

Module = TypeVar("Module", bound=nn.Module)

CONTEXTLIB = contextlib.__file__
ROOT = Path(__file__).resolve().parents[1]
# Where PyTorch's kernels for CUDA are registered; a build without them has the same on CPUs.
BACKEND = "CUDA" if torch.backends.cuda.is_built() else "CPU"
COMPOSITE = torch._C.DispatchKey.CompositeExplicitAutograd
AUTOCAST, TENSOR = torch.autocast, torch.tensor
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_"}
# Built of others in an order that asks for a GPU, or views in all but name.
NOT_COMPOSITE = {
    *("convolution", "convolution_backward", "repeat"),
    *("_unsafe_view", "lift", "lift_fresh"),
}
COPYING = {"copy_", "_to_copy"}
OVERWRITING = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_"}
GATHERING = {"index", "index_select", "gather", "take", "embedding"}
SYNCING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"),
    *("unique_consecutive", "bincount"),
}
LAUNCHES = {
    # Counting, a prefix sum over blocks and the write of the indices.
    "_local_scalar_dense": 0,
    "nonzero": 3,
    "masked_select": 4,
    # Sorting, marking of changes, counting and writing.
    **dict.fromkeys(("_unique2", "unique_dim", "unique_consecutive"), 6),
    "bincount": 3,
    # A sort of keys with indices, for few rows in one pass.
    "sort": 3,
    "argsort": 3,
    "topk": 2,
    # Moments, parameters and the elementwise kernel.
    "native_group_norm": 3,
    "native_group_norm_backward": 4,
    "native_layer_norm_backward": 2,
    # The result starts as a copy of an operand.
    **dict.fromkeys(("scatter_add", "scatter", "scatter_reduce", "index_add", "baddbmm"), 2),
    # Sorting of indices, then sums of equal ones.
    "embedding_dense_backward": 5,
    "_embedding_bag_dense_backward": 5,
    "_cdist_forward": 5,
    # Gradients of input, weight and bias.
    "convolution_backward": 3,
    # Zeros of output, buffer and columns; gathering, product, transposition and bias.
    "deform_conv2d": 7,
    # Columns, offsets and masks, input, weights and bias, and their zeros.
    "_deform_conv2d_backward": 14,
}


@dataclass
class Operator:
    """One call of an operator: its name, the line that called it, and what it costs."""

    name: str
    place: str
    launches: int = 0
    bytes: int = 0
    operations: int = 0
    syncs: int = 0
    uploads: int = 0
    operand_bytes: int = 0
    """Bytes of inputs and outputs, as if one kernel did all."""


@dataclass
class Costs:
    """Costs of a call; see the module for what is counted."""

    calls: list[Operator] = field(default_factory=list)

    def _sum(self, name: str) -> int:
        return sum(getattr(call, name) for call in self.calls)

    @property
    def operators(self) -> int:
        return sum(call.launches > 0 for call in self.calls)

    @property
    def launches(self) -> int:
        return self._sum("launches")

    @property
    def gigabytes(self) -> float:
        return self._sum("bytes") / 1e9

    @property
    def operand_gigabytes(self) -> float:
        return self._sum("operand_bytes") / 1e9

    @property
    def gflop(self) -> float:
        return self._sum("operations") / 1e9

    @property
    def syncs(self) -> int:
        return self._sum("syncs")

    @property
    def uploads(self) -> int:
        return self._sum("uploads")

    def row(self) -> dict[str, float]:
        """All of these by name."""
        return {
            "operators": self.operators,
            "launches": self.launches,
            "GB of operands": self.operand_gigabytes,
            "GB moved": self.gigabytes,
            "GFLOP": self.gflop,
            "syncs": self.syncs,
            "uploads": self.uploads,
        }

    def milliseconds(self, bandwidth: float, peak: float, launch: float) -> float:
        """Estimate the time by a roofline: every operator is bound by the slowest of three.

        Args:
            bandwidth: GB/s of the GPU's memory.
            peak: TFLOP/s of matrix products.
            launch: Microseconds that the CPU takes to launch a kernel.
        """
        return 1e3 * sum(
            max(
                call.launches * launch * 1e-6,
                call.bytes / (bandwidth * 1e9),
                call.operations / (peak * 1e12),
            )
            for call in self.calls
        )

    def table(self, by: str = "name") -> str:
        """Render costs by operator (``"name"``) or by ``"place"``, most launches first."""
        groups: dict[str, list[Operator]] = {}
        for call in self.calls:
            groups.setdefault(getattr(call, by), []).append(call)
        rows = [{by: name, **Costs(calls).row()} for name, calls in groups.items()]
        rows.sort(key=lambda row: row["launches"], reverse=True)
        return as_table(rows)


class ValueReadError(RuntimeError):
    """A value or a size was read back from a tensor that has no values."""


class ResizedError(RuntimeError):
    """An operator changed the shape of a tensor in place."""


class DeviceTensor(Tensor):
    """A tensor that says it is on a GPU, and whose values a CPU holds in ``on_cpu``."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor, device: torch.device) -> "DeviceTensor":
        return Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=device,
        )

    def __init__(self, on_cpu: Tensor, device: torch.device) -> None:
        self.on_cpu = on_cpu

    def tolist(self) -> Any:
        return self.cpu().tolist()  # PyTorch's refuses subclasses.

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return super().new_tensor(_with_numbers(data), **options)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"expected a tensor of pretend_gpu() to stay inside of it, got {func}")


class PretendedGPU(TorchDispatchMode):
    """Runs operators on the tensors of a pretended GPU and counts them; see the module."""

    def __init__(self, device: torch.device, values: bool) -> None:
        super().__init__()
        self.device = device
        self.values = values
        self.costs: Costs | None = None
        self._current: Operator | None = None

    def copy(self, module: Module) -> Module:
        """Copy a module to the GPU."""
        moved: dict[int, Any] = {id(x): x.to(self.device) for x in module.buffers()}
        for x in module.parameters():
            moved[id(x)] = nn.Parameter(x.detach().to(self.device), x.requires_grad)
        module = deepcopy(module, moved)
        for child in module.modules():
            if isinstance(child, BaseDataPreprocessor):
                child._device = self.device
        return module

    @contextmanager
    def count(self) -> Iterator[Costs]:
        """Count what runs inside."""
        before, self.costs = self.costs, Costs()
        try:
            yield self.costs
        finally:
            self.costs = before

    def as_kernel(
        self, name: str, function: Callable[..., Tensor], *args: Any, operations: int = 0
    ) -> Tensor:
        """Run a function that is one kernel on a GPU; inside, nothing is counted."""
        with self._operator(name) as operator:
            counted, self.costs, self._current = self.costs, None, None
            try:
                result = function(*args)
            finally:
                self.costs, self._current = counted, operator
            operator.operand_bytes = sum(map(_size, _tensors((args, result))))
            self._add(launches=1, bytes=operator.operand_bytes, operations=operations)
        return result

    @contextmanager
    def _operator(self, name: str) -> Iterator[Operator]:
        """The call whose costs are added up: the outermost operator that is not a view."""
        if self._current is not None:
            yield self._current
            return
        self._current = operator = Operator(name, _place())
        try:
            yield operator
        finally:
            self._current = None
        if self.costs is not None and (operator.launches or operator.syncs or operator.uploads):
            self.costs.calls.append(operator)

    def _add(self, **costs: int) -> None:
        for name, cost in costs.items():
            setattr(self._current, name, getattr(self._current, name) + cost)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        args = _with_tensors_for_numbers(func, args)
        inputs = _tensors((args, kwargs))
        here = [x for x in inputs if self._is_here(x)]
        name = func._overloadpacket.__name__
        target = kwargs.get("device")
        if not here and (target is None or torch.device(target).type != self.device.type):
            return self._run(func, args, kwargs, inputs)
        strangers = [x for x in inputs if not self._is_here(x) and x.dim()]
        if strangers and name not in COPYING:
            shapes = ", ".join(str(tuple(x.shape)) for x in strangers)
            raise RuntimeError(
                f"expected all tensors of {name} on the GPU, got one on the CPU of shape {shapes} "
                f"at {_place()}; make it on the device"
            )
        outermost = self._current is None
        with self._operator(name) as operator:
            if name in COPYING:
                out = self._transfer(name, func, args, kwargs, inputs)
            elif _is_composite(func):
                out = self._composite(name, func, args, kwargs, inputs)
            else:
                out = self._kernel(name, func, args, kwargs, inputs)
            if operator.launches and outermost:
                operator.operand_bytes = sum(map(_size, here + _tensors(out)))
        return out

    def _is_here(self, x: Tensor) -> bool:
        return x.device.type == self.device.type

    def _run(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        """Compute an operator: on fake tensors, or on the values that the CPU holds."""
        if not self.values:
            try:
                return func(*args, **kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                raise ValueReadError(
                    f"expected no values to be read back without values, got {func} at {_place()}; "
                    "use pretend_gpu(values=True)"
                ) from error
        here = any(isinstance(x, DeviceTensor) for x in inputs)
        moved = dict(kwargs)
        if kwargs.get("device") is not None:
            here = torch.device(kwargs["device"]).type == self.device.type
            moved["device"] = torch.device("cpu") if here else kwargs["device"]
        with _disable_current_modes():
            to_cpu = pytree.tree_map_only(DeviceTensor, lambda x: x.on_cpu, (args, moved))
            out = func(*to_cpu[0], **to_cpu[1])
            if any(isinstance(x, DeviceTensor) and x.shape != x.on_cpu.shape for x in inputs):
                raise ResizedError(f"expected {func} to keep the shape of its tensors")
            if not here:
                return out
            out = pytree.tree_map_only(Tensor, lambda x: DeviceTensor(x, self.device), out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _transfer(self, name: str, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        """A copy, which may cross from one device to the other."""
        if name == "copy_":
            source, target = args[1], args[0].device
        else:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
        from_here, to_here = self._is_here(source), target.type == self.device.type
        out: Any
        if name == "copy_" and from_here and not to_here and self.values:
            with _disable_current_modes():
                args[0].copy_(source.on_cpu)
            out = args[0]
        else:
            out = self._run(func, args, kwargs, inputs)
        if from_here and to_here:
            self._add(launches=1, bytes=_size(source) + _size(out))
        else:
            self._add(syncs=int(from_here), uploads=int(to_here))
        return out

    def _composite(self, name: str, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        """Run an operator that PyTorch builds of others, each of which is counted."""
        before = copy(vars(self._current))
        try:
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        except ResizedError:  # It writes its result into an empty tensor: a kernel then.
            vars(self._current).update(before)
            return self._kernel(name, func, args, kwargs, inputs)

    def _kernel(self, name: str, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        if name in ("index", "_index_put_impl_"):
            self._add_masks(name, args)
        out = self._run(func, args, kwargs, inputs)
        outputs = _tensors(out)
        storages = {_storage(x) for x in inputs}
        view = not func._schema.is_mutable and all(_storage(x) in storages for x in outputs)
        if name in SYNCING or not (view or name in FREE):
            here = [x for x in inputs if self._is_here(x)]
            launches, moved = _cost(name, func, args, kwargs, here, outputs)
            operations = 0
            if func._overloadpacket in flop_registry:
                operations = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            elif name == "deform_conv2d":
                operations = 2 * out.numel() * prod(args[1].shape[1:])
            syncs = int(name in SYNCING)
            self._add(launches=launches, bytes=moved, operations=operations, syncs=syncs)
        return out

    def _add_masks(self, name: str, args: Any) -> None:
        """Masks as indices: their nonzero elements are found first, and their number is read."""
        masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
        value = args[2] if name == "_index_put_impl_" else None
        # PyTorch fills by a mask if the value is a number of the CPU.
        filled = value is not None and value.numel() == 1 and not self._is_here(value)
        for mask in masks if not filled else []:
            self._add(launches=LAUNCHES["nonzero"], bytes=2 * _size(mask), syncs=1)


@contextmanager
def pretend_gpu(*, values: bool = True, backward: bool = False) -> Iterator[PretendedGPU]:
    """Pretend that this machine has a GPU, ``gpu.device``, whose work ``gpu.count()`` counts.

    Args:
        values: Whether a CPU computes values; without them (fake tensors) a call costs no time and
            memory, but must not read values back.
        backward: Whether to run backward passes, which need values. The device then has another
            type than ``cuda``, because autograd would ask for its context.
    """
    if backward and not values:
        raise ValueError("expected values=True for a backward pass, got values=False")
    device = torch.device("lazy:0" if backward else "cuda:0")
    gpu = PretendedGPU(device, values)
    # Kernels for GPUs that PyTorch and mmcv would choose there.
    attention, deformable = F.scaled_dot_product_attention, MMCV.multi_scale_deformable_attn_pytorch

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: Any,
        **kw: Any,
    ) -> Tensor:
        def run(*inputs: Any) -> Tensor:
            # The heads of a query are adjacent in the kernel's result.
            return attention(*inputs, *args, **kw).transpose(1, 2).contiguous().transpose(1, 2)

        if attn_mask is not None and attn_mask.stride(-2) % 8:
            F.pad(attn_mask, (0, -attn_mask.shape[-1] % 8))  # PyTorch aligns the rows of masks.
        operations = 4 * query.numel() * key.shape[-2]
        operands = query, key, value, attn_mask
        return gpu.as_kernel(attention.__name__, run, *operands, operations=operations)

    def attend_deformably(value: Tensor, sizes: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        def run(value: Tensor, *inputs: Tensor) -> Tensor:
            if values:
                return deformable(value, *inputs)
            return value.new_empty(*places.shape[:2], prod(value.shape[2:]))

        return gpu.as_kernel("ms_deform_attn", run, value, sizes, places, weights)

    lift = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        stack.callback(torch._C._set_only_lift_cpu_tensors, lift)
        # torch.tensor(..., device=...) would ask CUDA for memory.
        torch._C._set_only_lift_cpu_tensors(True)
        # A CPU has no cuDNN, which PyTorch would choose for BatchNorm.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        # The type of device that stands for CUDA in backward passes has no autocast.
        stack.enter_context(patch.object(torch, "autocast", _autocast))
        bags = (*neighborhood_products.BAG_DEVICES, device.type)
        stack.enter_context(patch.object(neighborhood_products, "BAG_DEVICES", bags))
        stack.enter_context(patch.object(torch, "tensor", _tensor))
        # PyTorch's writes to memory that fake tensors lack.
        stack.enter_context(patch.object(torch, "_shape_as_tensor", lambda x: TENSOR(x.shape)))
        # Inference tensors have no versions, which views of a subclass need.
        stack.enter_context(patch.object(torch, "inference_mode", _inference_mode))
        stack.enter_context(patch.object(F, attention.__name__, attend))
        stack.enter_context(patch.object(MMCV, deformable.__name__, attend_deformably))
        # PyTorch initializes no GPU in this mode. With values, operators do not reach it.
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(gpu)
        yield gpu


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
    return nullcontext() if device_type == "lazy" else AUTOCAST(device_type, *args, **kwargs)


def _tensor(data: Any, **options: Any) -> Tensor:
    return TENSOR(_with_numbers(data), **options)


def _with_numbers(data: Any) -> Any:
    """Read the tensors in a list, which PyTorch does without asking for operators."""
    if isinstance(data, Tensor):
        return data
    return pytree.tree_map_only(Tensor, lambda x: x.item() if x.dim() == 0 else x.tolist(), data)


def _inference_mode(mode: bool = True) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(torch.is_grad_enabled() and not mode)


def _with_tensors_for_numbers(func: Any, args: Any) -> Any:
    """Undo what PyTorch does to numbers as operands, which some operators do not take back."""
    if not any(isinstance(x, (int, float)) for x in args):
        return args
    double = any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in args)
    wanted = [argument.type.kind() == "TensorType" for argument in func._schema.arguments]
    with _disable_current_modes():
        return tuple(
            torch.tensor(x, dtype=torch.float64 if double and isinstance(x, float) else None)
            if is_tensor and isinstance(x, (int, float))
            else x
            for x, is_tensor in zip(args, wanted, strict=False)
        )


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def _storage(x: Tensor) -> int:
    return (x.on_cpu if isinstance(x, DeviceTensor) else x).untyped_storage()._cdata


def _size(x: Tensor) -> int:
    """Bytes of memory that a tensor covers; expanded and overlapping elements count once."""
    if not x.numel():
        return 0
    own = prod(size for size, step in zip(x.shape, x.stride(), strict=True) if step)
    span = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return min(own, span) * x.element_size()


@cache
def _is_composite(func: Any) -> bool:
    """Whether PyTorch builds an operator of others on CUDA."""
    name = f"{func._schema.name}.{func._schema.overload_name}".rstrip(".")
    if func.is_view or func.namespace == "prim" or func._overloadpacket.__name__ in NOT_COMPOSITE:
        return False
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return has_kernel(name, COMPOSITE.name) and not has_kernel(name, BACKEND)


def _cost(
    name: str, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outputs: list[Tensor]
) -> tuple[int, int]:
    """Launches and bytes of an operator that is a kernel."""
    launches = LAUNCHES.get(name, 1)
    written = {id(x): x for x in outputs}
    read = {id(x): x for x in inputs}
    schema = func._schema.arguments
    given = {**{a.name: v for a, v in zip(schema, args, strict=False)}, **kwargs}
    for argument in schema:
        if argument.alias_info is not None and argument.alias_info.is_write:
            for x in _tensors(given.get(argument.name)):
                written[id(x)] = x
                if argument.is_out or name in OVERWRITING:
                    read.pop(id(x), None)
    out = sum(map(_size, written.values()))
    if name in GATHERING:
        table, *others = inputs
        return launches, min(out, _size(table)) + sum(map(_size, others)) + out
    moved = sum(map(_size, read.values())) + out
    if name == "convolution" and args[2] is not None:
        return launches + 1, moved + 2 * out  # cuDNN's result is read again to add the bias.
    if name == "_index_put_impl_":
        values = _size(args[2])
        indices = sum(map(_size, _tensors(args[1])))
        if len(inputs) == 1 + len(_tensors(args[1])):  # A number of the CPU fills.
            return 1, indices + 2 * _size(args[0])
        # Accumulation sorts the indices and adds equal ones.
        return (5 if given.get("accumulate") else 1), indices + 3 * values
    if name == "deform_conv2d":
        image, weight, offset, mask, _ = args[:5]
        copied = [x for x in (image, weight, offset, mask) if not x.is_contiguous()]
        columns = prod(weight.shape[1:]) * out // weight.shape[0]
        once = sum(map(_size, (image, weight, offset, mask)))
        return launches + len(copied), once + 2 * sum(map(_size, copied)) + 8 * out + 3 * columns
    return launches, moved


def _place() -> str:
    """The innermost line outside of PyTorch and of this module."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file not in (__file__, CONTEXTLIB) and "/torch/" not in file and file[0] != "<":
            path = file.rpartition("site-packages/")[2].removeprefix(f"{ROOT}/")
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"
