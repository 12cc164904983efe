"""Arguments of a layer: rows, paths and form, whatever the nest and however it is spelled."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import struct
import typing

import numpy as np
import pytest

from tensorkey._adapters import OutputAdapter
from tensorkey._backend import Bypass
from tensorkey._inputs import Signature
from tensorkey._paths import at_key
from tensorkey.errors import InvalidArgument


class Numpy:
    """NumPy as the framework of a layer."""

    @staticmethod
    def is_tensor(value):
        return type(value) is np.ndarray

    @staticmethod
    def rows(tensor):
        return len(tensor) if tensor.ndim else None


Pair = collections.namedtuple("Pair", "left right")


class Typed(typing.NamedTuple):
    ids: object
    name: str = ""


@dataclasses.dataclass
class Batch:
    pixels: object
    mask: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    ids: object


class Named(dict):
    pass


class Listed(list):
    pass


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


def forward(x, mask=None, scale=1.0, *args, flag=False, **kwargs):
    raise AssertionError("a signature runs nothing")


def taker(method=forward, **options):
    return Signature(method, Numpy(), **options)


def take(*args, **kwargs):
    """Take arguments thrice: unknown, known by class, known by plan."""
    signature = taker()
    first, *others = [signature.take(args, kwargs) for _ in range(3)]
    for other in others:
        assert (other.rows, other.paths, other.form) == (first.rows, first.paths, first.form)
        assert list(map(id, other.tensors)) == list(map(id, first.tensors))
    return first


def refused(*args, **kwargs):
    signature = taker()
    reasons = set()
    for _ in range(3):
        with pytest.raises(Bypass) as caught:
            signature.take(args, kwargs)
        reasons.add(str(caught.value))
    [reason] = reasons
    return reason


x = np.arange(12.0).reshape(4, 3)
mask = np.ones((4, 2), bool)


# --- Paths.


@pytest.mark.parametrize(
    ("args", "kwargs", "paths"),
    [
        ((x,), {}, ["x"]),
        ((x, mask), {}, ["x", "mask"]),
        ((x, [mask, (x,)]), {}, ["x", "mask[0]", "mask[1][0]"]),
        (({"a": x, "b": {"c": mask}},), {}, ['x["a"]', 'x["b"]["c"]']),
        (({1: x, None: x, (1, 2): x, 1.5: x, b"k": x, 'q"': x, "ä": x, "\ud800": x},), {}, None),
        ((Pair(x, 1),), {}, ["x.left"]),
        ((Typed(x, "a"),), {}, ["x.ids"]),
        ((Batch(x, mask),), {}, ["x.pixels", "x.mask"]),
        ((Frozen([x]),), {}, ["x.ids[0]"]),
        ((collections.OrderedDict(b=x, a=x),), {}, ['x["b"]', 'x["a"]']),
        ((Named(a=x),), {}, ['x["a"]']),
        ((Listed([x]),), {}, ["x[0]"]),
        ((collections.UserDict({"a": x}),), {}, ['x["a"]']),
        ((x, None, 2.0, mask, {"z": x}), {}, ["x", "args[0]", 'args[1]["z"]']),
        ((), {"x": x, "more": mask, "flag": x}, ["x", "flag", "more"]),
        ((x,), {"a b": mask}, ["x", '["a b"]']),
    ],
    ids=repr,
)
def test_paths(args, kwargs, paths):
    arguments = take(*args, **kwargs)
    if paths is None:
        paths = ["[1]", "[None]", "[#2]", "[1.5]", "[b'k']", '["q\\""]', '["ä"]', '["\\ud800"]']
        paths = ["x" + path for path in paths]
    assert arguments.paths == paths
    assert len(arguments.tensors) == len(paths)
    assert arguments.rows == 4
    for path in paths:
        path.encode()


def test_keys_of_one_dict_have_different_paths():
    keys = ["1", 1, 1.5, "1.5", None, "None", b"1", (1,), Mode.FAST, "#8", 2 + 0j, "["]
    assert len({at_key("x", key, i) for i, key in enumerate(keys)}) == len(keys)


# --- Spelling.


@pytest.mark.parametrize(
    "spelled",
    [
        ((x, mask), {}),
        ((x,), {"mask": mask}),
        ((), {"x": x, "mask": mask}),
        ((), {"mask": mask, "x": x}),
        ((x, mask, 1.0), {}),
        ((x, mask), {"scale": 1.0}),
        ((), {"flag": False, "mask": mask, "scale": 1.0, "x": x}),
    ],
    ids=["positions", "both", "names", "reversed", "default", "named default", "all"],
)
def test_spelling_does_not_count(spelled):
    args, kwargs = spelled
    expected, arguments = take(x, mask), take(*args, **kwargs)
    assert (arguments.paths, arguments.form) == (expected.paths, expected.form)
    assert [id(tensor) for tensor in arguments.tensors] == [id(x), id(mask)]
    seen = arguments.call(lambda *a, **k: (a, k), [x[:2], mask[:2]])
    assert len(seen[0]) == len(args)
    assert list(seen[1]) == list(kwargs)
    passed = dict(zip(("x", "mask"), seen[0], strict=False)) | seen[1]
    assert passed["x"].tobytes() == x[:2].tobytes()
    assert passed["mask"].tobytes() == mask[:2].tobytes()


def test_the_first_tensor_is_that_of_the_first_parameter():
    both = np.ones((4, 1)), np.ones((7, 1))
    assert take(mask=both[1], x=both[0]).rows == 4
    assert take(x=both[0], mask=both[1]).paths == ["x"]
    assert take(*both).rows == 4
    assert take(both[1], both[0]).rows == 7


def test_order_holds_where_a_tensor_is_passed_twice():
    signature = taker()
    for _ in range(3):
        assert signature.take((), {"mask": x, "x": x}).paths == ["x", "mask"]
    arguments = signature.take((), {"mask": x + 1, "x": x})
    assert arguments.tensors[0] is x
    seen = arguments.call(lambda x, mask: (x, mask), ["for x", "for mask"])
    assert seen == ("for x", "for mask")


def test_a_tensor_in_two_places_is_replaced_in_each():
    arguments = take([x, x], x)
    assert arguments.paths == ["x[0]", "x[1]", "mask"]
    assert arguments.call(lambda x, mask: (x, mask), [1, 2, 3]) == ([1, 2], 3)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (None, False),
        ("1", 1),
        ("a", b"a"),
        ((1, 2), [1, 2]),
        ([], {}),
        ([[1], 2], [1, [2]]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (Pair(1, 2), (1, 2)),
        (Batch(1), Batch(1, 2)),
        (Named(a=1), {"a": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (Mode.FAST, Mode.SLOW),
        (slice(1), slice(2)),
        (np.ones(2), np.zeros(2)),
        (np.ones(2), np.ones((2, 1))),
        (np.array(1), np.array(2)),
        (np.array(1), 1),
        (np.float32(1), np.float64(1)),
        (np.dtype("f4"), np.dtype("f8")),
        ({1}, frozenset({1})),
        (lambda y: y + 1, lambda y: y + 2),
        (x, x.astype("f4")),
        (x, [x]),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)
def test_forms_differ(one, other):
    for around in (
        lambda value: (x, value),
        lambda value: (x, None, 2.5, [value]),
        lambda value: (x, {"k": {"l": value}}),
    ):
        signature = taker()
        taken = [signature.take(around(value), {}).form for value in (one, other) * 3]
        assert taken[0] != taken[1]
        assert taken == taken[:2] * 3


def test_nans_equal_their_own_bits():
    nan = struct.unpack("<d", b"\1" + struct.pack("<d", float("nan"))[1:])[0]
    assert take(x, None, float("nan")).form == take(x, None, float("nan")).form
    assert take(x, None, float("nan")).form != take(x, None, nan).form


def test_rows_that_differ_share_a_form():
    assert take(x).form == take(x[:2] + 1).form
    assert take(x, mask).form == take(x[::2], mask[::2]).form
    assert take(x).form != take(x.astype(">f8")).form


def test_contents_of_other_tensors_are_in_the_form():
    signature = taker()
    weights = np.ones((3, 3))
    first = signature.take((x, weights), {})
    assert first.paths == ["x"]
    assert signature.take((x, weights.copy()), {}).form == first.form
    weights[0] = 2
    assert signature.take((x, weights), {}).form != first.form
    seen = first.call(lambda x, mask: (x, mask), [x[:1]])
    assert seen[1] is weights


def test_a_tensor_that_changes_its_first_dim_leaves_the_plan():
    signature = taker()
    for _ in range(3):
        assert signature.take((x, mask), {}).paths == ["x", "mask"]
    assert signature.take((x, mask[:2]), {}).paths == ["x"]
    assert signature.take((x[:2], mask[:2]), {}).paths == ["x", "mask"]
    assert signature.take((x[0, 0], mask), {}).paths == ["mask"]


def test_a_tensor_that_takes_the_first_dim_leaves_the_plan():
    signature = taker()
    for _ in range(3):
        assert signature.take((x, mask[:2]), {}).paths == ["x"]
    assert signature.take((x[:2], mask[:2]), {}).paths == ["x", "mask"]


# --- Under a decorator the spelling counts: it may look at it.


def test_spelling_counts_under_a_decorator():
    @functools.wraps(forward)
    def outer(*args, **kwargs):
        return forward(*args, **kwargs)

    signature = taker(outer)
    assert signature.take((x, mask), {}).paths == ["x", "mask"]
    forms = {
        signature.take((x, mask), {}).form,
        signature.take((x,), {"mask": mask}).form,
        signature.take((), {"mask": mask, "x": x}).form,
        signature.take((x, mask), {"flag": False}).form,
    }
    assert len(forms) == 4


def test_functions_without_a_signature_take_anything():
    signature = taker(dict.update)
    assert signature.take((x,), {"b": x}).paths == ["args[0]", "b"]


# --- The call again.


def test_nests_are_made_anew():
    given_nest = {"a": [x, {"b": 1}], "c": Batch(x), "d": Named(e=x), "f": (1, (2,)), "g": {3}}
    given_nest["d"].note = [x]
    arguments = take(given_nest)

    def layer(nest):
        nest["a"][1]["b"] = 5
        nest["a"].append(1)
        nest["g"].add(4)
        nest["c"].mask = 1
        nest["d"].note.append(2)
        return nest

    for _ in range(2):
        nest = arguments.call(layer, [1, 2, 3, 4])
        assert nest["a"] == [1, {"b": 5}, 1]
        assert nest["c"] == Batch(2, 1)
        assert type(nest["d"]) is Named
        assert (nest["d"], nest["d"].note) == ({"e": 3}, [4, 2])
        assert nest["f"] is given_nest["f"]
    assert len(given_nest["a"]) == 2
    assert given_nest["a"][1] == {"b": 1}
    assert given_nest["g"] == {3}
    assert given_nest["d"].note[0] is x


# --- What has no key, or no rows.


def test_what_cannot_be_read_is_named():
    more = Listed([1])
    more.extra = 2
    cycle: list = []
    cycle.append(cycle)
    for value, reason in (
        (object(), "mask has no key: "),
        ([{"a": (y for y in [])}], 'mask[0]["a"] has no key: '),
        (more, "mask has no key: a Listed with attributes of its own cannot be read"),
        (collections.defaultdict(list), "mask has no key: what a defaultdict holds cannot be read"),
        (10**5000, "mask has no key: Exceeds the limit"),
        (cycle, "mask is nested too deeply"),
        ({object(): 1}, "mask has no key"),
    ):
        assert reason in refused(x, value)


def test_calls_without_rows():
    assert refused() == "the arguments do not fit the layer: missing a required argument: 'x'"
    assert "multiple values" in refused(x, x=x)
    assert refused(1) == refused(np.array(1.0)) == "no tensor with rows among the arguments"
    assert refused(x[:0]) == "a batch of 0 rows"
    assert refused(x, None, 1.0, x, args=[x]) == "two arguments are called args"
    assert take(x, args=[x]).paths == ["x", "args[0]"]


def test_arguments_of_one_name():
    def positional_only(x, /, **kwargs):
        raise AssertionError

    with pytest.raises(Bypass, match="two arguments are called x"):
        taker(positional_only).take((x,), {"x": x})


@pytest.mark.parametrize(
    "value",
    [[1, 2, 3, 4], (1, 2, 3, 4), ["a"] * 4, [[1], [2], [3], [4]], [np.array(1)] * 4, range(4)],
    ids=repr,
)
def test_what_may_belong_to_single_rows_is_refused(value):
    for nest in (value, {"k": [value]}):
        assert "[" in refused(x, nest) or refused(x, nest).startswith("mask")
    signature = taker()
    for _ in range(3):
        assert signature.take((x[:3], value), {}).rows == 3  # not as long as the batch
    with pytest.raises(Bypass):
        signature.take((x, value), {})


def test_arrays_of_another_framework_are_no_rows():
    framework = Numpy()
    framework.is_tensor = lambda value: type(value) is np.ndarray and value.dtype == "f8"
    signature = Signature(forward, framework)
    with pytest.raises(Bypass, match="^mask is a numpy.ndarray as long as the batch: pass a tens"):
        signature.take((x, mask), {})
    first = signature.take((x, mask[:3]), {})
    assert first.paths == ["x"]
    assert signature.take((x, mask[:3]), {}).form == first.form
    assert signature.take((x, ~mask[:3]), {}).form != first.form
    for other in (memoryview(b"1234"), bytearray(4)):
        assert refused(x, other).startswith("mask is a builtins.")


def test_slices_are_no_rows():
    for part in (slice(1), slice(None, 2, x)):
        arguments = take(x[:3], part)
        assert arguments.paths == ["x"]
        assert arguments.call(lambda x, mask: mask, [0]) is part
    arguments = take(x, slice(x))
    assert arguments.paths == ["x", "mask.stop"]
    assert arguments.call(lambda x, mask: mask, [0, 1]) == slice(1)


def test_a_list_of_one_with_a_batch_of_one():
    signature = taker()
    for _ in range(3):
        assert signature.take((x[:1], [7]), {}).rows == 1


def test_tensors_in_sets_and_keys():
    class Hashed:
        pass

    framework = Numpy()
    framework.is_tensor = lambda value: isinstance(value, (np.ndarray, Hashed))
    framework.rows = lambda tensor: 4
    for nest in ({Hashed()}, {Hashed(): 1}, frozenset({Hashed()})):
        with pytest.raises(Bypass, match="has no place of its own"):
            Signature(forward, framework).take((x, nest), {})


# --- A whole input as one row.


def test_whole_inputs():
    signature = taker(whole=True)
    ragged = np.ones((7, 2)), np.array(1.0), np.zeros((0, 2))
    for _ in range(3):
        arguments = signature.take((x, list(ragged)), {"scale": [1, 2, 3, 4]})
        assert arguments.rows == 1
        assert arguments.paths == ["x", "mask[0]", "mask[1]", "mask[2]"]
    with pytest.raises(Bypass, match="no tensor"):
        signature.take((1,), {})


# --- The user's own adapter.


def test_adapters_of_the_user():
    adapter = OutputAdapter((list, tuple))
    assert adapter.from_tensors(adapter.to_tensors((1, 2))) == (1, 2)
    assert adapter.about() == OutputAdapter([list, tuple]).about()
    assert adapter.about() != OutputAdapter((tuple, list)).about()
    # What makes the stored tensors counts, with its constants and defaults; the way back does not.
    one, other = (OutputAdapter((list, lambda nest, k=k: nest * k)) for k in (1, 2))
    assert one.about() == other.about()
    one, other = (OutputAdapter((lambda out, k=k: [out * k], tuple)) for k in (1, 2))
    assert one.about() != other.about()
    one, other = (
        OutputAdapter((lambda out: [out, 1], tuple)),
        OutputAdapter((lambda out: [out, 2], tuple)),
    )
    assert one.about() != other.about()
    for bad in (None, (list,), [list, 1], list, "ab"):
        with pytest.raises(InvalidArgument, match=r"outputs is no pair of functions; expected"):
            OutputAdapter(bad)
