"""Command-line arguments, config and runner of ``tools/train.py`` and ``tools/test.py``."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints.io import force_weights_only
from ..utils.arguments import add_cfg_options
from ..utils.components import entries
from ..utils.config import find_weights, naming, read_config
from ..utils.errors import InputError
from ..utils.strict_json import write_strict_logs
from .completion import complete_evaluators, complete_pipelines
from .dist import set_up_gloo
from .hooks.checkpoint_check_hook import ALLOW_PARTIAL, CheckpointCheckHook
from .hooks.data_check_hook import DataCheckHook
from .hooks.param_groups_hook import ParamGroupsHook
from .mixed_precision import complete_optim_wrapper
from .run_checks import Findings
from .run_checks.components import component_faults


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of every OpenMMLab tool that runs a config."""
    parser.add_argument("config", help="config file path")
    parser.add_argument(
        "--work-dir",
        help="folder for logs, metrics and checkpoints (default: work_dirs/<name of the config>)",
    )
    add_cfg_options(parser)
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="job launcher of distributed runs",
    )
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, default=0, help="set by torch's launcher"
    )


def add_checkpoint_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of every tool that tests a checkpoint."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="checkpoint file; by default the weights that come with this package, as those of "
        "hcformer_tiny_shapes do",
    )
    parser.add_argument(
        ALLOW_PARTIAL,
        action="store_true",
        help="test a checkpoint that does not fit the model, or was trained on other classes; what "
        "the model does not get from it stays random",
    )


def load_config(args: Namespace) -> Config:
    """Read the config that the common arguments name, and apply their overrides.

    ``--work-dir`` overrides the config's ``work_dir``; without either, the folder is
    ``work_dirs/<name of the config>``. The checkpoint of :func:`add_checkpoint_arguments` becomes
    ``load_from``.

    Raises:
        InputError: There is no such config, it lacks a section of the run, or no checkpoint to test
            is given and none comes with this package.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    config = read_config(args.config, args.cfg_options)
    testing = "checkpoint" in args
    wanted = ("test_dataloader", "test_evaluator", "test_cfg")
    if not testing:
        wanted = ("train_dataloader", "optim_wrapper", "train_cfg")
    if missing := [name for name in wanted if config.get(name) is None]:
        raise InputError(
            f"expected {', '.join(wanted)} in {config.filename} to {'test' if testing else 'train'}"
            f" with, got no {' and no '.join(missing)}"
        )
    if testing:
        # A URL, which MMEngine loads too, is no path.
        args.checkpoint = config.load_from = args.checkpoint or str(find_weights(config))
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs", Path(config.filename).stem))
    return config


def check_settings(config: Config, splits: Sequence[str]) -> None:
    """Check what can be known of a run before anything is built.

    Args:
        config: Full config of a runner.
        splits: The loops that will run, of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        InputError: There is no file ``load_from``; a dataset would read a pickle, which can run
            code; or a component has no registered type, or settings that its class lacks.
    """
    checkpoint = config.get("load_from") or ""
    if checkpoint and "://" not in checkpoint and not Path(checkpoint).expanduser().exists():
        raise InputError(f"no such checkpoint: {checkpoint}")
    for key in (f"{split}_dataloader" for split in splits):
        for place, value in entries(config.get(key), key):
            if isinstance(value, str) and value.endswith((".pkl", ".pickle")):
                raise InputError(
                    f"expected no pickle in {place}, because reading one runs the code in it, got "
                    f"{value}; convert it to JSON"
                )
    Findings(list(component_faults(config, splits))).refuse()


def build_runner(
    config: Config, splits: Sequence[str] = ("train", "val"), *, allow_partial: bool = False
) -> Runner:
    """Build MMEngine's runner, or the class that ``runner_type`` names, from a config.

    It loads checkpoints with ``weights_only=True``, and refuses those that do not fit. In its JSON
    logs, null stands for NaN. On a machine without GPUs, the processes of torchrun communicate by
    gloo. With ``compile`` in the config, parameter groups become plain dicts, which Dynamo can
    trace. Pipelines and evaluators are completed; see :mod:`~hcformer_mm.engine.completion`. Mixed
    precision is logged; on a CPU it is bfloat16.

    Args:
        config: Full config of a runner, changed in place.
        splits: The loops that will run, of ``'train'``, ``'val'`` and ``'test'``.
        allow_partial: Whether a test goes on with a checkpoint that does not fit; see
            :class:`~.hooks.checkpoint_check_hook.CheckpointCheckHook`.

    Raises:
        InputError: As in :func:`check_settings`; or config and data do not fit each other; see
            :class:`~.hooks.data_check_hook.DataCheckHook`.
    """
    force_weights_only()
    write_strict_logs()
    check_settings(config, splits)
    set_up_gloo(config)
    complete_pipelines(config)
    complete_evaluators(config)
    precision = complete_optim_wrapper(config)
    flexible = "runner_type" in config
    with naming(config):
        runner = RUNNERS.build(config) if flexible else Runner.from_cfg(config)
    if precision and "train" in splits:
        runner.logger.info(precision)
    runner.register_hook(CheckpointCheckHook(allow_partial=allow_partial))
    if config.get("compile") and not flexible:
        runner.register_hook(ParamGroupsHook())
    if not any(isinstance(hook, DataCheckHook) for hook in runner.hooks):
        runner.register_hook(DataCheckHook())
    check = next(hook for hook in runner.hooks if isinstance(hook, DataCheckHook))
    check.check(runner, splits, hand_over=True)
    if not flexible:
        with naming(config):
            _build_early(runner, splits)
    return runner


def _build_early(runner: Runner, splits: Sequence[str]) -> None:
    """Build what does not need the datasets, which MMEngine builds after reading them."""
    if "train" in splits:
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    for name in (f"_{split}_evaluator" for split in splits if split != "train"):
        if (evaluator := getattr(runner, name)) is not None:
            setattr(runner, name, runner.build_evaluator(evaluator))
