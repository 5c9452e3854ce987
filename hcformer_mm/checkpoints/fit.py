"""Load weights into a model, and say what does not fit."""

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..utils.errors import some
from .hcformer_d2.key_mapping import COUNTER
from .io import tensors_of, weights_entry


@dataclass
class Fit:
    """How the weights of a checkpoint fit a model.

    Attributes:
        loaded: Number of tensors that were loaded.
        misfits: For each tensor of another shape or kind, what the file and the model have.
        missing: Names in the model that the file lacks.
        unused: Names in the file that the model lacks.
    """

    loaded: int = 0
    misfits: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def faults(self) -> str:
        """What does not fit, in one line; empty if everything fits."""
        kinds = (
            (self.misfits, "of another shape"),
            (self.missing, "missing in the file"),
            (self.unused, "without a counterpart in the model"),
        )
        return "; ".join(f"{len(names)} {what}: {some(names)}" for names, what in kinds if names)

    def advice(self) -> str:
        """What to do about the faults."""
        if any(name.startswith("sem_seg_head.") for name in self.unused):
            return (
                "it is a checkpoint of Detectron2, which "
                "tools/model_converters/hcformer_d2_to_mm.py converts if it is a released HCFormer"
            )
        if not self.loaded:
            return (
                "tools/model_converters/warm_start.py converts what fits from checkpoints of "
                "mmdet, mmseg and torchvision"
            )
        fused = any(name.endswith(".running_var") for name in self.missing)
        if fused and any(name.endswith(".bias") for name in self.unused):
            return "its BatchNorm is fused into convolutions; save a model before that"
        return "use the config that it was trained with"


def load_weights(model: nn.Module, content: Mapping[str, Any], source: str | Path) -> Fit:
    """Load the weights of a checkpoint that fit a model, and report on all others.

    BatchNorm's counters may be missing, since nothing but a cumulative average uses them.

    Args:
        model: The model, without wrappers of distributed training; changed in place.
        content: Content of a checkpoint, as :func:`~.io.load_checkpoint` returns it.
        source: File of the checkpoint, for a warning about NaN and infinite values.
    """
    entry = weights_entry(content)
    tensors: OrderedDict[str, Tensor] = OrderedDict(tensors_of(entry))
    own = model.state_dict()
    kind = Tensor.is_floating_point
    misfits = {
        name: f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        + f", {value.dtype} for {own[name].dtype}" * (kind(value) != kind(own[name]))
        for name, value in tensors.items()
        if name in own and (kind(value), value.shape) != (kind(own[name]), own[name].shape)
    }
    if nonfinite := [name for name, value in tensors.items() if not value.isfinite().all()]:
        warnings.warn(
            f"expected finite weights in {source}, got NaN or infinity in {some(nonfinite)}; what "
            "its model predicts is useless",
            stacklevel=2,
        )
    fitting = OrderedDict((name, tensors[name]) for name in tensors if name not in misfits)
    # Modules read their version here to rename what older versions wrote.
    fitting._metadata = getattr(entry, "_metadata", None)  # type: ignore[attr-defined]
    missing, unused = model.load_state_dict(fitting, strict=False)
    return Fit(
        loaded=len(fitting) - len(unused),
        misfits=list(misfits.values()),
        missing=[name for name in missing if name not in misfits and not name.endswith(COUNTER)],
        unused=unused,
    )
