"""Checkpoint files: formats, refusal of code and damage, and writing whole files."""

import os
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint

from hcformer_mm.checkpoints.io import (
    force_weights_only,
    load_checkpoint,
    save_checkpoint,
    sha256,
    tensors_of,
    weights_entry,
)
from tests.helpers.full_disk import full_disk

STATE = dict(weight=torch.arange(6.0).view(2, 3), count=torch.tensor(3))


class Touch:
    """Makes a folder when it is unpickled, as a hostile checkpoint would."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Chain:
    """Goes from a method to the globals of its module, as ``getattr`` would allow."""

    def __init__(self, path):
        pass

    def __reduce__(self):
        return getattr, (HistoryBuffer.__init__, "__globals__")


class Constructor(Chain):
    """Calls ``getattr`` on the right class, but for something that is not a statistic."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


def test_loads_weights_and_logs(tmp_path):
    path = tmp_path / "checkpoint.pth"
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    content = dict(
        state_dict=dict(weight=torch.ones(2)),
        meta=dict(iter=3, dataset_meta=dict(classes=("disc",)), score=np.float64(0.5)),
        message_hub=dict(log_scalars=dict(loss=buffer)),
    )
    torch.save(content, path)
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["weight"], torch.ones(2))
    assert loaded["meta"]["dataset_meta"]["classes"] == ("disc",)
    assert loaded["message_hub"]["log_scalars"]["loss"].mean() == 1.5


@pytest.mark.parametrize("kind", ["float32", ">f4", "float64", "float16", "int64", "uint8", "bool"])
def test_loads_numpy_arrays(kind, tmp_path):
    path = tmp_path / "arrays.pth"
    values = np.arange(6).reshape(2, 3).astype(kind)
    torch.save(dict(model=dict(x=values, y=np.asfortranarray(values))), path)
    for tensor in tensors_of(load_checkpoint(path)["model"]).values():
        assert tensor.numpy().dtype == np.dtype(kind).newbyteorder("=")
        assert np.array_equal(tensor.numpy(), values)


@pytest.mark.parametrize("attack", [Touch, Chain, Constructor])
def test_refuses_code(attack, tmp_path):
    trace, path = tmp_path / "trace", tmp_path / "hostile.pth"
    torch.save(dict(model={}, extra=attack(trace)), path)
    with pytest.raises(ValueError, match=r"expected .*hostile\.pth to hold only weights"):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.fixture
def forced(monkeypatch):
    """Call ``force_weights_only``, and undo it after the test."""
    schemes = dict(mmengine_checkpoint.CheckpointLoader._schemes)
    monkeypatch.setattr(mmengine_checkpoint.CheckpointLoader, "_schemes", schemes)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setattr(mmengine_checkpoint, "get_torch_safe_globals", list, raising=False)
    before = torch.serialization.get_safe_globals()
    force_weights_only()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


@pytest.mark.parametrize("attack", [Touch, Constructor])
def test_mmengine_refuses_code(attack, forced, tmp_path):
    """MMEngine alone would fall back to running it, and lists ``getattr`` as safe."""
    trace, path = tmp_path / "trace", tmp_path / "hostile.pth"
    torch.save(dict(state_dict={}, extra=attack(trace)), path)
    with pytest.raises(ValueError, match="to hold only weights"):
        mmengine_checkpoint.load_checkpoint(torch.nn.Linear(1, 1), str(path))
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_mmengine_loads_all_layouts(suffix, forced, tmp_path):
    """Without ``force_weights_only`` it takes ``model`` for the name of a tensor, and goes on."""
    path, weight = tmp_path / f"x{suffix}", torch.rand(1, 1)
    save_checkpoint(path, dict(model=dict(weight=weight, bias=weight[0])), weights="model")
    model = torch.nn.Linear(1, 1)
    mmengine_checkpoint.load_checkpoint(model, str(path))
    assert torch.equal(model.weight, weight)
    with pytest.raises(ValueError, match=r"no such checkpoint: .*none\.pth"):
        mmengine_checkpoint.load_checkpoint(model, str(tmp_path / "none.pth"))


def test_loading_keeps_the_safe_globals(forced, tmp_path):
    before = torch.serialization.get_safe_globals()
    assert HistoryBuffer in before
    torch.save(dict(state_dict=STATE), tmp_path / "x.pth")
    load_checkpoint(tmp_path / "x.pth")
    assert len(torch.serialization.get_safe_globals()) == len(before)


@pytest.mark.parametrize(
    "content", [dict(model=dict(x=np.zeros(2))), dict(extra=Touch("/nowhere"))]
)
def test_plain_pickles_are_refused_with_a_way_to_convert_them(content, tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(content))
    match = r"model\.pkl to be written by torch\.save .*convert it where Detectron2 is installed"
    with pytest.raises(ValueError, match=match):
        load_checkpoint(path)


