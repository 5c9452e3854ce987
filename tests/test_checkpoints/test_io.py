"""Files of weights: formats, what is refused, and that a file is whole or not there."""

import _codecs
import os
import pickle
import sys

import numpy as np
import pytest
import torch

from hcformer_mm.checkpoints.io import (
    read_weights_file,
    sha256,
    tensors_of,
    weights_entry,
    write_weights_file,
)

STATE = dict(weight=torch.arange(6.0).view(2, 3), count=torch.tensor(3))


class Touch:
    """Something that, read as a pickle, leaves a folder: what a hostile file would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class OtherEncoding:
    """The encoding of an array's bytes, asked for something else."""

    def __reduce__(self):
        return _codecs.encode, ("text", "rot13")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int64", "uint8", "bool"])
def test_reads_pickles_of_arrays(kind, protocol, tmp_path):
    values = np.arange(6).reshape(2, 3).astype(kind)
    path = tmp_path / "arrays.pkl"
    content = dict(model=dict(x=values, y=np.asfortranarray(values)), score=np.float64(0.5))
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_weights_file(path)
    tensors = tensors_of(read["model"])
    assert tensors["x"].numpy().dtype == kind
    for tensor in tensors.values():
        assert np.array_equal(tensor.numpy(), values)
    assert read["score"] == 0.5


@pytest.mark.parametrize("kind", ["float32", "float16", "int64", "uint8"])
def test_reads_arrays_in_a_torch_file(kind, tmp_path):
    path = tmp_path / "arrays.pth"
    torch.save(dict(model=dict(x=np.arange(3).astype(kind))), path)
    assert tensors_of(read_weights_file(path)["model"])["x"].tolist() == [0, 1, 2]


def dump(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("attack", "write"), [(Touch, torch.save), (Touch, dump), (OtherEncoding, dump)]
)
def test_refuses_code(attack, write, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "hostile.pkl"
    write(dict(model={}, extra=Touch(trace) if attack is Touch else attack()), path)
    with pytest.raises(ValueError, match=r"expected .*hostile\.pkl"):
        read_weights_file(path)
    assert not trace.exists()


def test_numbers_that_no_tensor_holds(tmp_path):
    with pytest.raises(ValueError, match="expected x to be of numbers that a tensor can hold"):
        tensors_of(dict(x=np.zeros(2, dtype=np.longdouble)))
    path = tmp_path / "long.pkl"
    path.write_bytes(pickle.dumps(dict(x=np.zeros(2, dtype=np.longdouble))))
    with pytest.raises(ValueError, match=r"long\.pkl .*numbers of at most 8 bytes, got .*f\d+"):
        read_weights_file(path)


def test_names_of_a_wrapped_model_are_refused():
    with pytest.raises(ValueError, match=r"prefix 'module\.' of DistributedDataParallel"):
        tensors_of({"module.weight": torch.zeros(1)})
    assert tensors_of({"module.weight": torch.zeros(1), "bias": torch.zeros(1)})


@pytest.mark.parametrize(
    ("meta", "match"), [("{", "to be JSON"), ("[1]", "to be a dict, got list")]
)
def test_metadata_of_strangers(meta, match, tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    torch_files.save_file(dict(weight=torch.zeros(1)), path, {"meta": meta})
    with pytest.raises(ValueError, match=rf"'meta' of .*x\.safetensors {match}"):
        read_weights_file(path)


def test_tensors_in_a_plain_pickle_are_refused(tmp_path):
    """To read them, pickle would call torch.load without weights_only."""
    path = tmp_path / "tensors.pkl"
    path.write_bytes(pickle.dumps(dict(model=STATE)))
    with pytest.raises(ValueError, match=r"is no part of an array"):
        read_weights_file(path)


def test_refuses_damaged_files(tmp_path):
    path = tmp_path / "x.pth"
    with pytest.raises(ValueError, match=r"expected a file with weights, but .*x\.pth is none"):
        read_weights_file(path)
    for content in (b"", b"some text", b"\x80\x04\x95junk", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"expected .*x\.pth to be"):
            read_weights_file(path)
    torch.save(dict(model=STATE), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="to be a whole file"):
        read_weights_file(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="to hold a dict, got list"):
        read_weights_file(path)
    broken = tmp_path / "x.safetensors"
    broken.write_bytes(b"not a header")
    with pytest.raises(ValueError, match=r"to be a \.safetensors file"):
        read_weights_file(broken)


def test_weights_entry():
    assert weights_entry(dict(state_dict={"a": 1}, model={"b": 2})) == {"a": 1}
    assert weights_entry(dict(model={"b": 2}, x=1)) == {"b": 2}
    assert weights_entry(dict(c=3, model=4)) == dict(c=3, model=4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_writes_and_reads(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    large = torch.arange(1000.0)
    state = {**STATE, "view": large[3:5], "transposed": STATE["weight"].T, "twin": STATE["weight"]}
    write_weights_file(path, dict(state_dict=state, meta=dict(a=[1, 2], b=None)))
    read = read_weights_file(path)
    assert read["meta"] == dict(a=[1, 2], b=None)
    assert read["state_dict"].keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(read["state_dict"][name], value)
    # Not the thousand numbers that the view looks at.
    assert read["state_dict"]["view"].untyped_storage().nbytes() == 8


def test_the_same_content_gives_the_same_file(tmp_path):
    digests = set()
    for name in ("one.pth", "another.pth"):
        write_weights_file(tmp_path / name, dict(state_dict=STATE))
        digests.add(sha256(tmp_path / name))
    assert len(digests) == 1


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.pth"
    write_weights_file(path, dict(state_dict=STATE))
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_weights_file(path, dict(state_dict=STATE, meta=lambda: None))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.pth"]


def test_refuses_to_write_into_nowhere(tmp_path):
    for path in (tmp_path, tmp_path / "no" / "x.pth"):
        with pytest.raises(ValueError, match="expected a file in an existing folder"):
            write_weights_file(path, dict(state_dict=STATE))


def test_safetensors_are_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        write_weights_file(tmp_path / "x.safetensors", dict(state_dict=STATE))
    assert not list(tmp_path.iterdir())
