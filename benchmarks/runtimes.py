"""Runtimes of a model to time side by side, end to end: from bytes in memory to results.

Every call normalizes and pads one image of random bytes, runs the network and makes the results
that ``test_cfg`` enables, at the image's size; decoding and resizing of files are not in it.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.model import BaseModel
from torch._inductor import config as inductor

from benchmarks.measure import Call, Case, Shape
from benchmarks.models import inference_call, keep_queries, parse_specs
from hcformer_mm.acceleration.inference import prepare_for_inference
from hcformer_mm.deployment.export import ExportableModel, as_arrays, export_model, load_exported

RUNTIMES = ("prepared", "compiled", "onnx", "onnx-fp16", "onnx-int8", "openvino")


def cases(args: Namespace) -> Iterator[Case]:
    """Every config as it ships, and those that can be exported in every runtime as well."""
    if len(args.threads) > 1:
        raise ValueError(f"expected one number of threads for exported files, got {args.threads}")
    torch.set_num_threads(args.threads[0])
    for shape in args.shape:
        calls: dict[str, Call] = {}
        for spec in parse_specs(args):
            model = spec.build(args)
            if args.kept_queries is not None:
                keep_queries(model, args.kept_queries)
            calls[spec.name] = inference_call(model, shape, mode="predict", seed=args.seed)
            try:
                exportable = ExportableModel(
                    model, with_postprocess=True, uint8=True, deform_conv=args.deform_conv
                ).eval()
            except ValueError:
                continue  # a model of mmdet
            for runtime, call in _runtimes(model, exportable, shape, args).items():
                calls[f"{spec.name}, {runtime}"] = call
        yield dict(shape=f"{shape[0]}x{shape[1]}"), calls


def _runtimes(
    model: BaseModel, exportable: ExportableModel, shape: Shape, args: Namespace
) -> dict[str, Call]:
    """Calls by runtime."""
    wanted = args.runtimes
    calls: dict[str, Call] = {}
    if "prepared" in wanted:
        prepared = deepcopy(model)
        prepare_for_inference(prepared)
        calls["prepared"] = inference_call(prepared, shape, mode="predict", seed=args.seed)
    if "compiled" in wanted:
        calls["compiled"] = _compiled(deepcopy(model), shape, args.seed)
    if not set(wanted) & set(RUNTIMES[2:]):
        return calls
    from hcformer_mm.deployment.compression import to_float16, to_int8

    inputs = exportable.example(shape, seed=args.seed)
    named = as_arrays(inputs)
    with TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.onnx") for name in RUNTIMES[2:5]}
        export_model(exportable, files["onnx"], format="onnx", shape=shape)
        makers: dict[str, Callable[[], Any]] = {
            "onnx": lambda: None,
            "onnx-fp16": partial(to_float16, files["onnx"], files["onnx-fp16"]),
            "onnx-int8": partial(to_int8, files["onnx"], files["onnx-int8"], [named]),
        }
        for name, make in makers.items():
            if name in wanted:
                make()
                calls[name] = partial(load_exported(files[name]), *inputs)
        if "openvino" in wanted:
            import openvino

            options = dict(INFERENCE_NUM_THREADS=torch.get_num_threads())
            run = openvino.Core().compile_model(files["onnx"], "CPU", options)
            calls["openvino"] = partial(run, named)
    return calls


def _compiled(model: BaseModel, shape: Shape, seed: int) -> Call:
    """A model whose backbone is compiled with its weights as constants."""
    model.backbone.compile()
    call = inference_call(model, shape, mode="predict", seed=seed)

    def run() -> object:
        with inductor.patch(freezing=True):
            return call()

    return run
