"""Pickles of arrays: those of any Python and numpy are read, hostile ones are refused."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hcformer_mm.checkpoints.io import read_weights_file, tensors_of

ROOT = Path(__file__).parents[2]

# Opcodes of pickle, by hand: what no class of Python would write.
DTYPE = b"cnumpy\ndtype\n(V{code}\nI00\nI01\ntR"
RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n"
SCALAR = b"cnumpy._core.multiarray\nscalar\n"


def dtype(code="f8", order="<", names=b"N", flags=0):
    state = b"(I3\nV%s\nN%sNI-1\nI-1\nI%d\ntb" % (order.encode(), names, flags)
    return DTYPE.replace(b"{code}", code.encode()) + state


def array(of, data=b"V" + b"A" * 8, shape=b"(I1\nt"):
    """An array whose bytes are text, as of protocol 0."""
    made = RECONSTRUCT + b"(cnumpy\nndarray\n(I0\ntVb\ntR"
    return made + b"(I1\n" + shape + of + b"I00\n" + data + b"\ntb"


HOSTILE = {
    "pointers in a scalar": SCALAR + b"(" + dtype("O8", "|") + b"V" + b"A" * 8 + b"\ntR",
    "pointers in an array": array(dtype("O8", "|")),
    "flags": array(dtype(flags=63)),
    "fields": array(dtype(names=b"(Va\nt")),
    "a size": array(dtype("f16"), b"V" + b"A" * 16),
    "text": array(dtype("U2")),
    "dates": array(dtype("M8")),
    "byte order": array(dtype(order="x")),
    "too few bytes": array(dtype(), shape=b"(I2\nt"),
    "a negative shape": array(dtype(), shape=b"(I-1\nI-1\nt"),
    "an array without state": RECONSTRUCT + b"(cnumpy\nndarray\n(I0\ntVb\ntR",
    "a class": b"cnumpy\nndarray\n",
    "state of a function": RECONSTRUCT + b"(N(dVhacked\nI1\nstb",
    "state of another function": b"c_codecs\nencode\n(N(dVhacked\nI1\nstb",
    "state of a class": b"cnumpy\nndarray\n(N(dVhacked\nI1\nstb",
    "state of a dtype's class": b"cnumpy\ndtype\n(N(dVhacked\nI1\nstb",
}


REASONS = {
    "pointers in a scalar": "at most 8 bytes, got the dtype",
    "pointers in an array": "at most 8 bytes, got the dtype",
    "flags": "expected a plain dtype",
    "fields": "expected a plain dtype",
    "a size": "at most 8 bytes, got the dtype",
    "text": "at most 8 bytes, got the dtype",
    "dates": "at most 8 bytes, got the dtype",
    "byte order": "expected a plain dtype",
    "too few bytes": "to have 16 bytes, got 8",
    "a negative shape": "expected the shape of an array",
    "an array without state": "got what only makes one",
    "a class": "got what only makes one",
    "state of a function": "__setstate__() missing",
    "state of another function": "__setstate__() missing",
    "state of a class": "__setstate__() missing",
    "state of a dtype's class": "__setstate__() missing",
}


def test_refuses_what_would_crash_numpy(tmp_path):
    """In a process of its own: numpy itself reads some of these, and the process ends."""
    paths = [tmp_path / f"{attack}.pkl" for attack in HOSTILE]
    for path, made in zip(paths, HOSTILE.values(), strict=True):
        path.write_bytes(b"(dVmodel\n(dVx\n" + made + b"ss.")
    code = (
        "import sys\n"
        "from hcformer_mm.checkpoints.io import read_weights_file\n"
        "for path in sys.argv[1:]:\n"
        "    try: print('read', read_weights_file(path), flush=True)\n"
        "    except ValueError as error: print(error, flush=True)\n"
    )
    command = [sys.executable, "-c", code, *paths]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    for path, reason, line in zip(paths, REASONS.values(), lines, strict=True):
        assert line.startswith(f"expected {path} to be written by torch.save, or to be a pickle")
        assert reason in line


@pytest.mark.parametrize("core", ["core", "_core"])
def test_reads_pickles_of_python_2_and_either_numpy(core, tmp_path):
    """Whose bytes are text, in any byte order and order of the dims."""
    values = np.arange(-3.0, 3.0).reshape(2, 3) / 7
    for order in "<>":
        data = values.astype(f"{order}f8").tobytes()
        # SHORT_BINSTRING: a str of Python 2.
        text = b"U" + bytes([len(data)]) + data
        made = array(dtype(order=order), b"", b"(I2\nI3\nt")
        made = made.replace(b"I00\n\ntb", b"I00\n" + text + b"tb")
        made = made.replace(b"_core", core.encode())
        path = tmp_path / "old.pkl"
        path.write_bytes(b"(dVx\n" + made + b"s.")
        read = read_weights_file(path)["x"]
        assert read.dtype == np.float64
        assert np.array_equal(read, values)
        assert np.array_equal(tensors_of(dict(x=read))["x"].numpy(), values)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_arrays_wherever_they_are(protocol, tmp_path):
    empty, one = np.zeros((0, 3)), np.array(2.5, dtype=np.float32)
    content = dict(a=[one, (one, empty)], b=one, c=np.dtype("int8"), d=np.int64(3), e=None)
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_weights_file(path)
    assert read["a"][0] is read["a"][1][0] is read["b"]
    assert isinstance(read["b"], np.ndarray)
    assert read["b"].item() == 2.5
    assert read["a"][1][1].shape == (0, 3)
    assert (read["c"], read["d"], read["e"]) == (np.dtype("int8"), 3, None)