def test_refuses_damaged_files(tmp_path):
    path = tmp_path / "x.pth"
    for missing in (path, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such checkpoint"):
            load_checkpoint(missing)
    for content in (b"", b"some text", b"\x80\x04\x95junk", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"expected .*x\.pth to be"):
            load_checkpoint(path)
    torch.save(dict(model=STATE), path)
    whole = path.read_bytes()
    for kept in (100, len(whole) - 40):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="to be a complete file"):
            load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="to hold a dict, got list"):
        load_checkpoint(path)
    pytest.importorskip("safetensors")
    broken = tmp_path / "x.safetensors"
    broken.write_bytes(b"not a header")
    with pytest.raises(ValueError, match=r"to be a \.safetensors file"):
        load_checkpoint(broken)


def flips(path):
    """Write files that differ from this one in one bit, here and there, one after another."""
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        yield position
    path.write_bytes(whole)


def test_a_flipped_bit_is_noticed_or_harmless(tmp_path):
    """``torch.load`` compares no checksums, and returns other weights."""
    path = tmp_path / "x.pth"
    torch.save(dict(state_dict=STATE), path)
    refused = 0
    for _ in flips(path):
        try:
            state = load_checkpoint(path)["state_dict"]
        except ValueError as error:
            refused += 1
            assert re.match(r"expected .*x\.pth to ", str(error))
            assert "\n" not in str(error)
        else:
            assert state.keys() == STATE.keys()
            assert all(torch.equal(state[name], STATE[name]) for name in STATE)
    assert refused > 50


def test_a_flipped_weight_names_its_record(tmp_path):
    path, weight = tmp_path / "x.pth", torch.full((7,), 1.5)
    torch.save(dict(state_dict=dict(weight=weight)), path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(weight.numpy().tobytes(), weight.neg().numpy().tobytes()))
    assert path.read_bytes() != whole
    with pytest.raises(ValueError, match=r"the checksum of its record x/data/0 is wrong"):
        load_checkpoint(path)


def test_files_without_checksums_are_loaded(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(state_dict=STATE), tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_checkpoint(tmp_path / "x.pth")["state_dict"]["weight"], STATE["weight"])
    torch.save(dict(state_dict=STATE), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "old.pth")["state_dict"].keys() == STATE.keys()


@pytest.mark.parametrize(
    ("meta", "match"), [("{", "to be JSON"), ("[1]", "to be a dict, got list")]
)
def test_checks_metadata_of_safetensors(meta, match, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "x.safetensors"
    safetensors.save_file(dict(weight=torch.zeros(1)), path, {"meta": meta})
    with pytest.raises(ValueError, match=rf"'meta' of .*x\.safetensors {match}"):
        load_checkpoint(path)


def test_tensors_of_unwraps_models():
    assert tensors_of({"module.weight": torch.zeros(1)}).keys() == {"weight"}
    mixed = {"module.weight": torch.zeros(1), "bias": torch.zeros(1)}
    assert tensors_of(mixed).keys() == mixed.keys()


def test_weights_entry():
    assert weights_entry(dict(state_dict={"a": 1}, model={"b": 2})) == {"a": 1}
    assert weights_entry(dict(model={"b": 2}, x=1)) == {"b": 2}
    assert weights_entry(dict(model_state={"b": 2})) == {"b": 2}
    assert weights_entry(dict(c=3, model=4)) == dict(c=3, model=4)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_saves_and_loads(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    large = torch.arange(1000.0)
    state = {**STATE, "view": large[3:5], "transposed": STATE["weight"].T, "twin": STATE["weight"]}
    save_checkpoint(path, dict(state_dict=state, meta=dict(a=[1, 2], b=None)))
    loaded = load_checkpoint(path)
    assert loaded["meta"] == dict(a=[1, 2], b=None)
    assert loaded["state_dict"].keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(loaded["state_dict"][name], value)
    # The view is saved without the other 998 numbers of its base.
    assert loaded["state_dict"]["view"].untyped_storage().nbytes() == 8
    # Others may read it if they may read any new file.
    (tmp_path / "new").touch()
    assert path.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_the_same_content_gives_the_same_file(tmp_path):
    digests = set()
    for name in ("one.pth", "another.pth"):
        save_checkpoint(tmp_path / name, dict(state_dict=STATE))
        digests.add(sha256(tmp_path / name))
    assert len(digests) == 1


def test_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.pth"
    save_checkpoint(path, dict(state_dict=STATE))
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(path, dict(state_dict=STATE, meta=lambda: None))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.pth"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_leaves_the_old_file(suffix, size, tmp_path):
    path = tmp_path / f"x{suffix}"
    save_checkpoint(path, dict(state_dict=STATE))
    before = path.read_bytes()
    full_disk(path)
    with pytest.raises(OSError, match=rf"No space left on device.*x\{suffix}"):
        save_checkpoint(path, dict(state_dict=dict(weight=torch.rand(size))))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_refuses_folders_and_missing_folders(tmp_path):
    for path in (tmp_path, tmp_path / "no" / "x.pth"):
        with pytest.raises(ValueError, match="expected a file in an existing folder"):
            save_checkpoint(path, dict(state_dict=STATE))


def test_safetensors_are_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match="pip install safetensors"):
        save_checkpoint(tmp_path / "x.safetensors", dict(state_dict=STATE))
    assert not list(tmp_path.iterdir())
