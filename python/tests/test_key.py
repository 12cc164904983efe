"""The contract of a key, line by line, through NumPy; frontends/ has the other frameworks."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tensorkey as tk
from tensorkey import errors

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def test_key_is_a_value():
    key = tk.key(X)
    assert bytes(key) == key.bytes
    assert len(key.bytes) == 32
    assert tk.Key.from_hex(key.hex()) == key == tk.Key(key.bytes)
    assert hash(tk.Key(key.bytes)) == hash(key)
    assert pickle.loads(pickle.dumps(key)) == key
    other = tk.key(X + 1)
    assert sorted([key, other], key=bytes) == sorted([key, other])
    assert key != other
    assert (key == key.hex()) is False
    assert {key: 1}[tk.key(X.copy())] == 1
    assert repr(key) == f"Key('{key.hex()}')"
    for bad in (b"", b"x" * 31):
        with pytest.raises(errors.InvalidArgument, match="32"):
            tk.Key(bad)
    with pytest.raises(errors.InvalidArgument, match="64"):
        tk.Key.from_hex("zz")


def test_the_same_in_another_process():
    code = "import numpy, tensorkey; print(tensorkey.key(numpy.arange(24, dtype='f4')).hex())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == tk.key(X.reshape(-1)).hex()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.float32(0.0), np.float32(-0.0)),
        (np.zeros(2, np.int32), np.zeros(2, np.float32)),
        (np.zeros(2, np.float16), np.zeros(2, ml_dtypes.bfloat16)),
        (np.zeros(2, np.int8), np.zeros(2, bool)),
        (np.zeros(2, np.float64), np.zeros(1, np.complex128)),
        (np.zeros(()), np.zeros((1,))),
        (np.zeros((0, 3)), np.zeros((3, 0))),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(1, "datetime64[ns]"), np.zeros(1, "datetime64[us]")),
        (np.zeros(1, "datetime64[s]"), np.zeros(1, "datetime64[25s]")),
        (np.zeros(1, "datetime64[ns]"), np.zeros(1, "timedelta64[ns]")),
        (np.zeros(1, "datetime64[ns]"), np.zeros(1, np.int64)),
        (np.zeros(2, ml_dtypes.float8_e4m3fn), np.zeros(2, ml_dtypes.float8_e5m2)),
        (np.zeros(2, ml_dtypes.int4), np.zeros(2, np.int8)),
    ],
    ids=str,
)
def test_different(a, b):
    assert tk.key(a) != tk.key(b)
    if a.shape == b.shape:
        assert tk.structure_key(a) != tk.structure_key(b) or a.dtype == b.dtype


@pytest.mark.parametrize(
    "view",
    [
        X.transpose(2, 0, 1),
        X[::-1, :, ::2],
        X[1:, 1:2],
        np.broadcast_to(X[0], (5, 3, 4)),
        np.asfortranarray(X),
        X.astype(">f4"),
        X.astype(">c16"),
        np.arange(5).astype(">i8")[::-1],
        np.array([(1, 2.0), (3, 4.0)], [("a", "i1"), ("b", "f4")])["b"],
        np.lib.stride_tricks.sliding_window_view(np.arange(50, dtype=np.int16), 7),
    ],
)
def test_views_equal_their_native_copies(view):
    copy = np.ascontiguousarray(view).astype(view.dtype.newbyteorder("="))
    assert tk.key(view) == tk.key(copy)
    assert list(tk.row_keys(view)) == [tk.key(row) for row in copy]


def test_any_non_zero_byte_is_true():
    odd = np.array([0, 1, 7, 255], np.uint8).view(bool)
    assert tk.key(odd) == tk.key(np.array([False, True, True, True]))


def test_nan_and_zero():
    nans = np.array([0x7FC00000, 0xFFC00001, 0x7F800001], np.uint32).view(np.float32)
    assert tk.key(nans) == tk.key(nans.copy())
    assert len({tk.key(n) for n in nans}) == 3
    assert len({tk.key(n, canonical=True) for n in nans}) == 1
    assert tk.key(np.float64(-0.0), canonical=True) == tk.key(np.float64(0.0), canonical=True)
    z = np.array([complex(-0.0, 0.0), complex(0.0, -0.0)])
    assert len({tk.key(v, canonical=True) for v in z}) == 1
    assert tk.key(X, canonical=True) != tk.key(X), "canonical is a bit of the header"


def test_a_key_is_a_snapshot():
    x = X.copy()
    key = tk.key(x)
    x += 1
    assert key == tk.key(X)


def test_a_broadcast_of_4_gib_takes_no_memory_to_speak_of():
    code = """
