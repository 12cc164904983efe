"""Outputs of a layer: any nest of tensors and plain values, taken apart and put together."""

from __future__ import annotations

import collections
import dataclasses
import enum
import struct
import sys
import types
import typing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorkey as tk
from tensorkey._backend import Bypass, Unsuited
from tensorkey._outputs import output_form, pack


class Numpy:
    """NumPy as the framework of a layer."""

    @staticmethod
    def is_tensor(value):
        return isinstance(value, np.ndarray)

    @staticmethod
    def rows(tensor):
        return len(tensor) if tensor.ndim else None


Pair = collections.namedtuple("Pair", "left right")


class Typed(typing.NamedTuple):
    hidden: object
    name: str = ""


@dataclasses.dataclass
class Output:
    hidden: object
    states: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    hidden: object


class Mode(enum.Enum):
    FAST = 1


@dataclasses.dataclass
class ModelOutput(collections.OrderedDict):
    """The shape of the outputs of transformers and diffusers: no constructor makes it again."""

    first: object = None
    second: object = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                collections.OrderedDict.__setitem__(self, field.name, value)

    def __setitem__(self, key, value):
        raise AssertionError("no code of the class runs")

    __setattr__ = __setitem__

    def __init__(self, first=None, second=None):
        vars(self).update(first=first, second=second)
        self.__post_init__()


x, y = np.arange(12.0).reshape(4, 3), np.ones((4, 1), bool)


def again(value, **options):
    parts = pack(value, Numpy(), **options)
    return output_form(parts.form).unpack([leaf.copy(order="C") for leaf in parts.leaves])


@pytest.mark.parametrize(
    ("output", "paths"),
    [
        (x, ["output"]),
        ((x, [y, x + 1]), ["[0]", "[1][0]", "[1][1]"]),
        ({"a": x, 1: y, None: x + 1, (1,): x + 2}, ['["a"]', "[1]", "[None]", "[#3]"]),
        (Typed(x), ["hidden"]),
        ([Pair(None, Pair(x, y))], ["[0].right.left", "[0].right.right"]),
        (Output(x, {"k": (y,)}), ["hidden", 'states["k"][0]']),
        (ModelOutput(None, [x]), ["second[0]"]),
        ((Frozen(x), collections.OrderedDict(b=y)), ["[0].hidden", '[1]["b"]']),
    ],
    ids=repr,
)
def test_paths(output, paths):
    parts = pack(output, Numpy())
    assert parts.paths == paths
    assert len(parts.leaves) == len(paths)
    assert repr(output_form(parts.form).unpack(parts.leaves)) == repr(output)


def test_one_tensor_comes_back_as_it_is():
    parts = pack(x, Numpy())
    assert output_form(parts.form).unpack([y]) is y
    assert output_form(parts.form) is output_form(bytes(bytearray(parts.form)))


plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([Mode.FAST, ..., frozenset({1, 2})]),
)
arrays = st.sampled_from(["f4", "<i8", ">i2", "?", "c8"]).map(lambda dtype: np.ones((3, 2), dtype))


@st.composite
def nests(draw, depth=3):
    named = [dict, collections.OrderedDict]
    classes = {Pair: 2, Typed: 1, Output: 2, Frozen: 1, ModelOutput: 2}
    kind = draw(
        st.sampled_from(["leaf", list, tuple, set, *named, *classes] if depth else ["leaf"])
    )
    if kind == "leaf":
        return draw(plain_values | arrays)
    if kind is set:
        return set(draw(st.lists(st.integers() | st.text(max_size=1), max_size=3)))
    if kind in classes:
        return kind(*(draw(nests(depth - 1)) for _ in range(classes[kind])))
    keys = draw(st.lists(st.integers() | st.text(max_size=2), max_size=4))
    if kind in named:
        return kind({key: draw(nests(depth - 1)) for key in keys})
    return kind(draw(nests(depth - 1)) for _ in keys)


def parts_of(value):
    """Return the items of a nest; None for a leaf."""
    if isinstance(value, ModelOutput):
        return [list(value.keys()), *vars(value).items()]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return list(value) if isinstance(value, (list, tuple)) else None


def check_equal(one, other):
    assert type(one) is type(other)
    parts = parts_of(one)
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    elif parts is not None:
        for part, match in zip(parts, parts_of(other), strict=True):
            check_equal(part, match)
    elif isinstance(one, (float, complex)):
        one, other = complex(one), complex(other)
        assert struct.pack("<dd", one.real, one.imag) == struct.pack("<dd", other.real, other.imag)
    else:
        assert one == other


def check_apart(one, other):
    """Check that two nests share nothing that can be changed in place."""
    if isinstance(one, (list, dict, set, np.ndarray, Output)):
        assert one is not other
    for part, match in zip(parts_of(one) or [], parts_of(other) or [], strict=True):
        check_apart(part, match)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(nests())
def test_random_nests(nest):
    output = (x, nest)
    parts = pack(output, Numpy())
    first, second = again(output), again(output)
    check_equal(first, output)
    check_equal(second, output)
    check_apart(first, second)
    check_apart(first, output)
    assert pack(first, Numpy()).form == parts.form


def test_sets_have_one_form():
    # 0 and 8 meet in a table of 8: its order is that of insertion.
    one, other = (set(order) for order in ((0, 8), (8, 0)))
    assert list(one) != list(other)
    assert pack((x, one), Numpy()).form == pack((x, other), Numpy()).form
    assert pack((x, frozenset(one)), Numpy()).form == pack((x, frozenset(other)), Numpy()).form


