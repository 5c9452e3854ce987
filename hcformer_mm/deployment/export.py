"""Export of models to ONNX and PyTorch's exported programs, which run without this package.

:class:`ExportableModel` is the part that is exported: it takes images, normalized or not, and
returns logits or results. :func:`load_exported` runs the exported file.
"""

import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmengine.config import Config
from mmengine.model import BaseModel
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.nn import functional as F

from ..models.backbones import HCBackbone
from ..models.heads import HCFormerHead
from ..models.utils.mask_decoding import decode_mask_logits
from ..models.utils.post_processing import semantic_scores
from ..utils.atomic_write import replacing
from ..utils.config import tested_dataset
from ..utils.errors import InputError
from ..utils.random_inputs import image_bands
from .post_processing import GraphFusion, Size, most_likely_class, resize
from .rewriters import rewrite_modules

Format = Literal["onnx", "torch-export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
"""File suffix of each format."""

IMAGE, SIZE = "image", "size"
METADATA_FILE = "metadata.json"
OPSET = 20
LARGEST_ONNX = 2_000_000_000
"""Largest size of the weights in bytes; an ONNX file must stay below 2 GiB."""
SMALLEST = 33
"""Smallest side of an image for a dynamic model, in pixels: its coarsest map has several cells."""
TRACED_SHAPE = (1024, 1088)
"""Image size at which a dynamic model is traced. It spans several attention windows and several
cells of pooling pyramids, because PyTorch's tracer treats a size of 1 as a constant."""

Runner = Callable[..., dict[str, Tensor]]
"""Function from images and, with post-processing, the size of the results to outputs by name."""


class ExportableModel(nn.Module):
    """The network of a model, from images to logits or results.

    Args:
        model: A detector of mmdet with an :class:`~hcformer_mm.models.HCFormerHead`, or an
            ``EncoderDecoder`` of mmseg, as :func:`~hcformer_mm.apis.inference.build_model` returns.
        with_assignments: Whether to return the assignments as well.
        with_postprocess: Whether to return results in place of logits: those that the ``test_cfg``
            of a detector enables, and the semantic map of a segmentor.
        uint8: Whether images are RGB bytes, which the model normalizes itself.
        deform_conv: Whether deformable convolutions become ``DeformConv`` of ONNX, which runs
            several times faster in runtimes that have it, such as onnxruntime 1.32. Otherwise they
            become gathers and matrix products, which every runtime has.
        size_divisor: Images are padded at the right and the bottom to multiples of this, with the
            pad value of the model's pipeline. By default, the divisor of that pipeline.

    Raises:
        ValueError: The model is of another type or takes other bands than three, or has no
            assignments to return.
    """

    def __init__(
        self,
        model: BaseModel,
        *,
        with_assignments: bool = False,
        with_postprocess: bool = False,
        uint8: bool = False,
        deform_conv: bool = False,
        size_divisor: int | None = None,
    ) -> None:
        super().__init__()
        head = model.decode_head if type(model) is EncoderDecoder else None
        if isinstance(model, BaseDetector):
            head = getattr(model, "panoptic_head", None)
        self.classifies_masks = isinstance(head, HCFormerHead)
        if head is None or (isinstance(model, BaseDetector) and not self.classifies_masks):
            raise ValueError(
                "expected a detector with an HCFormerHead as panoptic_head or an EncoderDecoder of "
                f"mmseg, got {type(model).__name__} with {type(head).__name__}"
            )
        if (bands := image_bands(model)) != 3:
            raise ValueError(f"expected a model of three bands to export, BGR, got {bands} bands")
        if with_assignments and not isinstance(model.backbone, HCBackbone):
            raise ValueError(
                "expected an HCBackbone to return assignments of, got "
                f"{type(model.backbone).__name__}"
            )
        options = model.test_cfg.get("mode", "whole"), getattr(head, "align_corners", False)
        if with_postprocess and options != ("whole", False):
            raise ValueError(
                "expected a segmentor with test_cfg.mode='whole' and align_corners=False to export "
                f"its results, got {options[0]!r} and {options[1]}; export its logits"
            )
        self.model = model
        self.with_assignments = with_assignments
        self.with_postprocess = with_postprocess
        self.uint8 = uint8
        self.deform_conv = deform_conv
        self.fusion: GraphFusion | None = None
        if with_postprocess and isinstance(model, BaseDetector):
            self.fusion = GraphFusion(model.panoptic_fusion_head)
        self.size_divisor = size_divisor or pipeline_divisor(model)
        preprocessor = model.data_preprocessor
        is_mmseg = isinstance(preprocessor, SegDataPreProcessor)
        self.pad_value = float(getattr(preprocessor, "pad_val" if is_mmseg else "pad_value", 0))

    def forward(self, image: Tensor, size: Tensor | None = None) -> dict[str, Tensor]:
        """Compute logits or results of images.

        Args:
            image: Normalized images ``(B, 3, H, W)``; with ``uint8``, RGB bytes ``(B, H, W, 3)``.
            size: Height and width of the results, int64 ``(2,)``; only ``with_postprocess``.

        Returns:
            ``class_logits`` ``(B, Q, K + 1)`` and ``mask_logits`` ``(B, Q, h, w)`` of a mask
            classifier, or ``seg_logits`` ``(B, K, h, w)`` of a per-pixel one; ``with_postprocess``,
            what :class:`~hcformer_mm.deployment.post_processing.GraphFusion` returns. Then
            ``assignment_0`` ``(B, 9, h, w)``, ``assignment_1`` and so on, finest first. ``h`` and
            ``w`` are the sides of the padded image divided by the stride of the finest level.
        """
        if image.dtype == torch.uint8:
            image = self.normalize(image)
        height, width = image.shape[-2:]
        divisor = self.size_divisor
        # Multiples of the divisor keep the symbolic sizes short during tracing.
        rows, cols = ((side + divisor - 1) // divisor * divisor for side in (height, width))
        image = F.pad(image, (0, cols - width, 0, rows - height), value=self.pad_value)
        features = self.model.extract_feat(image)
        if size is not None and self.with_postprocess:
            outputs = self._results(features, (height, width), (rows, cols), _sides(size))
        elif self.classifies_masks:
            class_logits, mask_logits = self.head(features)
            outputs = dict(class_logits=class_logits[-1], mask_logits=mask_logits[-1])
        else:
            outputs = dict(seg_logits=self.head(features))
        if self.with_assignments:
            levels = enumerate(features.assignments)
            outputs |= {f"assignment_{i}": assignment for i, assignment in levels}
        return outputs

    @property
    def head(self) -> Any:
        """The head that predicts logits."""
        return getattr(self.model, "panoptic_head", None) or self.model.decode_head

    def _results(self, features: Any, image: Size, padded: Size, size: Size) -> dict[str, Tensor]:
        """Results at ``size`` of an image that was padded at the right and the bottom."""

        def resize_to_image(maps: Tensor) -> Tensor:
            # Negative padding crops: unlike a slice, its size is exact during tracing.
            return F.pad(resize(maps, padded), (0, image[1] - padded[1], 0, image[0] - padded[0]))

        head = self.head
        if self.fusion is not None:
            (class_logits,), (mask_logits,) = head.group(features[-1], last_only=True)
            probabilities, queries = self.fusion.choose(class_logits)
            index = queries[..., None, None].expand(-1, -1, *mask_logits.shape[-2:])
            masks = mask_logits.gather(1, index)
            masks = decode_mask_logits(masks, features.assignments, head.mask_space)
            return self.fusion(probabilities, queries, resize(resize_to_image(masks), size))
        scores = head(features)
        if self.classifies_masks:
            class_logits, mask_logits = (logits[-1] for logits in scores)
            scores = semantic_scores(class_logits, resize(mask_logits, padded))
        threshold = head.threshold if scores.shape[1] == 1 else None
        return dict(semantic=most_likely_class(resize_to_image(scores), size, threshold))

    def normalize(self, image: Tensor) -> Tensor:
        """Normalize RGB bytes ``(B, H, W, 3)`` as the model's data preprocessor does."""
        preprocessor = self.model.data_preprocessor
        image = image.permute(0, 3, 1, 2).float()
        if not _swaps_channels(preprocessor):
            image = image.flip(1)  # the model sees the channels as files are loaded: BGR
        if (mean := getattr(preprocessor, "mean", None)) is not None:
            image = (image - mean.view(1, -1, 1, 1)) / preprocessor.std.view(1, -1, 1, 1)
        return image

    def inputs_of(self, image: Tensor) -> dict[str, np.ndarray]:
        """Inputs of the exported model by name, for one image of the test pipeline.

        Args:
            image: Bytes ``(3, H, W)`` as files are loaded: BGR.
        """
        image = image.flip(0).permute(1, 2, 0)[None].contiguous()
        inputs = [image if self.uint8 else self.normalize(image), torch.tensor(image.shape[1:3])]
        return as_arrays(inputs if self.with_postprocess else inputs[:1])

    def example(self, shape: Size, batch_size: int = 1, seed: int = 0) -> list[Tensor]:
        """Inputs of :meth:`forward`: noise, and its size where there is post-processing."""
        generator = torch.Generator().manual_seed(seed)
        if self.uint8:
            image = torch.randint(256, (batch_size, *shape, 3), generator=generator).byte()
        else:
            image = torch.randn(batch_size, 3, *shape, generator=generator)
        return [image, torch.tensor(shape)] if self.with_postprocess else [image]


def as_arrays(inputs: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """Inputs of :meth:`ExportableModel.forward` by their names in an ONNX file."""
    return {name: x.numpy() for name, x in zip((IMAGE, SIZE), inputs, strict=False)}


def _sides(size: Tensor) -> Size:
    """Height and width as numbers, which an export records as symbols."""
    height, width = size.tolist()
    for side in (height, width):
        torch._check(side >= 1)
    return height, width


def _swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether a data preprocessor turns BGR, in which mmdet and mmseg load files, into RGB."""
    flags = ("_channel_conversion", "channel_conversion")  # of mmdet and mmseg
    return any(getattr(preprocessor, flag, False) for flag in flags)


def pipeline_divisor(model: BaseModel) -> int:
    """Return the size divisor to whose multiples a model's test pipeline pads images."""
    preprocessor = model.data_preprocessor
    if isinstance(preprocessor, SegDataPreProcessor):
        return (preprocessor.test_cfg or {}).get("size_divisor") or 1
    return getattr(preprocessor, "pad_size_divisor", 1)


def pipeline_resize(config: Config) -> dict[str, Any] | None:
    """Return how a config's test pipeline resizes images, for users of an exported file.

    Returns:
        ``scale``, the bounds of the two sides, and ``keep_ratio``; None if there is no ``Resize``.
    """
    for step in (tested_dataset(config) or {}).get("pipeline", ()):
        name = getattr(step["type"], "__name__", step["type"])
        if name.rpartition(".")[2] == "Resize" and (scale := step.get("scale")):
            scale = [scale] * 2 if isinstance(scale, int) else list(scale)
            return dict(scale=scale, keep_ratio=step.get("keep_ratio", False))
    return None


def describe(model: ExportableModel, name: str) -> dict[str, Any]:
    """Return the metadata that a user of an exported file needs.

    Args:
        model: The model.
        name: Name of the model.

    Returns:
        ``name``; ``classes``; ``thing_classes``, empty where the dataset does not name them;
        ``input``, the type of images; ``channels``, ``'RGB'`` or ``'BGR'``; ``mean`` and ``std`` of
        the normalization in this order of channels, None without normalization; ``size_divisor``
        and ``pad_value``.
    """
    preprocessor = model.model.data_preprocessor
    meta = getattr(model.model, "dataset_meta", None) or {}
    mean, std = (getattr(preprocessor, key, None) for key in ("mean", "std"))
    return dict(
        name=name,
        classes=list(meta.get("classes", ())),
        thing_classes=list(meta.get("thing_classes", ())),
        input="uint8 RGB (B, H, W, 3)" if model.uint8 else "normalized (B, 3, H, W)",
        channels="RGB" if _swaps_channels(preprocessor) else "BGR",
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
    shape: Size,
    batch_size: int = 1,
    dynamic: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Export a model to a file, which is written whole or not at all.

    Args:
        model: The model, on the CPU; it is not changed.
        path: File to write.
        format: ``'onnx'``, or ``'torch-export'`` for :func:`torch.export.load`.
        shape: Height and width of the images.
        batch_size: Number of images.
        dynamic: Whether there may be any number of images, of any size from :data:`SMALLEST` on;
            ``shape`` and ``batch_size`` do not matter then. The program
            refuses sizes for which the model would take another branch than at
            :data:`TRACED_SHAPE`; ONNX has no such asserts.
        metadata: Facts about the model, saved as JSON: one metadata entry per key in ONNX,
            :data:`METADATA_FILE` in the other format.

    Raises:
        ValueError: The file has the wrong suffix or no folder, the shape is out of range, the
            model is too large for one ONNX file, or PyTorch is too old for a dynamic model.
        ImportError: onnx or onnxscript is not installed.
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
    if dynamic and not hasattr(_config, "backed_size_oblivious"):
        raise ValueError(
            f"expected PyTorch 2.7 or newer for a dynamic model, got {torch.__version__}; export "
            "one model per shape"
        )
    if format == "onnx":
        _require("onnx", "onnxscript")
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        if size > LARGEST_ONNX:
            raise ValueError(
                f"expected at most {LARGEST_ONNX / 1e9:.1f} GB of weights for one ONNX file, got "
                f"{size / 1e9:.1f} GB; use the format 'torch-export'"
            )
    traced = (TRACED_SHAPE, 2) if dynamic else (shape, batch_size)
    program = _trace(model, *traced, dynamic)
    metadata = metadata or {}
    with replacing(path) as unfinished:
        if format == "onnx":
            _write_onnx(model, program, unfinished, metadata)
        else:
            # Given a path, torch.export.save would store its name in the file.
            buffer = io.BytesIO()
            files = {METADATA_FILE: json.dumps(dict(metadata))}
            torch.export.save(program, buffer, extra_files=files)
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
    for name in names:
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(
                f"expected {name} to be installed for ONNX: pip install onnx onnxscript onnxruntime"
            ) from error


def _trace(
    model: ExportableModel, shape: Size, batch_size: int, dynamic: bool
) -> torch.export.ExportedProgram:
    example = model.example(shape, batch_size)
    image_sides: dict[int, Any] = {
        dim: torch.export.Dim(name, min=1 if name == "batch" else SMALLEST)
        for dim, name in _dimensions(model).items()
    }
    dynamic_shapes = [image_sides, None][: len(example)]
    # Otherwise PyTorch would compare strides, which do not matter in dimensions of size 1, and the
    # program would refuse a single cell or window where the traced image had several.
    oblivious = dict(backed_size_oblivious=True)
    any_size = _config.patch(oblivious) if dynamic else nullcontext()  # type: ignore[attr-defined]
    with torch.no_grad(), warnings.catch_warnings(), any_size:
        warnings.simplefilter("ignore")  # PyTorch warns of its own internals
        program = torch.export.export(
            rewrite_modules(model, deform_conv=model.deform_conv).eval(),
            tuple(example),
            dynamic_shapes=tuple(dynamic_shapes) if dynamic else None,
            strict=False,  # runs the model in Python, with the hooks of the backbone's taps
            # Conditions that the tracer cannot prove for all sizes become asserts in the program.
            prefer_deferred_runtime_asserts_over_guards=dynamic,
        )
    program.example_inputs = None  # an image of noise, which would be saved
    return program


def _dimensions(model: ExportableModel) -> dict[int, str]:
    """Names of the dimensions of a dynamic model's image."""
    rows, cols = (1, 2) if model.uint8 else (2, 3)
    return {0: "batch", rows: "height", cols: "width"}


def _write_onnx(
    model: ExportableModel,
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: Mapping[str, Any],
) -> None:
    outputs = program.graph_signature.user_outputs
    names = program.call_spec.out_spec.unflatten(range(len(outputs)))
    inputs = [IMAGE, SIZE][: len(program.graph_signature.user_inputs)]
    onnx_program = torch.onnx.export(
        program,
        input_names=inputs,
        output_names=sorted(names, key=names.__getitem__),
        # Names for the dynamic sides of the program.
        dynamic_shapes=tuple([_dimensions(model), None][: len(inputs)]),
        opset_version=OPSET,
        verbose=False,
        external_data=False,
    )
    assert onnx_program is not None
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    onnx_program.model.metadata_props.update(texts)
    onnx_program.save(path, external_data=False)


def load_exported(path: Path) -> Runner:
    """Load an exported model to run on the CPU, with as many threads as PyTorch uses.

    Args:
        path: File that :func:`export_model` wrote.

    Returns:
        A function that takes what :meth:`ExportableModel.forward` takes. Of an ONNX file, it raises
        ValueError for other inputs.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has an unknown suffix, or is damaged.
        ImportError: onnxruntime is not installed.
    """
    if path.suffix not in SUFFIXES.values():
        raise ValueError(f"expected a file of one of {list(SUFFIXES.values())}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no such exported model: {path}")
    if path.suffix == SUFFIXES["torch-export"]:
        with _naming(path):
            module = torch.export.load(path).module()

        def run_program(*inputs: Tensor) -> dict[str, Tensor]:
            with torch.inference_mode():
                return cast(dict[str, Tensor], module(*inputs))

        return run_program
    _require("onnxruntime")
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with _naming(path):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run_session(*inputs: Tensor) -> dict[str, Tensor]:
        given = as_arrays(inputs)
        try:
            arrays = session.run(names, given)
        except InvalidArgument:
            takes = [f"{x.name} {x.type} {x.shape}" for x in session.get_inputs()]
            got = [f"{name} {x.dtype} {list(x.shape)}" for name, x in given.items()]
            raise ValueError(
                f"expected the inputs of {path}, {', '.join(takes)}, got {', '.join(got)}; give "
                "these, or export the model with other options"
            ) from None
        return {name: torch.from_numpy(a) for name, a in zip(names, arrays, strict=True)}

    return run_session


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever a reader of exported models stumbles over into an error that names the file."""
    try:
        yield
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"expected {path} to be a whole exported model: {reason}") from error
