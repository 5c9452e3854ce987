"""Command-line arguments, config and runner of ``tools/train.py`` and ``tools/test.py``."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints.io import force_weights_only
from .dist import set_up_gloo
from .hooks.param_groups_hook import ParamGroupsHook


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of every OpenMMLab tool that runs a config."""
    parser.add_argument("config", help="config file path")
    parser.add_argument(
        "--work-dir",
        help="folder for logs, metrics and checkpoints (default: work_dirs/<name of the config>)",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help='override settings of the config, as key=value; lists as key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="job launcher of distributed runs",
    )
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, default=0, help="set by torch's launcher"
    )


def load_config(args: Namespace) -> Config:
    """Read the config that the common arguments name, and apply their overrides.

    ``--work-dir`` overrides the config's ``work_dir``; without either, the folder is
    ``work_dirs/<name of the config>``.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    config = Config.fromfile(args.config)
    config.launcher = args.launcher
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs", Path(args.config).stem))
    return config


def build_runner(config: Config) -> Runner:
    """Build MMEngine's runner, or the class that ``runner_type`` names, from a config.

    It loads checkpoints with ``weights_only=True``. On a machine without GPUs, the processes of
    torchrun communicate by gloo. With ``compile`` in the config, parameter groups become plain
    dicts, which Dynamo can trace.
    """
    force_weights_only()
    set_up_gloo(config)
    if "runner_type" in config:
        return RUNNERS.build(config)
    runner = Runner.from_cfg(config)
    if config.get("compile"):
        runner.register_hook(ParamGroupsHook())
    return runner
