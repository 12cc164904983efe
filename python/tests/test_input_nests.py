"""Arguments of a layer: random nests."""

from __future__ import annotations

import collections
import dataclasses
import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorkey._inputs import Signature


class Numpy:
    """NumPy as the framework of a layer."""

    @staticmethod
    def is_tensor(value):
        return isinstance(value, np.ndarray)

    @staticmethod
    def rows(tensor):
        return len(tensor) if tensor.ndim else None


Pair = collections.namedtuple("Pair", "left right")


@dataclasses.dataclass
class Batch:
    pixels: object
    mask: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    ids: object


class Named(dict):
    pass


def taker():
    return Signature(lambda x, mask=None: x, Numpy())


plain_values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)
)
tensors = st.sampled_from([("f4", 3), ("i8", 3), ("f4", 5), ("?", 3), ("f4", None)]).map(
    lambda about: np.zeros(() if about[1] is None else (about[1], 2), about[0])
)
keys = st.text(max_size=2) | st.integers()


@st.composite
def nests(draw, depth=3):
    kinds = ["leaf", list, tuple, dict, collections.OrderedDict, Named, collections.UserDict]
    kind = draw(st.sampled_from([*kinds, Pair, Batch, Frozen] if depth else ["leaf"]))
    if kind == "leaf":
        return draw(plain_values | tensors)
    if kind in (list, tuple):  # none of 3 items, which could be rows
        return kind(draw(nests(depth - 1)) for _ in range(draw(st.sampled_from([0, 1, 2, 4]))))
    if kind in (Pair, Batch, Frozen):
        return kind(*(draw(nests(depth - 1)) for _ in range(1 if kind is Frozen else 2)))
    names = draw(st.lists(keys if kind is dict else st.text(max_size=2), max_size=3))
    return kind({name: draw(nests(depth - 1)) for name in names})


def shown(value):
    """Return a text of all that counts in a nest, by other means than the encoding."""
    kind = type(value).__qualname__
    if isinstance(value, np.ndarray):
        rows = value.shape[:1] == (3,)
        return f"tensor {value.dtype} {'rows' if rows else (value.shape, value.tobytes())}"
    if isinstance(value, float):
        return f"float {struct.pack('<d', value)}"
    if isinstance(value, (dict, collections.UserDict)):
        items = [f"{type(key)} {key!r}: {shown(item)}" for key, item in value.items()]
        return f"{kind}({items})"
    if isinstance(value, (list, tuple)):
        return f"{kind}({[shown(item) for item in value]})"
    if dataclasses.is_dataclass(value):
        items = [shown(getattr(value, field.name)) for field in dataclasses.fields(value)]
        return f"{kind}({items})"
    return f"{kind} {value!r}"


def rows_of(value):
    if isinstance(value, np.ndarray):
        return [value] if value.shape[:1] == (3,) else []
    if isinstance(value, (dict, collections.UserDict)):
        parts = list(value.values())
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        parts = list(value) if isinstance(value, (list, tuple)) else []
    return [tensor for part in parts for tensor in rows_of(part)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(nests(), nests())
def test_forms_of_random_nests(one, other):
    signature = taker()
    rows = np.zeros((3, 1))
    taken = [signature.take((rows, nest), {}) for nest in (one, other, one, other, one)]
    assert taken[0].form == taken[2].form == taken[4].form
    assert taken[1].form == taken[3].form
    assert (taken[0].form == taken[1].form) == (shown(one) == shown(other))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(nests())
def test_calls_of_random_nests(nest):
    signature = taker()
    rows = np.zeros((3, 1))
    for _ in range(3):
        arguments = signature.take((), {"mask": nest, "x": rows})
        expected = [rows, *rows_of(nest)]
        assert list(map(id, arguments.tensors)) == list(map(id, expected))
        assert len(set(arguments.paths)) == len(arguments.paths)
        marked = [np.full((3, 1), i) for i in range(len(expected))]
        again, first = arguments.call(lambda x, mask: (mask, x), marked)
        assert first is marked[0]
        assert list(map(id, rows_of(again))) == list(map(id, marked[1:]))
        back = arguments.call(lambda x, mask: mask, arguments.tensors)
        assert shown(back) == shown(nest)
