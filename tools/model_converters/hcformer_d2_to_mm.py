"""Convert a checkpoint of the released Detectron2 implementation for this package, or back."""

import argparse
import shlex
import sys
from pathlib import Path

from hcformer_mm.checkpoints.hcformer_d2 import Report, convert_file, revert_file
from hcformer_mm.utils.arguments import add_cfg_options


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path, help="checkpoint to convert, .pth or .safetensors")
    parser.add_argument(
        "dst", type=Path, help="file to write: .safetensors, or any other suffix for torch.save"
    )
    parser.add_argument(
        "--config",
        help="config that the architecture must match: a file or a name in configs/hcformer "
        "(default: the config that fits)",
    )
    add_cfg_options(parser)
    parser.add_argument(
        "--reverse",
        action="store_true",
        help="convert a checkpoint of this package for the released implementation",
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    run = revert_file if args.reverse else convert_file
    try:
        report = run(args.src, args.dst, args.config, args.cfg_options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"hcformer_d2_to_mm: {error}")
    show(report, args.dst, args.reverse)


def show(report: Report, dst: Path, reverse: bool) -> None:
    dropped, filled = report.conversion.dropped, report.conversion.filled
    config = f"configs/{report.config.parent.name}/{report.config.name}"
    config = config if Path(config).is_file() else str(report.config)
    options = [f"{key}={value}" for key, value in report.cfg_options.items()]
    overrides = f" --cfg-options {shlex.join(options)}" if options else ""
    print(f"model      {report.architecture}")
    print(f"config     {config}{overrides}")
    print(
        f"tensors    {report.source} in the source: {report.source - len(dropped)} converted, "
        f"{len(dropped)} dropped"
    )
    if not reverse:
        tensors = len(report.conversion.state_dict)
        print(
            f"           {tensors} in the model: {tensors - len(filled)} from the source, "
            f"{len(filled)} filled"
        )
    for name, tensors in (("dropped", dropped), ("filled", filled)):
        for reason, names in by_reason(tensors).items():
            some = names[0] if len(names) == 1 else f"{len(names)} tensors such as {names[0]}"
            print(f"{name:<10} {some}: {reason}")
    if report.left_out:
        print(f"left out   {', '.join(report.left_out)}: no weights")
    print(f"written    {dst}")
    if not reverse:
        print(f"evaluate   python tools/test.py {config} {shlex.quote(str(dst))}{overrides}")


def by_reason(tensors: dict[str, str]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for name, reason in tensors.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


if __name__ == "__main__":
    main()
