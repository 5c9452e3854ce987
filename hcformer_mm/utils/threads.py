"""How long OpenMP's threads spin; imported before torch."""

import os

# For libgomp, in turns of a loop: 300,000 by default. For LLVM's and Intel's runtimes, in
# milliseconds: 200 by default.
SPINNING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}


def spin_briefly() -> None:
    """Let OpenMP's threads spin for a short while only before they sleep.

    A thread that waits for work spins, which is fast while each thread has a core. Beside another
    busy process, threads spin on cores on which those that they wait for could run. OpenMP reads
    these variables when torch loads it, so this has no effect after torch was imported. It changes
    neither variables that are set nor anything where ``OMP_WAIT_POLICY`` is set.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in SPINNING.items():
            os.environ.setdefault(name, value)
