"""The command line and the report that all tools that check annotations share."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from ...utils.arguments import number
from .faults import SEVERITIES, Fault


def file(text: str) -> Path:
    """Read the path of a file from the command line."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"expected a file, got {text}")
    return Path(text)


def folder(text: str) -> Path:
    """Read the path of a folder from the command line."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, got {text}")
    return Path(text)


def run_check(
    parser: argparse.ArgumentParser, check: Callable[[argparse.Namespace], list[Fault]]
) -> None:
    """Read the command line, check, and print the faults by kind.

    Ends the process with code 1 if there are errors or warnings, or if nothing could be checked.

    Args:
        parser: Parser of the tool's own arguments; gets those of all tools.
        check: Finds the faults, given the arguments of the command line.
    """
    parser.add_argument(
        "--num-workers", type=number(int, 1), default=2, help="processes that read files"
    )
    parser.add_argument(
        "--limit", type=number(int, 0), default=10, help="findings to show per kind; 0 shows all"
    )
    args = parser.parse_args()
    name = Path(parser.prog).stem
    try:
        faults = check(args)
    except (ValueError, OSError) as error:
        sys.exit(f"{name}: {error}")
    kinds: dict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        kinds[fault.severity, fault.kind].append(fault)
    order = sorted(kinds, key=lambda key: (SEVERITIES.index(key[0]), key[1]))
    for some in (kinds[key] for key in order):
        shown = some[: args.limit or None]
        print(*shown, sep="\n")
        if len(shown) < len(some):
            print(f"... and {len(some) - len(shown)} more of this kind")
    for severity, kind in order:
        print(f"{len(kinds[severity, kind]):8d}  {severity}: {kind}")
    found = sum(fault.severity != "note" for fault in faults)
    if found:
        sys.exit(f"{name}: {found} findings")
    print(f"{name}: clean")
