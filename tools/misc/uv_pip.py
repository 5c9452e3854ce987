"""Run ``pip install`` by uv, which takes a fraction of the time, for the running Python.

    python tools/misc/uv_pip.py -r requirements/torch.txt

uv reads no settings of pip, so this script hands them over. pip itself installs where it has a
setting that uv lacks, and where uv is missing or fails. Needs only the standard library.

Environment variables:
    UV_...           settings of uv; they take precedence over pip's
    UV_NO_CACHE=1    keep no cache of unpacked packages (5 GB, whose files environments share)
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping

# pip's settings: uv's variable, and what separates several values.
VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "no-cache-dir": ("UV_NO_CACHE", " "),
}
# They change neither what pip installs nor where it finds it.
IRRELEVANT = {
    "break-system-packages",
    "cache-dir",
    "config-file",
    "disable-pip-version-check",
    "no-color",
    "no-compile",
    "no-input",
    "no-python-version-warning",
    "prefer-binary",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "retries",
    "root-user-action",
    "verbose",
}


def settings_of_pip(listed: str) -> dict[str, str]:
    """pip's settings for ``pip install``, from the output of ``pip config list``."""
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for section, name, value in re.findall(r"^([^.\n]+)\.([^=\n]+)=(.*)$", listed, re.MULTILINE):
        if section in found:
            found[section][name] = ast.literal_eval(value)
    return found["global"] | found["install"] | found[":env:"]


def variables_of_uv(settings: Mapping[str, str]) -> dict[str, str] | None:
    """The variables by which uv has pip's settings; None if it has no variable for one of them."""
    # pip takes the best version of all indexes, uv by default that of the first one.
    variables = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for name, value in settings.items():
        if name in VARIABLES:
            variable, separator = VARIABLES[name]
            variables[variable] = separator.join(value.split())
        elif name not in IRRELEVANT:
            return None
    return variables


def main(arguments: list[str]) -> int:
    """Install packages; the exit code of uv, or else of pip."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if importlib.util.find_spec("uv") is not None:
        listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout
        variables = variables_of_uv(settings_of_pip(listed))
        if variables is not None:
            uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
            if subprocess.run([*uv, *arguments], env={**variables, **os.environ}).returncode == 0:
                return 0
            print("uv could not install these packages; pip follows.", flush=True)
    return subprocess.run([*pip, "install", *arguments]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
