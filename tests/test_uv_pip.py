"""Installing by uv: pip's settings are handed over, and pip stands by."""

import os
import subprocess

import pytest
import uv_pip

LISTED = """\
global.index-url='https://example.org/simple'
global.find-links='/opt/wheels\\n/srv/wheels'
install.index-url='https://example.org/of-install'
download.index-url='https://example.org/of-download'
:env:.disable-pip-version-check='1'
:env:.extra-index-url='file:///a file:///b'
"""


def test_settings_of_the_command_and_the_environment_come_first():
    assert uv_pip.settings_of_pip(LISTED) == {
        "index-url": "https://example.org/of-install",
        "find-links": "/opt/wheels\n/srv/wheels",
        "disable-pip-version-check": "1",
        "extra-index-url": "file:///a file:///b",
    }


def test_uv_gets_the_settings_of_pip():
    assert uv_pip.variables_of_uv(uv_pip.settings_of_pip(LISTED)) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://example.org/of-install",
        "UV_FIND_LINKS": "/opt/wheels,/srv/wheels",
        "UV_INDEX": "file:///a file:///b",
    }


class Installers:
    """Records calls of pip and uv, with the exit code of uv."""

    def __init__(self, monkeypatch, code):
        self.called, self.code, self.run = [], code, subprocess.run
        monkeypatch.setattr(uv_pip.subprocess, "run", self.fake)

    def fake(self, command, env=None, **options):
        if "config" in command:
            return self.run(command, **options)
        self.env = env or {}
        self.called.append(command[2:])
        code = self.code if command[2] == "uv" else 0
        return subprocess.CompletedProcess(command, code)


@pytest.mark.parametrize(
    ("code", "variables", "called"),
    [
        (0, {}, ["uv"]),
        (2, {}, ["uv", "pip"]),  # such as a package for which only pip finds the credentials
        (0, {"PIP_REQUIRE_HASHES": "1"}, ["pip"]),
    ],
    ids=["works", "fails", "lacks a setting"],
)
def test_pip_installs_where_uv_does_not(monkeypatch, code, variables, called):
    installers = Installers(monkeypatch, code)
    monkeypatch.setattr(uv_pip.importlib.util, "find_spec", lambda name: "uv")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert uv_pip.main(["-q", "numpy"]) == 0
    assert [command[0] for command in installers.called] == called
    assert all(command[-2:] == ["-q", "numpy"] for command in installers.called)


def test_environment_without_uv(monkeypatch):
    installers = Installers(monkeypatch, 0)
    monkeypatch.setattr(uv_pip.importlib.util, "find_spec", lambda name: None)
    uv_pip.main(["numpy"])
    assert [command[0] for command in installers.called] == ["pip"]


def test_variables_of_the_user_come_first(monkeypatch):
    installers = Installers(monkeypatch, 0)
    monkeypatch.setattr(uv_pip.importlib.util, "find_spec", lambda name: "uv")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org/pip")
    monkeypatch.setenv("PIP_TIMEOUT", "7")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "8")
    uv_pip.main(["numpy"])
    assert installers.env["UV_DEFAULT_INDEX"] == "https://example.org/pip"
    assert installers.env["UV_HTTP_TIMEOUT"] == "8"
    assert installers.env["PATH"] == os.environ["PATH"]
