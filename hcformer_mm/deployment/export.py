"""Models as files that run without this package: ONNX and PyTorch's exported programs.

What is exported is the network between pre- and post-processing: :class:`ExportableModel` takes the
normalized image and returns logits. :func:`load_exported` runs what was written.
"""

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from mmdet.models.detectors import BaseDetector
from mmengine.model import BaseModel
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.backbones import HCBackbone
from ..models.heads import HCFormerHead
from ..utils.atomic_write import replacing
from .rewriters import portable

Format = Literal["onnx", "torch-export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
"""The ending of the files of each format."""

INPUT = "image"
METADATA_FILE = "metadata.json"
_SIDES = {2: "height", 3: "width"}
OPSET = 20
LARGEST_ONNX = 2_000_000_000
"""Bytes of weights; a file of the format has less than 2 GiB in all."""
SMALLEST = 33
"""Sides in pixels of the smallest image of a dynamic model: its coarsest map has several cells."""
TRACED_SHAPE = (1024, 1088)
"""What a dynamic model is traced with. Everything has several parts there: cells of pyramids,
windows of attention; where there is one alone, PyTorch's tracer takes it for a constant."""

Runner = Callable[[Tensor], dict[str, Tensor]]


class ExportableModel(nn.Module):
    """The network of a model, from the normalized image to logits, without samples and results.

    Args:
        model: A model of :func:`~hcformer_mm.apis.inference.build_model`: a detector of mmdet
            with an :class:`~hcformer_mm.models.HCFormerHead`, or an ``EncoderDecoder`` of mmseg.
        with_assignments: Whether the assignments are returned, too.
        size_divisor: Images are padded with what the model's pipeline pads with, at the right and
            at the bottom, to multiples of this. By default as in the pipeline of the model.

    Raises:
        ValueError: The model is of another kind, or clusters nothing to return assignments of.
    """

    def __init__(
        self,
        model: BaseModel,
        *,
        with_assignments: bool = False,
        size_divisor: int | None = None,
    ) -> None:
        super().__init__()
        head = model.decode_head if type(model) is EncoderDecoder else None
        if isinstance(model, BaseDetector):
            head = getattr(model, "panoptic_head", None)
        masks = isinstance(head, HCFormerHead)
        if head is None or (isinstance(model, BaseDetector) and not masks):
            raise ValueError(
                "expected a detector with an HCFormerHead as panoptic_head or an EncoderDecoder of "
                f"mmseg, got {type(model).__name__} with {type(head).__name__}"
            )
        if with_assignments and not isinstance(model.backbone, HCBackbone):
            raise ValueError(
                f"expected an HCBackbone to return assignments of, got "
                f"{type(model.backbone).__name__}"
            )
        self.model = model
        self.classifies_masks = masks
        self.with_assignments = with_assignments
        self.size_divisor = size_divisor or pipeline_divisor(model)
        preprocessor = model.data_preprocessor
        self.pad_value = float(getattr(preprocessor, "pad_value", 0) or 0)
        if isinstance(preprocessor, SegDataPreProcessor):
            self.pad_value = float(preprocessor.pad_val)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict on the image alone.

        Args:
            image: Normalised image ``(B, 3, H, W)``.

        Returns:
            ``class_logits`` ``(B, Q, K + 1)`` and ``mask_logits`` ``(B, Q, h, w)`` of a model that
            classifies masks, or ``seg_logits`` ``(B, K, h, w)`` of one that classifies pixels; then
            ``assignment_0`` ``(B, 9, h, w)``, ``assignment_1`` and so on, finest first. ``h`` and
            ``w`` are those of the padded image over the stride of the finest level.
        """
        height, width = image.shape[-2:]
        divisor = self.size_divisor
        # Sizes that are this number of times something keep symbols short while they are traced.
        rows, cols = ((side + divisor - 1) // divisor * divisor for side in (height, width))
        image = F.pad(image, (0, cols - width, 0, rows - height), value=self.pad_value)
        features = self.model.extract_feat(image)
        outputs: dict[str, Tensor]
        if self.classifies_masks:
            head = getattr(self.model, "panoptic_head", None) or self.model.decode_head
            class_logits, mask_logits = head(features)
            outputs = dict(class_logits=class_logits[-1], mask_logits=mask_logits[-1])
        else:
            outputs = dict(seg_logits=self.model.decode_head(features))
        if self.with_assignments:
            levels = enumerate(features.assignments)
            outputs |= {f"assignment_{i}": assignment for i, assignment in levels}
        return outputs


def pipeline_divisor(model: BaseModel) -> int:
    """What the sides of images are padded to multiples of in the test pipeline of a model."""
    preprocessor = model.data_preprocessor
    if isinstance(preprocessor, SegDataPreProcessor):
        return (preprocessor.test_cfg or {}).get("size_divisor") or 1
    return getattr(preprocessor, "pad_size_divisor", 1)


def describe(model: ExportableModel, name: str) -> dict[str, Any]:
    """What the user of a file has to know of a model.

    Args:
        model: The model.
        name: What it is called.

    Returns:
        ``name``; ``classes``; ``thing_classes`` where the data tell; ``channels``, ``'RGB'`` or
        ``'BGR'``; ``mean`` and ``std`` of the normalization, in this order of channels, None
        without one; ``size_divisor`` and ``pad_value``.
    """
    preprocessor = model.model.data_preprocessor
    meta = getattr(model.model, "dataset_meta", None) or {}
    swaps = any(
        getattr(preprocessor, key, False) for key in ("_channel_conversion", "channel_conversion")
    )
    mean, std = (getattr(preprocessor, key, None) for key in ("mean", "std"))
    return dict(
        name=name,
        classes=list(meta.get("classes", ())),
        thing_classes=list(meta.get("thing_classes", ())),
        # The hosts read files as BGR.
        channels="RGB" if swaps else "BGR",
        mean=None if mean is None else mean.flatten().tolist(),
        std=None if std is None else std.flatten().tolist(),
        size_divisor=model.size_divisor,
        pad_value=model.pad_value,
    )


def export_model(
    model: ExportableModel,
    path: Path,
    *,
    format: Format,
    shape: tuple[int, int],
    batch_size: int = 1,
    dynamic: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a file, the whole of it or nothing.

    Args:
        model: The model, on a CPU; it is not changed.
        path: The file to write.
        format: ``'onnx'``, or ``'torch-export'`` for :func:`torch.export.load`.
        shape: Height and width of the images.
        batch_size: Number of images.
        dynamic: Whether images may have any other size from :data:`SMALLEST` on.
        metadata: What the file says about the model, as JSON: an entry per key in ONNX, and
            :data:`METADATA_FILE` in the other format.

    Raises:
        ValueError: The file has the wrong ending or no folder, the shape is out of range, or the
            model is larger than one ONNX file can be.
        ImportError: What writes ONNX is not installed.
    """
    _check_target(path, format)
    smallest = SMALLEST if dynamic else 1
    if min(shape) < smallest or batch_size < 1:
        raise ValueError(
            f"expected a shape of at least {smallest} {smallest} and one image, got {shape} and "
            f"{batch_size}"
        )
    if dynamic and model.size_divisor < 2:
        raise ValueError(
            "expected a size_divisor for a dynamic model, a multiple of its stride such as 32, got "
            f"{model.size_divisor}"
        )
    if format == "onnx":
        _require("onnx", "onnxscript")
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        if size > LARGEST_ONNX:
            raise ValueError(
                f"expected at most {LARGEST_ONNX / 1e9:.1f} GB of weights for one ONNX file, got "
                f"{size / 1e9:.1f} GB; use the format 'torch-export'"
            )
    program = _trace(model, TRACED_SHAPE if dynamic else shape, batch_size, dynamic)
    texts = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    with replacing(path) as unfinished:
        if format == "onnx":
            _write_onnx(program, unfinished, texts)
        else:
            # Given a path, PyTorch asks for its own ending.
            buffer = io.BytesIO()
            content = json.dumps(dict(metadata or {}))
            torch.export.save(program, buffer, extra_files={METADATA_FILE: content})
            unfinished.write_bytes(buffer.getvalue())


def _check_target(path: Path, format: Format) -> None:
    if format not in SUFFIXES:
        raise ValueError(f"expected a format among {list(SUFFIXES)}, got {format!r}")
    if path.suffix != SUFFIXES[format] or path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"expected a file *{SUFFIXES[format]} in an existing folder to write {format} to, got "
            f"{path}"
        )


