"""Pickles of numpy arrays, read without handing them anything of numpy's.

A pickle calls what it names, and sets the state of what it made: with numpy's own ``dtype``, a file
can make arrays that take its bytes for pointers. It is given recorders instead, which check what
they are told; arrays are made from that afterwards.
"""

import math
import pickle
import re
from typing import Any, BinaryIO

import numpy as np


class _Refusing:
    """Base of what a file may name. It sets no state, so that no file can change a class."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"{type(self).__name__.strip('_')} has no state to set")


class _Bytes(_Refusing):
    """``bytes()`` and ``_codecs.encode``: how old pickles write the bytes of an array."""

    __slots__ = ()

    def __new__(cls, text: Any = "", encoding: Any = "latin1") -> Any:
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"encoding {encoding!r} is no part of an array")
        return _bytes_of(text)


class _DType(_Refusing):
    """``numpy.dtype`` of numbers of at most 8 bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(code, str) or not re.fullmatch("b1|f[248]|[iu][1248]", code):
            raise pickle.UnpicklingError(
                f"expected arrays of numbers of at most 8 bytes, got the dtype {code!r}"
            )
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        # Version, byte order, subarray, names, fields, size, alignment, flags.
        plain = isinstance(state, tuple) and len(state) == 8 and state[1] in ("<", ">", "|", "=")
        if not plain or state != (3, state[1], None, None, None, -1, -1, 0):
            raise pickle.UnpicklingError(f"expected a plain dtype {self.code!r}, got {state!r}")
        self.order = state[1]

    @property
    def value(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array(_Refusing):
    """``numpy.ndarray``, and an array before it is one."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]  # like an array: no key, and in no set

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("expected version, shape, dtype, order and bytes")
        _, shape, dtype, is_fortran, data = state
        self.value = _make(data, dtype, shape, "F" if is_fortran else "C")


class _Reconstruct(_Refusing):
    """``_reconstruct``: an array whose state follows."""

    __slots__ = ()

    def __new__(cls, kind: Any, shape: Any, code: Any) -> Any:
        if kind is not _Array:
            raise pickle.UnpicklingError(f"expected a numpy.ndarray, got {kind!r}")
        return _Array()


class _FromBuffer(_Refusing):
    """``_frombuffer``: an array in protocol 5."""

    __slots__ = ()

    def __new__(cls, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
        array = _Array()
        array.value = _make(data, dtype, shape, order)
        return array


class _Scalar(_Refusing):
    """``scalar``: a number of numpy's, read as one of Python's."""

    __slots__ = ()

    def __new__(cls, dtype: Any, data: Any) -> Any:
        return _make(data, dtype, (), "C").item()


def _bytes_of(data: Any) -> bytes:
    """Bytes, which Python 2 wrote as text."""
    if isinstance(data, str):
        return data.encode("latin1")
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    raise pickle.UnpicklingError(f"expected the bytes of an array, got {type(data).__name__}")


def _make(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array in the machine's byte order, from what a file says of it."""
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError(f"expected a dtype, got {type(dtype).__name__}")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise pickle.UnpicklingError(f"expected the shape of an array, got {shape!r}")
    if order not in ("C", "F"):
        raise pickle.UnpicklingError(f"expected the order 'C' or 'F', got {order!r}")
    data, kind = _bytes_of(data), dtype.value
    if len(data) != math.prod(shape) * kind.itemsize:
        raise pickle.UnpicklingError(
            f"expected {shape} numbers of {kind} to have {math.prod(shape) * kind.itemsize} bytes, "
            f"got {len(data)}"
        )
    array = np.frombuffer(data, kind) if data else np.empty(0, kind)
    return array.reshape(shape, order=order).astype(kind.newbyteorder("="), copy=False)


_ALLOWED: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): dict,
    ("_codecs", "encode"): _Bytes,
    ("builtins", "bytes"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    # numpy 2 moved its functions; a file of the other numpy names them where they were.
    **{
        (f"numpy.{core}.{part}", name): recorder
        for core in ("core", "_core")
        for part in ("multiarray", "numeric")
        for name, recorder in (
            ("_reconstruct", _Reconstruct),
            ("scalar", _Scalar),
            ("_frombuffer", _FromBuffer),
        )
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads plain values, and recorders of arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return _ALLOWED[module, name]


def load_array_pickle(file: BinaryIO) -> Any:
    """Read a pickle of plain values and numpy arrays, as Detectron2's ``.pkl`` files are.

    Args:
        file: The pickle, of any protocol, by Python 2 or 3 and numpy 1 or 2.

    Returns:
        What it holds: arrays of numbers in the machine's byte order, numpy's scalars as numbers of
        Python.

    Raises:
        Exception: Of any kind, if the file is damaged or holds anything else.
    """
    return _resolve(_ArrayUnpickler(file, encoding="latin1").load(), {})


def _resolve(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """What was recorded, as arrays: in place, and once where it occurs many times."""
    if id(value) in done:
        return done[id(value)][1]
    result = value
    # The value is kept beside its result: while it lives, no other has its id.
    done[id(value)] = value, result
    if isinstance(value, dict):
        for key in value:
            value[key] = _resolve(value[key], done)
    elif isinstance(value, list):
        value[:] = [_resolve(item, done) for item in value]
    elif isinstance(value, tuple):
        result = tuple(_resolve(item, done) for item in value)
    elif isinstance(value, _Array | _DType):
        result = value.value
    if isinstance(result, type) or (isinstance(value, _Array) and result is None):
        raise pickle.UnpicklingError("expected arrays, got what only makes one")
    done[id(value)] = value, result
    return result