def test_outputs_share_nothing():
    output = {"a": [x, {"n": [1]}], "s": {1}, "d": Output(1, [2])}
    first = again(output)
    first["a"][1]["n"].append(2)
    first["a"].clear()
    first["s"].add(2)
    first["d"].states.append(3)
    second = again(output)
    assert second["s"] == {1}
    assert second["d"] == Output(1, [2])
    assert second["a"][1] == {"n": [1]}


def test_one_tensor_in_two_places_is_one_leaf():
    output = ModelOutput(x, [y, x])
    parts = pack(output, Numpy())
    assert parts.paths == ["first", "second[0]"]
    result = output_form(parts.form).unpack([x.copy(), y.copy()])
    assert result.second[1] is result.first is collections.OrderedDict.__getitem__(result, "first")
    assert result.second[0] is not result.first
    assert again([x, x.copy()])[0] is not again([x, x.copy()])[1]


def test_results_of_functions_too():
    runs = []

    @tk.memoize
    def f():
        runs.append(1)
        return ModelOutput(x, (x, y))

    f()
    result = f()
    assert runs == [1]
    assert result.second[0] is result.first
    assert list(result) == ["first", "second"]
    assert f().first is not result.first


def test_items_of_a_model_output():
    for output in (ModelOutput(), ModelOutput(x), ModelOutput(None, x), ModelOutput(x, {"a": 1})):
        result = again((x, output))[1]
        assert type(result) is ModelOutput
        assert list(result.keys()) == list(output.keys())
        assert list(vars(result)) == ["first", "second"]
        for key in result:
            assert collections.OrderedDict.__getitem__(result, key) is getattr(result, key)
    swapped = ModelOutput(x, y)
    swapped.move_to_end("first")
    assert list(again(swapped)) == ["second", "first"]
    vars(swapped)["first"] = 1
    with pytest.raises(Unsuited, match="ModelOutput whose items are not its attributes"):
        pack(swapped, Numpy())


# --- Memory order.


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize(
    "order", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0), (2, 0, 1)]
)
def test_the_order_of_the_batch_from_a_run_of_few_rows(rows, order):
    def layer(batch):
        shape = (batch, 3, 4)
        back = np.argsort(order)
        return np.zeros([shape[dim] for dim in order]).transpose(back)

    form = pack([layer(rows)], Numpy(), rows=rows).form
    [whole] = output_form(form).unpack([np.zeros((7, 3, 4))])
    assert whole.shape == (7, 3, 4)
    assert whole.strides == layer(7).strides


def test_orders_that_say_nothing():
    for leaf in (np.zeros((1, 3)), np.zeros(3)[None], np.zeros((1, 1)), np.zeros((2, 3))[:1]):
        assert output_form(pack(leaf, Numpy(), rows=1).form).leaves[0][2] == ()
    assert output_form(pack(np.zeros((4, 6))[:, ::2], Numpy(), rows=4).form).leaves[0][2] == ()


def test_leaves_are_reordered_and_elements_stay():
    output = {"a": np.arange(24).reshape(2, 3, 4).transpose(0, 2, 1), "b": x}
    result = again(output, rows=2)
    assert result["a"].tolist() == output["a"].tolist()
    assert result["a"].strides == output["a"].strides
    assert result["b"].flags.c_contiguous


# --- What is not kept, and classes that are gone.


def test_what_cannot_be_kept_is_named():
    class Local(typing.NamedTuple):
        hidden: object

    for output, reason in (
        (None, "its output holds no tensor"),
        ({"a": 1}, "its output holds no tensor"),
        ((x, object()), "a builtins.object in the result"),
        (Local(x), "Local in the result, which no module has by that name"),
        ({"a": [np.float32(1)]}, "no tensor of the layer's framework"),
        ((x, np.array([None])), "an array of object in the result"),
    ):
        with pytest.raises(Unsuited, match="its output") as caught:
            pack(output, Numpy())
        assert reason in str(caught.value)


@pytest.fixture
def module():
    """A module with a class that can be taken away and made anew."""
    module = types.ModuleType("tensorkey_test_outputs_module")
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def define(module):
    module.Out = dataclasses.make_dataclass("Out", ["hidden"])
    module.Out.__module__ = module.__name__
    return module.Out


def test_a_class_that_is_gone_or_defined_anew(module):
    parts = pack(define(module)(x), Numpy())
    form = output_form(parts.form)
    assert type(form.unpack([x])) is module.Out
    old = module.Out
    new = define(module)
    assert type(form.unpack([x])) is new is not old
    module.Out = dataclasses.make_dataclass("Out", ["other"])
    with pytest.raises(Bypass, match="put together"):
        form.unpack([x])
    del module.Out
    for unpack in (form.unpack, lambda tensors: type(form)(parts.form)):
        with pytest.raises(Bypass, match="its class is not there or is another one now"):
            unpack([x])


def test_foreign_forms_make_no_objects():
    for bad in (
        b"",
        b"x" + bytes(8),
        b"o" + bytes(8),
        pack(ModelOutput(x), Numpy()).form.replace(b":ModelOutput", b":collections"),
        pack(ModelOutput(x), Numpy()).form.replace(b"output", b"adapte"),
    ):
        with pytest.raises(Bypass):
            output_form(bad)
