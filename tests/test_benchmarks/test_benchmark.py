"""The benchmark's operators and models compute what they say, and its command line times them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import benchmark, models, operators
from benchmarks.device_costs import pretend_gpu
from hcformer_mm.apis.inference import build_model
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG

FCN = "mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py"
MASKFORMER = "mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py"
MASK2FORMER = (  # with few layers and points
    "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"
    "@model.panoptic_head.pixel_decoder.encoder.num_layers=1@model.train_cfg.num_points=64"
    "@model.panoptic_head.transformer_decoder.num_layers=1"
)
RETINANET = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"
NAME = Path(SHAPES_CONFIG).stem
FAST = "@fuse-conv-bn@channels-last"
FROZEN = "".join(
    f"@model.backbone.backbone.{option}"
    for option in ("norm_eval=True", "norm_cfg.type=BN", "norm_cfg.requires_grad=False")
)
SHAPE = (64, 96)
SMALL = ("--shape", "64", "96", "--threads", "1", "--repeats", "2")


@pytest.fixture
def parse(monkeypatch):
    """The arguments of a command line."""

    def parse(*command):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, command)])
        return benchmark.parse_args()

    return parse


@pytest.fixture
def specs_of(parse):
    return lambda *command: models.parse_specs(parse("model", *command, *SMALL))


@pytest.fixture
def model_of(parse, specs_of):
    def build(text, *, training=False):
        (spec,) = specs_of(text)
        return spec.build(parse("model", text, *SMALL), training=training), spec.config()

    return build


@pytest.fixture
def outputs_of(parse):
    """Settings and results of all calls of an operator."""

    def outputs(operator, one, *options):
        queries = ("--kept-queries", 6, "--pass", one, *SMALL, *options)
        cases = operators.cases(parse("ops", "--operator", operator, *queries))
        return [(setting, {n: call() for n, call in calls.items()}) for setting, calls in cases]

    return outputs


def test_clustering_agrees(outputs_of):
    inside = (..., slice(2, -2), slice(2, -2))  # Listing 1 differs at the border.
    found = outputs_of("clustering", "forward", "--stride", 4, 8)
    assert [setting["stride"] for setting, _ in found] == [4, 8]
    for setting, results in found:
        listing, *others = results.values()
        assert listing.shape == (1, 9, *(side // setting["stride"] for side in SHAPE))
        assert len(others) == 3 and not listing.requires_grad
        for other in others:
            torch.testing.assert_close(other[inside], listing[inside], rtol=1e-3, atol=1e-4)


def test_decoding_agrees_and_compiles(outputs_of):
    ((_, results),) = outputs_of(
        "decoding", "forward", "--stride", 16, "--channels", 3, "--compile"
    )
    assert list(results)[-1] == "ours compiled, channels-last" and len(results) == 5
    for result in results.values():
        torch.testing.assert_close(result, results["listing, contiguous"])
    options = "--stride", 16, "--channels", 3
    ((_, gradients),) = outputs_of("decoding", "forward+backward", *options)
    for masks, assignment in gradients.values():
        assert masks.shape == (1, 3, 2, 3) and assignment.shape == (1, 9, 4, 6)
    other = outputs_of("decoding", "forward", *options, "--seed", 1)[0][1]
    assert not torch.equal(other["ours, contiguous"], results["ours, contiguous"])


def test_deformable_convolutions_agree(outputs_of):
    ((_, results),) = outputs_of("deform", "forward")
    expected = results["mmcv, contiguous"]
    assert [y.shape[1] for y in expected] == [128, 512, 256, 1024, 512, 2048]
    for name, result in results.items():
        if not name.startswith("plain"):
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    plain = results["plain convolutions, contiguous"]
    assert [y.shape for y in plain] == [y.shape for y in expected]
    assert not torch.allclose(plain[0], expected[0], rtol=1e-2, atol=1e-2)
    ((_, results),) = outputs_of("deform", "forward+backward")
    for name, gradients in results.items():  # of map, offset and mask per layer; weight and bias
        missing = name.startswith("plain")
        assert [g is None for g in gradients] == [False, missing, missing] * 6 + [False] * 12


def test_post_processing_agrees(outputs_of):
    ((setting, results),) = outputs_of("post-processing", "forward")
    assert (setting["pass"], setting["channels"]) == ("forward", 6)
    segments = results["mmdet"].sem_seg
    assert torch.equal(results["ours"].sem_seg, segments)
    assert len(segments[segments != 133].unique()) == 6  # all queries, and void


def test_specs(specs_of):
    queries = "model.panoptic_head.num_queries"
    common = ("--cfg-options", f"{queries}=9", "b=[1,2]", "--checkpoints", "random", "random", "x")
    own, other, again = specs_of(f"{NAME}@{queries}=7", SHAPES_CONFIG, NAME, *common)
    assert [s.name for s in (own, other, again)] == [f"{NAME}@{queries}=7", NAME, f"{NAME} (2)"]
    assert own.options == {queries: 7, "b": [1, 2]} and other.options == {queries: 9, "b": [1, 2]}
    assert own.config().model.panoptic_head.num_queries == 7
    assert [s.checkpoint for s in (own, other, again)] == [None, None, "x"]
    for text in (NAME, f"{NAME}@fuse-conv-bn"):
        (spec,) = specs_of(text, "--fuse-conv-bn")
        assert (spec.name, spec.flags) == (f"{NAME}@fuse-conv-bn", {"fuse-conv-bn"})


def test_models_are_prepared_one_by_one(model_of):
    for text, fast in ((NAME, False), (NAME + FAST, True)):
        model, _ = model_of(text)
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
        weight = model.backbone.backbone.layer1[0].conv1.weight
        assert (not norms) == fast
        assert weight.is_contiguous(memory_format=torch.channels_last) == fast


def test_modes_and_dtypes(model_of):
    images = []
    for text in (FCN, NAME):
        model, _ = model_of(text)
        handle = model.backbone.register_forward_pre_hook(lambda _, args: images.append(args[0]))
        for mode in models.MODES:
            result = models.inference_call(model, SHAPE, mode=mode, seed=3)()
            if text == FCN and mode == "forward":
                assert result.shape == (1, 19, 8, 12) and result.is_inference()
                handle.remove()
                call = models.inference_call(model, SHAPE, mode=mode, dtype=torch.bfloat16)
                assert call().dtype == torch.bfloat16
        segments = result[0].pred_sem_seg if text == FCN else result[0].pred_panoptic_seg
        assert segments.shape[-2:] == SHAPE if text == FCN else segments.sem_seg.shape[1:] == SHAPE
    for image in images:  # normalized, and the same for models of mmdet and mmseg
        torch.testing.assert_close(image, images[0])
    assert images[0].mean().abs() < 1 < images[0].std() < 2


@pytest.mark.parametrize("text", [SHAPES_CONFIG, MASKFORMER, MASK2FORMER])
def test_kept_queries(model_of, text):
    model, _ = model_of(text)
    layer, seen = model.panoptic_head.cls_embed, []
    for number in (None, 7, 0):  # hooks run in this order
        if number is not None:
            models.keep_queries(model, number)
        handle = layer.register_forward_hook(lambda m, args, logits: seen.append(logits))
        models.inference_call(model, SHAPE, mode="predict")()
        handle.remove()
        scores, classes = seen[-1].softmax(dim=-1).max(dim=-1)
        kept = (scores > 0.8) & (classes < layer.out_features - 1)
        assert kept.reshape(-1, model.panoptic_head.num_queries)[-1].sum() == (number or 0)
    with pytest.raises(ValueError, match=r"expected at most \d+ queries to keep, got 1000"):
        models.keep_queries(model, 1000)


def batch_of(model, batch=2):
    return models.random_batch(model, SHAPE, batch=batch, objects=3)


def test_random_batches(model_of):
    data = batch_of(model_of(SHAPES_CONFIG)[0])
    assert [image.shape for image in data["inputs"]] == [(3, *SHAPE)] * 2
    for sample in data["data_samples"]:
        labels, masks = sample.gt_instances.labels, sample.gt_instances.masks.masks
        assert masks.shape == (3, *SHAPE) and masks.dtype == "uint8" and masks.any((1, 2)).all()
        assert (labels >= 0).all() and (labels < 6).all()
        assert sample.gt_sem_seg.sem_seg.unique().tolist() == [6, 7, 8, 9]
    model, _ = model_of(SEMANTIC_CONFIG)
    for sample in batch_of(model, 3)["data_samples"]:
        labels = sample.gt_sem_seg.data
        assert labels.shape == (1, *SHAPE) and len(labels.unique()) == 4
        assert labels.max() < model.decode_head.num_classes


@pytest.mark.parametrize("text", [SHAPES_CONFIG, SEMANTIC_CONFIG, FCN, MASK2FORMER, RETINANET])
def test_steps_train_on_images_of_their_size(model_of, text):
    model, config = model_of(text, training=True)
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape))
    step = models.training_call(model, config, batch_of(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert all(torch.isfinite(step()["loss"]) for _ in range(2))
    assert model.training and set(sizes) == {(2, 3, *SHAPE)}
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith("backbone") for name in moved)
    assert len(moved) > len(before) / 2


def test_optimizer_of_the_config(model_of):
    model, config = model_of(SHAPES_CONFIG, training=True)
    weight = model.panoptic_head.cls_embed.weight
    before, data = weight.detach().clone(), batch_of(model)
    config.optim_wrapper.optimizer.update(lr=0.0, weight_decay=0.0)
    models.training_call(model, config, data)()
    # Mixed precision needs an accelerator.
    config.optim_wrapper.update(type="AmpOptimWrapper", loss_scale="dynamic")
    models.training_call(model, config, data)()
    assert torch.equal(weight, before)
    config.pop("optim_wrapper")
    models.training_call(model, config, data)()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("text", [SHAPES_CONFIG, FCN])
def test_head_alone(model_of, text):
    model, config = model_of(text, training=True)
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append("backbone"))
    call = models.training_call(model, config, batch_of(model), "head")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    call()
    maps = [g for g in call() if g is not None and g.dim() == 4 and g.abs().sum() > 0]
    assert passes == ["backbone"]
    if text == SHAPES_CONFIG:
        assert [g.shape for g in maps if g.shape[1] == 9] == [
            (2, 9, 16, 24),
            (2, 9, 8, 12),
            (2, 9, 4, 6),
        ]
    assert any(g.shape[0] == 2 for g in maps)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None


def test_models_without_such_a_head_or_classes(model_of):
    model, config = model_of(RETINANET, training=True)
    data = batch_of(model)
    with pytest.raises(ValueError, match=r"detector with a panoptic_head or .* got RetinaNet"):
        models.training_call(model, config, data, "head")
    model.dataset_meta = None
    with pytest.raises(ValueError, match=r"expected a panoptic_head, or a test set .* RetinaNet"):
        batch_of(model)


@pytest.fixture
def report_of(monkeypatch, capsys, tmp_path):
    """Run the command; return what it writes as JSON and Markdown."""

    def run(*command):
        files = tmp_path / "report.json", tmp_path / "report.md"
        monkeypatch.setattr(
            sys, "argv", ["benchmark.py", *command, *SMALL, "--out", *map(str, files)]
        )
        benchmark.main()
        printed = capsys.readouterr().out
        assert printed.endswith(files[1].read_text() + "\n") and "timing" in printed
        assert "init_weights" not in printed
        return json.loads(files[0].read_text()), printed

    return run


def test_models_side_by_side(report_of):
    options = ("--mode", "predict", "--dtype", "float32", "bfloat16", "--baseline", "2")
    report, text = report_of("model", NAME, FCN, NAME + FAST, *options, "--profile", "100")
    fcn = Path(FCN).stem
    names, rows = [NAME, fcn, NAME + FAST], report["results"]
    assert [(row["dtype"], row["name"]) for row in rows] == [
        (dtype, name) for dtype in ("float32", "bfloat16") for name in names
    ]
    assert report["baseline"] == fcn and text.count(f"| {fcn} ") == 2
    for row in rows:
        assert (row["mode"], row["shape"], row["threads"]) == ("predict", "64x96", 1)
        assert len(row["seconds"]) == 2
        assert 0 < row["min (ms)"] <= row["median (ms)"] <= row["max (ms)"]
        assert (row["ratio"] == 1) == (row["name"] == fcn)
        assert ("aten::batch_norm " in row["profile"]) == (row["name"] != NAME + FAST)
    assert {"CPU", "torch", "rounds", "warm-up", "seed"} <= set(report["conditions"])


def test_runtimes_side_by_side(report_of):
    fcn = Path(FCN).stem
    report, _ = report_of("deployment", FCN, NAME, "--runtimes", "prepared")
    names = [fcn, f"{fcn}, prepared", NAME, f"{NAME}, prepared"]
    assert [row["name"] for row in report["results"]] == names
    assert report["baseline"] == fcn


@pytest.mark.slow
def test_exported_files_side_by_side(report_of):
    runtimes = ("compiled", "onnx", "onnx-fp16", "onnx-int8")
    report, _ = report_of("deployment", NAME, "--runtimes", *runtimes, "--deform-conv")
    names = [row["name"] for row in report["results"]]
    assert names == [NAME, *(f"{NAME}, {runtime}" for runtime in runtimes)]


def test_operators(report_of):
    options = ("--stride", "8", "--channels", "3", "4", "--kept-queries", "5")
    report, _ = report_of("ops", *options)
    both = ("forward", "forward+backward")
    assert {(row["operator"], row["pass"], row["channels"]) for row in report["results"]} == {
        *(("clustering", one, "-") for one in both),
        *(("decoding", one, channels) for one in both for channels in (3, 4)),
        *(("deform", one, "-") for one in both),
        ("post-processing", "forward", 5),
    }
    for row in report["results"]:
        assert row["peak extra (MiB)"] > 0
        assert row["ns/pixel"] == pytest.approx(1e6 * row["median (ms)"] / (64 * 96))
    firsts = {row["operator"]: row["name"] for row in report["results"] if row["ratio"] == 1}
    assert firsts == {
        "clustering": "listing, contiguous",
        "decoding": "listing, contiguous",
        "deform": "mmcv, contiguous",
        "post-processing": "mmdet",
    }


def test_costs(monkeypatch, capsys, tmp_path):
    """Counts beside estimates."""
    phases = ["network", "predict", "post-processing", "loss", "step"]
    command = ["costs", NAME, "--shape", "64", "96", "--phase", *phases, "--kept-queries", "5"]
    card = ["--card", "X", "--bandwidth", "1000", "--peak", "100", "--launch-us", "1000"]
    file = tmp_path / "report.json"
    options = ["--objects", "3", "--profile", "--out", str(file)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *command, *card, *options])
    benchmark.main()
    text, report = capsys.readouterr().out, json.loads(file.read_text())
    assert report["conditions"]["card"] == "X" and "baseline" not in report
    assert "not measured; times are *estimated*" in text and "Ratios" not in text
    rows = {row["phase"]: row for row in report["results"]}
    assert list(rows) == phases
    for phase, row in rows.items():
        assert row["launches"] >= row["operators"] > 10
        assert row["estimated (ms)"] == pytest.approx(row["launches"], rel=0.01)  # a ms each
        assert (row.get("objects") == 3) == (phase in ("loss", "step"))
        assert (row["syncs"] > 0) == (phase != "network")
        assert f"{NAME}, {phase}:" in row["profile"] and "hcformer_mm/" in row["profile"]
    for phase in ("network", "post-processing"):
        assert rows[phase]["launches"] < rows["predict"]["launches"]
    assert rows["loss"]["launches"] < rows["step"]["launches"]


def test_costs_of_a_network_that_reads_values(model_of):
    model, _ = model_of(MASK2FORMER)
    costs = models.count_costs(model, SHAPE, "network")
    assert costs.syncs > 0 and costs.uploads > 0
    assert any(call.name == "ms_deform_attn" for call in costs.calls)


def test_calls_run_on_a_gpu(model_of):
    """No tensor of the CPU meets one of the GPU in any call that is timed."""
    for text in (NAME, FCN):
        model, config = model_of(text)
        with pretend_gpu() as gpu:
            copy = gpu.copy(model)
            for mode in models.MODES:
                call = models.inference_call(copy, SHAPE, mode=mode)
                with gpu.count() as costs:
                    call()
                assert costs.launches and (costs.uploads > 0) == (mode == "predict")
        model, config = model_of(text, training=True)
        data = batch_of(model)
        with pretend_gpu(backward=True) as gpu:
            call = models.training_call(gpu.copy(model), config, data, "head")
            assert any(gradient.device == gpu.device for gradient in call() if gradient is not None)


def test_peak_of_a_training_step_on_a_gpu(parse, monkeypatch):
    """A fresh process reports what PyTorch has allocated on the GPU."""
    args = parse("train", NAME, *SMALL, "--objects", "3")
    args.device = "cuda:1"
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: device)
    monkeypatch.setattr(models, "build_model", lambda *a, device, **k: build_model(*a, **k))
    assert models.peak_of_training(args, 0, SHAPE, 1) == "cuda:1"


def test_training(report_of):
    other = f"{NAME}@model.panoptic_head.decode_matched_only=False{FROZEN}{FAST}"
    texts = [NAME, other]
    report, _ = report_of("train", *texts, "--phase", "head", "step", "--objects", "3")
    rows = report["results"]
    assert [(row["phase"], row["name"]) for row in rows] == [
        (phase, name) for phase in ("head", "step") for name in texts
    ]
    assert [row["ratio"] == 1 for row in rows] == [True, False] * 2
    # Decoding all masks takes more memory than decoding those that the losses need.
    assert rows[1]["peak extra (MiB)"] > rows[0]["peak extra (MiB)"]
    assert "peak resident (MiB)" not in rows[0]
    for row in rows[2:]:  # a process with PyTorch in it, the model and its gradients
        assert row["peak resident (MiB)"] > row["peak extra (MiB)"] + 100
    assert report["conditions"]["objects"] == 3


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("model", NAME, *SMALL, "--repeats", "0"), "expected an integer from 1 on, got '0'"),
        (("model", NAME, *SMALL, "--warmup", "-1"), "expected an integer from 0 on, got '-1'"),
        (("model", NAME, *SMALL, "--out", "a.txt"), "expected a file *.json or *.md, got 'a.txt'"),
        (("model", NAME, "--shape", "64"), "pairs H W, multiples of 32, got [64]"),
        (("train", NAME, "--shape", "64", "90"), "pairs H W, multiples of 32, got [64, 90]"),
        (("model", NAME, *SMALL, "--baseline", "2"), "expected --baseline of 1 to 1, got 2"),
        (("model", NAME, *SMALL, "--checkpoints", "x", "y"), "1 --checkpoints, one per config"),
        (("model", NAME, *SMALL, "--checkpoints", "no.pth"), "no such checkpoint: no.pth"),
        (("model", f"{NAME}@model.backbone.hierarchical_level=9", *SMALL), "between 0 and 5"),
        (("model", "nowhere.py", *SMALL), "expected a config file or package::path"),
        (
            ("model", f"{NAME}@fuse-conv-bn@fast", *SMALL),
            "expected CONFIG, and after each @ key=value",
        ),
        (("model", FCN, *SMALL, "--kept-queries", "5"), "a linear panoptic_head.cls_embed"),
        (("model", NAME, *SMALL, "--device", "cuda:99"), "expected a device of this machine"),
        (("train", NAME, *SMALL, "--fuse-conv-bn"), "expected frozen BatchNorm to fuse in"),
        (("costs", FCN, "--shape", "64", "96", "--phase", "loss"), "a panoptic_head for loss"),
        (("costs", FCN, "--shape", "64", "96", "--phase", "all"), "invalid choice: 'all'"),
        (("ops", "--operator", "attention"), "invalid choice: 'attention'"),
        (("ops", "--stride", "32"), "invalid choice: 32"),
    ],
)
def test_wrong_arguments(monkeypatch, capsys, command, message):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *command])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert message in f"{stopped.value.code} {capsys.readouterr().err}"