import resource, sys
import numpy as np, tensorkey as tk
one = np.broadcast_to(np.float32(1), (1 << 20, 4))
tk.key(one)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tk.key(np.broadcast_to(np.float32(1), (1 << 20, 1 << 10)))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
sys.exit(f"{grown} KiB more" if grown > 1024 else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_row_keys_are_a_sequence_and_a_buffer():
    keys = tk.row_keys(X)
    assert isinstance(keys, Sequence)
    assert len(keys) == 2
    assert keys[-1] == keys[1] == tk.key(X[1])
    assert list(keys) == [tk.key(row) for row in X]
    with pytest.raises(IndexError):
        keys[2]
    assert list(keys[::-1]) == list(keys)[::-1]
    assert len(keys[2:]) == 0
    assert keys.index(keys[1]) == 1
    assert keys.count(keys[0]) == 1
    assert keys[0] in keys
    assert tk.key(X) not in keys
    assert "text" not in keys
    with pytest.raises(ValueError, match="no row"):
        keys.index(tk.key(X))
    array = np.asarray(keys)
    assert array.shape == (2, 32)
    assert array.dtype == np.uint8
    assert array[1].tobytes() == bytes(keys[1])
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    del keys
    assert array[1].tobytes() == bytes(tk.key(X[1])), "the buffer keeps the keys alive"
    assert len(tk.row_keys(np.zeros((0, 3)))) == 0


def test_scope_and_secret():
    secret = bytes(range(32))
    seen = {
        tk.key(X),
        tk.key(X, scope=b"a"),
        tk.key(X, scope=b"b"),
        tk.key(X, secret=secret),
        tk.key(X, secret=bytes(32)),
        tk.key(X, scope=b"a", secret=secret),
    }
    assert len(seen) == 6
    assert tk.key(X, scope="ä") == tk.key(X, scope="ä".encode())
    for wrong in (1, None, 2.0, ["a"]):
        with pytest.raises(errors.Unsupported, match="scope"):
            tk.key(X, scope=wrong)
    with pytest.raises(errors.Unsupported, match="secret"):
        tk.key(X, secret="x" * 32)
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(errors.InvalidArgument, match="exactly 32"):
            tk.row_keys(X, secret=wrong)


def test_tuples():
    y = X + 1
    assert tk.tuple_key({"a": X, "b": y}) == tk.tuple_key({"b": y, "a": X})
    assert tk.tuple_key({"a": X, "b": y}) != tk.tuple_key({"a": y, "b": X})
    rows = tk.tuple_row_keys({"a": X, "b": y}, scope="s")
    assert rows[1] == tk.tuple_key({"a": X[1], "b": y[1]}, scope="s")
    with pytest.raises(errors.InvalidArgument, match="no members"):
        tk.tuple_key({})
    with pytest.raises(errors.InvalidArgument, match="rows"):
        tk.tuple_row_keys({"a": X, "b": y[:1]})


def test_structure():
    assert tk.structure_key(X) == tk.structure_key(X + 1)
    assert tk.structure_key(X) != tk.structure_key(X.transpose(0, 2, 1))
    assert tk.structure_key(np.zeros((3, 3))) != tk.structure_key(np.zeros((3, 3)).T[:, :])
    assert tk.structure_key(X) != tk.key(X)
    assert tk.structure_key(X.astype(">f4")) != tk.structure_key(X)


@pytest.mark.parametrize(
    "bad",
    [
        np.array([object()]),
        np.array(["text"]),
        np.array([b"text"]),
        np.zeros(2, [("a", "i4"), ("b", "f4")]),
        np.zeros(2, np.longdouble),
        np.zeros(2, np.clongdouble),
        np.ma.masked_array([1.0, 2.0], [True, False]),
        np.zeros((2, 2)).view(type("Sub", (np.ndarray,), {})),
        "text",
        [1.0, 2.0],
        (1.0,),
        1.0,
        3,
        True,
        None,
        {},
        object(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refused_with_a_typed_error_that_leaves_nothing_behind(bad):
    before = sys.getrefcount(bad)
    for function in (tk.key, tk.row_keys, tk.structure_key):
        with pytest.raises(errors.Unsupported) as caught:
            function(bad)
        assert len(str(caught.value)) > 30, "says what to do instead"
        del caught
    if not isinstance(bad, int | None):  # everybody holds references to these
        assert sys.getrefcount(bad) <= before


def test_rank_0_has_no_rows():
    with pytest.raises(errors.InvalidArgument, match="rank 0"):
        tk.row_keys(np.float32(1))


def test_threads():
    big = np.arange(1 << 20, dtype=np.int64)
    expected = tk.key(big)
    got = []
    threads = [threading.Thread(target=lambda: got.append(tk.key(big))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 8


arrays = hnp.arrays(
    dtype=st.sampled_from([np.uint8, np.int16, np.float32, np.complex64, np.bool_]),
    shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    elements=None,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(arrays, arrays)
def test_equal_keys_mean_equal_tensors(a, b):
    same = (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    assert (tk.key(a) == tk.key(b)) == same
    assert list(tk.row_keys(a)) == [tk.key(row) for row in a]
