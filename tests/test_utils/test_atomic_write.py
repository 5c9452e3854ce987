"""Files are whole or not there, whatever happens to the process or the disk."""

import os
import signal
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from benchmarks.measure import write_report
from hcformer_mm.apis.result_writer import write_image
from hcformer_mm.checkpoints.io import save_checkpoint
from hcformer_mm.checkpoints.publish import publish
from hcformer_mm.utils.atomic_write import replacing
from tests.helpers.full_disk import full_disk

REPORT = dict(command="x", conditions={}, baseline="x", results=[dict(name="x")])
WEIGHTS = dict(weight=torch.ones(100))


def write_text(path):
    with replacing(path) as unfinished:
        unfinished.write_text("new")


WRITERS = {
    "a.json": write_text,
    "a.pth": lambda path: save_checkpoint(path, dict(state_dict=WEIGHTS)),
    "a.safetensors": lambda path: save_checkpoint(path, dict(state_dict=WEIGHTS)),
    "a.png": lambda path: write_image(path, np.zeros((8, 8, 3), np.uint8)),
    "a.md": lambda path: write_report(path, REPORT),
}


def kill_before_the_end(write, path):
    """Let another process write a file, and kill it when all but the name is there."""
    child = os.fork()
    if child == 0:
        with patch.object(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL)):
            write(path)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_process_leaves_the_old_file(name, tmp_path):
    path = tmp_path / name
    path.write_text("old")
    kill_before_the_end(WRITERS[name], path)
    assert path.read_text() == "old"
    (left,) = (each for each in tmp_path.iterdir() if each != path)
    assert left.name.startswith(".") and left.suffix == ".tmp"  # no result for any pattern
    WRITERS[name](path)
    assert path.read_bytes() != b"old"


def test_a_killed_publication_leaves_no_file(tmp_path):
    source, out = tmp_path / "source.pth", tmp_path / "out"
    out.mkdir()
    save_checkpoint(source, dict(state_dict=WEIGHTS, meta={}))
    kill_before_the_end(lambda path: publish(source, path), out / "x.pth")
    assert all(each.name.startswith(".") for each in out.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_with_the_name_of_the_file(name, tmp_path):
    path = tmp_path / name
    path.write_text("old")
    full_disk(path)
    with pytest.raises(OSError, match="No space left on device") as told:
        WRITERS[name](path)
    assert str(path) in str(told.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_too_long(tmp_path):
    path = tmp_path / ("a" * 300)
    with pytest.raises(OSError, match="File name too long") as told:
        write_text(path)
    assert told.value.filename == str(path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match=str(tmp_path / "a")), replacing(tmp_path / "a" / "b.json"):
        pass
