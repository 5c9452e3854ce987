"""The three comparisons of the benchmark: operators, inference and training, in every setting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from types import ModuleType
from typing import Any

import torch

from benchmarks.memory import peak_resident, with_peak_extra
from benchmarks.model_specs import Variant
from benchmarks.models import DTYPES, keep_queries
from benchmarks.operators import Operator, operator_cases
from benchmarks.timing import Measurement, summarize, time_in_turn, top_operators
from benchmarks.training import Phase, random_batch, train_for_memory, training_call
from hcformer_mm.utils.random_inputs import Mode, model_call

PEAK_EXTRA = "most bytes of PyTorch's allocator at a time, over those before the call"
Shape = tuple[int, int]
Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Rounds:
    """How things are timed.

    Attributes:
        repeats: Rounds that count.
        warmup: Rounds before those.
        threads: Threads of PyTorch, each number anew.
        profile: How many of the slowest operators are listed; None: no profile is taken.
        seed: Seed of whatever is random.
        show: What is told before each setting is timed.
    """

    repeats: int
    warmup: int
    threads: Sequence[int]
    profile: int | None = None
    seed: int = 0
    show: Callable[[str], object] = print

    def time(
        self, calls: Calls, setting: Mapping[str, Any]
    ) -> tuple[list[Measurement], list[dict[str, Any]]]:
        """Times and profiles of calls, in the threads that the setting says."""
        self.show(" ".join(["timing", *map(str, setting.values())]))
        torch.set_num_threads(setting["threads"])
        measured = time_in_turn(calls, repeats=self.repeats, warmup=self.warmup, setting=setting)
        profiles = []
        if self.profile is not None:
            profiles = [
                dict(name=name, **setting, operators=top_operators(call, self.profile))
                for name, call in calls.items()
            ]
        return measured, profiles


def compare_operators(
    rounds: Rounds,
    shapes: Mapping[Operator, Sequence[Shape]],
    listings: ModuleType,
    **options: Any,
) -> dict[str, Any]:
    """Time operators beside what does the same, with their peaks of memory.

    Args:
        rounds: How they are timed.
        shapes: Sizes of the image by operator.
        listings: As of :func:`~benchmarks.operators.operator_cases`.
        options: More of its options.

    Returns:
        ``conditions``, ``baseline``, ``results`` and ``profiles``, as
        :func:`~benchmarks.timing.as_markdown` reads them. Results have ``ns_per_pixel``
        too, the median time per pixel of the image.
    """
    results: list[dict[str, Any]] = []
    profiles: list[dict[str, Any]] = []
    baselines: dict[str, str] = {}
    for operator, sizes in shapes.items():
        for shape in sizes:
            cases = operator_cases(operator, shape, listings=listings, seed=rounds.seed, **options)
            for case in cases:
                baselines[operator] = next(iter(case.calls))
                for threads in rounds.threads:
                    times, more = rounds.time(case.calls, {**case.setting, "threads": threads})
                    times = with_peak_extra(times, case.calls)
                    for row in summarize(times, baselines[operator]):
                        row["ns_per_pixel"] = 1e9 * row["median_s"] / (shape[0] * shape[1])
                        results.append(row)
                    profiles += more
                del case  # Before the maps of the next one are made.
    return dict(
        conditions={"peak extra": PEAK_EXTRA},
        baseline="; ".join(f"{name} for {operator}" for operator, name in baselines.items()),
        results=results,
        profiles=profiles,
    )


def compare_models(
    rounds: Rounds,
    variants: Sequence[Variant],
    shapes: Sequence[Shape],
    *,
    modes: Sequence[Mode],
    dtypes: Sequence[str] = ("float32",),
    kept_queries: int | None = None,
    baseline: int = 0,
) -> dict[str, Any]:
    """Time the inference of models on one random image.

    Args:
        rounds: How they are timed.
        variants: The models.
        shapes: Sizes of the image.
        modes: Parts of inference.
        dtypes: Names of precisions.
        kept_queries: How many queries pass as objects, whatever the weights are; see
            :func:`~benchmarks.models.keep_queries`.
        baseline: Which of the variants the others are compared with.

    Returns:
        As :func:`compare_operators`, without memory.

    Raises:
        ValueError: A variant cannot be built, or has no queries to keep.
    """
    models = {variant.name: variant.build(rounds.seed) for variant in variants}
    if kept_queries is not None:
        for model in models.values():
            keep_queries(model, kept_queries)
    measurements: list[Measurement] = []
    profiles: list[dict[str, Any]] = []
    for mode, shape, dtype, threads in product(modes, shapes, dtypes, rounds.threads):
        calls = {
            variant.name: model_call(
                models[variant.name],
                shape,
                mode=mode,
                dtype=DTYPES[dtype],
                channels_last=variant.channels_last,
                seed=rounds.seed,
            )
            for variant in variants
        }
        setting = dict(mode=mode, shape=_name(shape), dtype=dtype, threads=threads)
        times, more = rounds.time(calls, setting)
        measurements += times
        profiles += more
    return dict(
        conditions={
            "weights": ", ".join(str(variant.weights or "random") for variant in variants),
            **_preparation(variants),
            "kept queries": "as the weights say" if kept_queries is None else str(kept_queries),
        },
        baseline=variants[baseline].name,
        results=summarize(measurements, variants[baseline].name),
        profiles=profiles,
    )


def compare_training(
    rounds: Rounds,
    variants: Sequence[Variant],
    shapes: Sequence[Shape],
    *,
    phases: Sequence[Phase] = ("step",),
    batch: int = 2,
    objects: int = 10,
    baseline: int = 0,
) -> dict[str, Any]:
    """Time the training of models on a random batch, with their peaks of memory.

    The resident peak of a whole step is that of a process that does nothing else.

    Args:
        rounds: How they are timed.
        variants: The models.
        shapes: Sizes of the images.
        phases: Parts of training.
        batch: Number of images of a batch.
        objects: Number of objects on an image.
        baseline: Which of the variants the others are compared with.

    Returns:
        As :func:`compare_operators`.

    Raises:
        ValueError: A variant cannot be built or trained.
    """
    models = {variant.name: variant.build(rounds.seed, training=True) for variant in variants}
    measurements: list[Measurement] = []
    profiles: list[dict[str, Any]] = []
    for phase, shape in product(phases, shapes):
        data: dict[str, Any] = dict(batch=batch, objects=objects, seed=rounds.seed)
        calls = {}
        for variant in variants:
            model = models[variant.name]
            samples = random_batch(model, shape, **data)
            calls[variant.name] = training_call(model, variant.config(), samples, phase)
        for threads in rounds.threads:
            setting = dict(phase=phase, shape=_name(shape), batch=batch, threads=threads)
            times, more = rounds.time(calls, setting)
            times = with_peak_extra(times, calls)
            if phase == "step":
                train = partial(train_for_memory, threads=threads, **data)
                times = [
                    replace(m, peaks={**m.peaks, "resident": peak_resident(train, v, shape)})
                    for m, v in zip(times, variants, strict=True)
                ]
            measurements += times
            profiles += more
    return dict(
        conditions={
            "weights": ", ".join(str(variant.weights or "random") for variant in variants),
            **_preparation(variants),
            "objects": f"{objects} on each image",
            "peak extra": PEAK_EXTRA,
            "peak resident": "of a process that builds the model and trains a few steps",
        },
        baseline=variants[baseline].name,
        results=summarize(measurements, variants[baseline].name),
        profiles=profiles,
    )


def _name(shape: Shape) -> str:
    return f"{shape[0]}x{shape[1]}"


def _preparation(variants: Sequence[Variant]) -> dict[str, str]:
    """How models are prepared."""
    return {
        "BatchNorm": _say(variants, lambda v: "fused" if v.fuse_bn else "as configured"),
        "memory": _say(variants, lambda v: "channels-last" if v.channels_last else "contiguous"),
    }


def _say(variants: Sequence[Variant], describe: Callable[[Variant], str]) -> str:
    """What is so of all variants, or of each in turn."""
    texts = [describe(variant) for variant in variants]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)
