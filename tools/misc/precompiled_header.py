"""Run a C++ compiler with a precompiled header, which it makes itself at its first use.

    python tools/misc/precompiled_header.py FOLDER '#include <header.h>' COMPILER... -- ARGUMENTS...

The header has to be one that every source file includes first: then it changes no object. It lies
in ``FOLDER``, under a hash of its flags, since a compiler uses a precompiled header only with
exactly equal flags. While one process makes it, others compile without it, and so do all if the
compiler refuses to make or to use it.

Used by the compiler command that ``mmcv_build.py`` writes; needs only the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WITH_VALUE = {"-o", "-MF", "-MT", "-MQ"}
OF_ONE_FILE = {"-c", "-MD", "-MMD", "-MP", "-M", "-MM"}
SOURCES = {".cc", ".cpp", ".cxx"}


def common_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments of a compilation without those that concern only its own files."""
    flags = []
    rest = iter(arguments)
    for argument in rest:
        if argument in WITH_VALUE:
            next(rest, None)
        elif argument not in OF_ONE_FILE and Path(argument).suffix not in SOURCES:
            flags.append(argument)
    return flags


def precompiled(
    folder: Path, text: str, compiler: Sequence[str], flags: Sequence[str]
) -> Path | None:
    """The header to include, beside its precompiled form, which is made unless it is there.

    Returns:
        None if another process is making it or the compiler refused to.
    """
    name = hashlib.sha256("\0".join([text, *compiler, *flags]).encode()).hexdigest()[:16]
    header = folder / name / "first.h"
    made, refused = header.with_name("first.h.gch"), header.with_name("refused")
    if made.exists():
        return header
    header.parent.mkdir(parents=True, exist_ok=True)
    with header.with_name("lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        if not made.exists() and not refused.exists():
            header.write_text(f"{text}\n")
            partial = made.with_suffix(".partial")
            command = [*compiler, *flags, "-x", "c++-header", str(header), "-o", str(partial)]
            if subprocess.run(command, capture_output=True).returncode == 0:
                partial.replace(made)
            else:
                refused.touch()
    return header if made.exists() else None


def main(folder: str, text: str, *rest: str) -> int:
    """Run the compiler; its exit code."""
    split = rest.index("--")
    compiler, arguments = rest[:split], rest[split + 1 :]
    sources = [name for name in arguments if Path(name).suffix in SOURCES]
    if "-c" in arguments and len(sources) == 1:
        header = None
        with contextlib.suppress(OSError):  # such as a full disk
            header = precompiled(Path(folder), text, compiler, common_flags(arguments))
        if header is not None:
            command = [*compiler, *arguments, "-include", str(header)]
            done = subprocess.run(command, capture_output=True)
            if done.returncode == 0:
                sys.stdout.buffer.write(done.stdout)
                sys.stderr.buffer.write(done.stderr)
                return 0
    # Without the header, the compiler says by itself what is wrong.
    os.execv(compiler[0], [*compiler, *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
