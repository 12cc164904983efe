"""What ``memoize`` gives back: any nest of tensors and plain values, as the function made it."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
import struct
import subprocess
import sys
import typing

import numpy as np
import pytest

import tensorkey as tk
from tensorkey._results import DESCRIPTION, Packed, decode

Pair = collections.namedtuple("Pair", "left right")


class Typed(typing.NamedTuple):
    values: object
    name: str = ""


class Mode(enum.Enum):
    FAST = 1


@dataclasses.dataclass
class Output:
    hidden: object
    loss: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    hidden: object


class Wrapped(list):
    pass


def again(value):
    """Return what a hit gives for a function that returned `value`."""
    runs = []

    @tk.memoize
    def f():
        runs.append(1)
        return value

    f()
    result = f()
    assert len(runs) == 1, f.stats
    return result


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 1, -(10**40), 1.5, -0.0, math.inf, 1 - 2j, "ä\ud800", b"\0", ..., "", ()),
        *([], {}, set(), frozenset({1}), {"a": [1, (2, {3})]}, {1: "a", None: 2, (1, "b"): 3}),
        *(Pair(1, "a"), Typed(1), Mode.FAST, Output(1), Frozen((1, 2)), [Pair(Output(None), [])]),
        *(collections.OrderedDict({"b": 1, "a": 2}), [[[[[1]]]]], [None, None]),
    ],
    ids=repr,
)
def test_plain_values(value):
    result = again(value)
    assert repr(result) == repr(value)
    assert result == value
    assert type(result) is type(value)
    if isinstance(value, dict):
        assert list(result) == list(value)


@pytest.mark.parametrize(
    "array",
    [
        *(np.arange(6).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.arange(6)[::-2]),
        *(
            np.array(2.5),
            np.float32(2.5),
            np.bool_(True),
            np.empty((0, 3), "i2"),
            np.array([], "?"),
        ),
        *(np.array([1, -1], ">i4"), np.array([1 + 2j], "c8"), np.float16([math.nan, -0.0])),
        *(
            np.array(["2020-01-01", "NaT"], "M8[D]"),
            np.array([1], ">m8[us]"),
            np.datetime64(1, "s"),
        ),
        *(np.broadcast_to(np.ones(3), (2, 3)), np.ones((2, 1, 3), order="F")),
        np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    ],
    ids=repr,
)
def test_arrays(array):
    result = again([array])[0]
    assert type(result) is type(array)
    assert result.dtype == array.dtype
    assert result.dtype.str == array.dtype.str
    assert result.shape == array.shape
    assert result.tobytes() == array.tobytes()
    if isinstance(array, np.ndarray) and array.flags.forc and 1 not in array.shape:
        assert result.strides == array.strides


def test_dtypes_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -2], ml_dtypes.bfloat16)
    result = again(array)
    assert result.dtype == array.dtype
    assert result.tolist() == array.tolist()


def test_arrays_of_jax():
    jax = pytest.importorskip("jax")
    value = {"a": jax.numpy.arange(3.0, dtype="bfloat16"), "b": jax.numpy.ones((2, 2))}
    result = again(value)
    assert (result["a"] == value["a"]).all()
    for one, other in zip(result.values(), value.values(), strict=True):
        assert (one.dtype, one.device, one.committed) == (
            other.dtype,
            other.device,
            other.committed,
        )


def test_functions_of_jax_under_jit():
    jax = pytest.importorskip("jax")
    double = tk.memoize(lambda x: x * 2)
    x = jax.numpy.ones(2, "float32")
    for _ in range(2):
        assert jax.jit(double)(x).tolist() == [2, 2]
        assert jax.grad(lambda x: double(x).sum())(x).tolist() == [2, 2]
    assert double.stats.hits == double.stats.misses == 0
    double(x), double(x)
    assert double.stats.hits == 1


given = [None]  # a list of the module is assumed, where a closure would be read


def refused(value):
    given[0] = value
    f = tk.memoize(lambda: given[0])
    assert f() is value
    assert f() is value
    assert f.stats.hits == f.stats.misses == 0
    [reason] = f.stats.bypasses
    assert len(f.cache) == 0
    return reason


def test_results_that_cannot_be_described_pass_through():
    @dataclasses.dataclass
    class Local:
        x: int

    more = Output(1)
    more.extra = 2
    for value, reason in (
        (object(), "a builtins.object in the result"),
        (iter([]), "a builtins.list_iterator in the result"),
        ([1, {"a": object()}], "a builtins.object in the result"),
        (Wrapped([1]), f"a {__name__}.Wrapped in the result"),
        (Local(1), "Local in the result, which no module has by that name"),
        (more, "a Output with attributes of its own in the result"),
        (np.array([object()]), "an array of object in the result"),
        (np.array(["a"]), "an array of <U1 in the result"),
        (np.ma.array([1]), "a MaskedArray in the result: return a numpy.ndarray"),
        (np.longdouble(1), "the result cannot be stored"),
        (10**5000, "Exceeds the limit"),
    ):
        assert reason in refused(value)
    nest: list = []
    nest.append(nest)
    assert refused(nest) == "the result is nested too deeply"


def test_waiters_of_a_result_that_is_not_kept_get_their_own():
    import threading

    together = threading.Barrier(4)

    @tk.memoize
    def f():
        threading.Event().wait(0.02)
        return object()

    results = []

    def ask():
        together.wait()
        results.append(f())

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, results))) == 4
    assert sum(f.stats.bypasses.values()) == 4


def test_the_description_is_as_documented():
    def value(data, at=0):
        tag, size = data[at : at + 1], struct.unpack_from("<Q", data, at + 1)[0]
        body, end = data[at + 9 : at + 9 + size], at + 9 + size
        if tag in b"ltdsox":
            items, inner = [], 0
            while inner < len(body):
                item, inner = value(body, inner)
                items.append(item)
            return (tag.decode(), items), end
        return (tag.decode(), body), end

    packed = Packed([1, "a", Pair(np.arange(2), None)])
    found, end = value(packed.description)
    assert end == len(packed.description)
    assert found == (
        "l",
        [
            ("i", b"1"),
            ("S", b"a"),
            (
                "o",
                [
                    ("S", b"namedtuple"),
                    ("S", f"{__name__}:Pair".encode()),
                    (
                        "x",
                        [("t", [("S", b"numpy"), ("S", b"<i8"), ("t", []), ("b", b"\0")])],
                    ),
                    ("N", b""),
                ],
            ),
        ],
    )


def test_foreign_descriptions_make_no_objects():
    def description(what, where, *items):
        from tensorkey._encoding import sequence, text

        return sequence(b"o", [text(what), text(where), *items])

    for bad in (
        *(b"", b"l", b"l" + b"\xff" * 8, b"?" + bytes(8), b"o" + bytes(8)),
        description("dataclass", "os:system"),
        description("namedtuple", "builtins:tuple"),
        description("struct", "subprocess:Popen"),
        description("enum", "os:environ"),
        description("dataclass", f"{__name__}:Output"),
        description("namedtuple", f"{__name__}:Pair"),
        description("eval", "builtins:eval"),
    ):
        with pytest.raises(Exception, match=r"."):
            decode(bad, lambda number, note: None)


def test_a_stored_result_of_a_class_that_is_gone_runs_the_function():
    cache = tk.ActivationCache("1 MiB")
    f = tk.memoize(cache=cache)(lambda: Pair(1, 2))
    f()
    entry = cache.get(f.key())
    stored = bytes(entry[DESCRIPTION])
    cache.remove(f.key())
    cache.put(f.key(), stored.replace(b":Pair", b":Pear"))  # without the name of the tensor
    assert f() == (1, 2)
    assert list(f.stats.bypasses) == [
        "a stored result could not be made again: its class or device is not there"
    ]


TENSORFLOW = """
import numpy as np
import tensorflow as tf
import tensorkey as tk

@tk.memoize
def f(x, y=None):
    return {"a": x * 2, "b": tf.cast(x, tf.bfloat16)}

x = tf.constant([1.0, 2.0])
first, second = f(x), f(tf.constant([1.0, 2.0]))
assert f.stats.hits == 1
for name, value in first.items():
    assert value.dtype == second[name].dtype and value.device == second[name].device
    assert tf.reduce_all(value == second[name])
with tf.GradientTape() as tape:
    tape.watch(x)
    result = f(x)["a"]
assert tape.gradient(result, x).numpy().tolist() == [2, 2]
for _ in range(2):
    assert tf.function(lambda x: f(x)["a"])(x + 1).numpy().tolist() == [4, 6]
assert f.stats.hits == 1
assert f(np.ones(2, "f4"))["b"].dtype == tf.bfloat16
assert f.stats.misses == 2
v = tf.Variable([1.0])
f(v), v.assign([2.0])
assert f(v)["a"].numpy().tolist() == [4]
"""


def test_tensors_of_tensorflow():
    pytest.importorskip("tensorflow")
    done = subprocess.run(
        [sys.executable, "-c", TENSORFLOW], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