def _require(*names: str) -> None:
    """Raise an ImportError that says what to install."""
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(
                f"expected {name} to be installed for ONNX: pip install onnx onnxscript onnxruntime"
            ) from error


def _trace(
    model: ExportableModel, shape: tuple[int, int], batch_size: int, dynamic: bool
) -> torch.export.ExportedProgram:
    example = torch.zeros(batch_size, 3, *shape)
    sizes: dict[str, Any] | None = None
    if dynamic:
        sizes = {INPUT: {i: torch.export.Dim(n, min=SMALLEST) for i, n in _SIDES.items()}}
    with torch.no_grad(), warnings.catch_warnings():
        # Of PyTorch about itself.
        warnings.simplefilter("ignore")
        program = torch.export.export(
            portable(model).eval(),
            (example,),
            dynamic_shapes=sizes,
            # Python runs the model, with the hooks of the backbone's taps.
            strict=False,
            # What the tracer cannot prove of all sizes is noted in the program.
            prefer_deferred_runtime_asserts_over_guards=dynamic,
        )
    _allow_single_parts(program)
    # An image of zeros, which would be written into the file.
    program.example_inputs = None
    return program


def _allow_single_parts(program: torch.export.ExportedProgram) -> None:
    """Take out the notes of a program that refuse one cell or window where there were several.

    They are about memory: dimensions of size 1 have any stride. ONNX does not have them either.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _write_onnx(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> None:
    outputs = program.graph_signature.user_outputs
    names = program.call_spec.out_spec.unflatten(range(len(outputs)))
    onnx_program = torch.onnx.export(
        program,
        input_names=[INPUT],
        output_names=sorted(names, key=names.__getitem__),
        # The program knows them; this names them in the file.
        dynamic_shapes={INPUT: dict(_SIDES)},
        opset_version=OPSET,
        verbose=False,
        external_data=False,
    )
    assert onnx_program is not None
    onnx_program.model.metadata_props.update(metadata)
    onnx_program.save(path, external_data=False)


def load_exported(path: Path) -> Runner:
    """What runs an exported model on the CPU, with as many threads as PyTorch has.

    Args:
        path: A file of :func:`export_model`.

    Returns:
        A function from normalized images ``(B, 3, H, W)`` to outputs by name.

    Raises:
        ValueError: The file is of no known format.
        ImportError: onnxruntime is not installed.
    """
    if path.suffix == SUFFIXES["torch-export"]:
        module = torch.export.load(path).module()

        def run_program(image: Tensor) -> dict[str, Tensor]:
            with torch.inference_mode():
                return cast(dict[str, Tensor], module(image))

        return run_program
    if path.suffix != SUFFIXES["onnx"]:
        raise ValueError(f"expected a file of one of {list(SUFFIXES.values())}, got {path}")
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run_session(image: Tensor) -> dict[str, Tensor]:
        arrays = session.run(names, {INPUT: image.numpy()})
        return {name: torch.from_numpy(a) for name, a in zip(names, arrays, strict=True)}

    return run_session
