"""Half precision and 8-bit integers in exported ONNX files, by onnxruntime's own tools.

Both change the wrapped backbone alone, which takes most of the time. Clustering, attention inside
masks, decoding and results stay in float32, as does deformable downsampling: positions need more
digits than either type has.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from ..models.layers.deformable_downsampling import DeformableDownsampling
from ..utils.atomic_write import replacing

BACKBONE = "model.backbone.backbone"
SCOPES = "pkg.torch.onnx.name_scopes"
CLASSES = "pkg.torch.onnx.class_hierarchy"
Inputs = dict[str, np.ndarray]


def to_float16(source: Path, path: Path) -> None:
    """Write an ONNX file with its backbone in float16; inputs and outputs stay."""
    model = onnx.load(source)
    inside = set(_backbone_nodes(model))
    others = [node.name for node in model.graph.node if node.name not in inside]
    model = convert_float_to_float16(model, keep_io_types=True, node_block_list=others)
    # It casts the results of nodes in float32 to float16, and back where others of them read.
    casts = [
        (node, onnx.helper.get_node_attr_value(node, "to"))
        for node in model.graph.node
        if node.op_type == "Cast"
    ]
    whole = {node.output[0]: node.input[0] for node, to in casts if to == onnx.TensorProto.FLOAT16}
    for node, to in casts:
        if to == onnx.TensorProto.FLOAT and node.input[0] in whole:
            node.input[0] = whole[node.input[0]]
    with replacing(path) as unfinished:
        onnx.save(model, unfinished)


def to_int8(source: Path, path: Path, inputs: Iterable[Inputs]) -> None:
    """Write an ONNX file with the convolutions of its backbone quantized statically.

    Weights are quantized by channel; the ranges of maps are the extremes over ``inputs``.

    Args:
        source: The file with the model in float32.
        path: File to write.
        inputs: Inputs of the model by name, one batch at a time.
    """
    with replacing(path) as unfinished:
        quantize_static(
            source,
            unfinished,
            _Reader(iter(inputs)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_backbone_nodes(onnx.load(source), "Conv"),
        )


class _Reader(CalibrationDataReader):
    def __init__(self, inputs: Iterator[Inputs]) -> None:
        self._inputs = inputs

    def get_next(self) -> Inputs | None:
        return next(self._inputs, None)


def _backbone_nodes(model: onnx.ModelProto, *kinds: str) -> list[str]:
    """Names of the nodes inside the wrapped backbone, except those of deformable downsampling."""
    names = []
    for node in model.graph.node:
        inside = {entry.key: entry.value for entry in node.metadata_props}
        if (
            f"'{BACKBONE}'" in inside.get(SCOPES, "")
            and f".{DeformableDownsampling.__name__}'" not in inside.get(CLASSES, "")
            and (not kinds or node.op_type in kinds)
        ):
            names.append(node.name)
    return names
