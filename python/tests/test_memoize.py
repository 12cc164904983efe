"""``memoize``: which calls are one call, what is kept, what is not answered."""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import functools
import pathlib
import pickle
import threading

import numpy as np
import pytest

import tensorkey as tk
from tensorkey import errors
from tensorkey._memoize import memoize


def helper(x):
    return x + 1


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


@dataclasses.dataclass
class Config:
    width: int
    weights: object = None


Point = collections.namedtuple("Point", "x y")


@pytest.fixture
def x():
    return np.arange(4.0)


def test_forms_of_one_call_are_one_call(x):
    @memoize
    def f(a, /, b, c=3, *rest, d=4, **more):
        return [a * b, c, list(rest), d, dict(more)]

    forms = [
        f.key(x, 2),
        f.key(x.copy(), b=2),
        f.key(x, 2, 3),
        f.key(x, c=3, b=2),
        f.key(x, 2, 3, d=4),
    ]
    assert len(set(forms)) == 1
    others = [f.key(x, 2, 3, 5), f.key(x, 2, e=1), f.key(x, 2, d=5), f.key(x, 2, 4)]
    assert len({*forms, *others}) == 5
    for _ in range(2):
        assert f(x, 2, 3, 5, d=6, e=7)[1:] == [3, [5], 6, {"e": 7}]
    assert (f.stats.hits, f.stats.misses) == (1, 1)


def test_every_part_of_an_argument_counts(x):
    @memoize
    def f(value):
        return 0

    zero = np.zeros(2)
    values = [
        *(x, x.astype("f4"), x.reshape(2, 2), x[:3], x + 1, np.float64(1), np.float32(1)),
        *(zero, -zero, zero.tolist(), zero.astype(bool), memoryview(x), array.array("d", x)),
        *(1, True, 1.0, 1 + 0j, "1", b"1", None, ..., np.int64(1), np.bool_(True), np.array(1)),
        *(0.0, -0.0, float("nan"), [1], (1,), {1}, frozenset({1}), {1: 1}, [[1]], [1, []]),
        *([x, 1], [1, x], {"a": x}, {"b": x}, (x, x), (x, x + 1), [x], [[x]], Point(1, x), (1, x)),
        *(Mode.FAST, Mode.SLOW, Config(1), Config(2), Config(1, x), Config(1, x + 1)),
        *(np.dtype("f4"), np.dtype("f8"), pathlib.Path("a"), "a", slice(1), slice(2), range(3)),
        *(collections.OrderedDict({1: 1}), len, int, float, lambda v: v, lambda v: v + 1),
        *(functools.partial(helper, 1), functools.partial(helper, 2), helper),
        *(np.array(["1970-01-01"], "M8[D]"), np.array([0]), x.astype(">f8")),
    ]
    keys = [f.key(value) for value in values]
    assert len(set(keys)) == len(values)
    assert keys == [f.key(value) for value in values]
    assert f.key(np.array([np.nan])) == f.key(np.array([np.nan]))
    assert f.key(float("nan")) == f.key(float("nan"))
    assert f.key(x[::2]) == f.key(x[::2].copy())


def test_frameworks_do_not_answer_each_other(x):
    torch = pytest.importorskip("torch")

    @memoize
    def double(value):
        return value * 2

    for value in (x, torch.from_numpy(x), x):
        assert type(double(value)) is type(value)
    assert (double.stats.hits, double.stats.misses) == (1, 2)


def test_what_is_ignored_does_not_count(x):
    @memoize(ignore=("verbose", "extra"))
    def f(value, verbose=False, **more):
        return value.sum()

    assert f.key(x) == f.key(x, True) == f.key(x, verbose=3) == f.key(x, extra=object())
    assert f.key(x) != f.key(x, other=1)
    with pytest.raises(errors.InvalidArgument, match="ignore names 'loud'; expected .*: value"):
        memoize(ignore=["loud"])(lambda value: 0)
    with pytest.raises(errors.InvalidArgument, match="a list of names"):
        memoize(ignore="value")


def test_a_version_counts(x):
    def f(value):
        return 0

    keys = {memoize(version=version)(f).key(x) for version in (None, 1, True, "1", ("a", 2))}
    assert len(keys) == 5
    with pytest.raises(errors.InvalidArgument, match="version"):
        memoize(version=object())


def test_results_are_the_callers_own(x):
    @memoize
    def f(value):
        return {"a": value * 2, "b": [value + 1, (1, "s")]}

    first = f(x)
    first["a"][:] = 0
    first["b"].clear()
    second = f(x)
    assert second["a"].tolist() == [0, 2, 4, 6]
    second["a"][:] = 0
    second["b"][0][:] = 0
    third = f(x)
    assert third["a"].tolist() == [0, 2, 4, 6]
    assert third["b"][0].tolist() == [1, 2, 3, 4]
    assert f.stats.hits == 2


def test_exceptions_pass_and_nothing_is_stored(x):
    error = KeyError("mine")

    @memoize
    def f(value):
        raise error

    for _ in range(2):
        with pytest.raises(KeyError) as raised:
            f(x)
        assert raised.value is error
    assert f.stats.errors == {"KeyError": 2}
    assert (len(f.cache), f.stats.calls) == (0, 2)


def test_wrong_arguments_are_told_by_the_function(x):
    f = memoize(lambda value: value)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        f(x, x)


def test_what_has_no_key_runs_each_time():
    @memoize
    def f(value, more=()):
        return 1

    class Opaque:
        pass

    for value in (Opaque(), iter([]), Opaque, np.array([object()]), {"a": [Opaque()]}):
        f(value)
    nest: list = []
    nest.append(nest)
    f(nest)
    f(10**5000)
    assert f.stats.hits == f.stats.misses == 0
    assert sum(f.stats.bypasses.values()) == 7
    with pytest.raises(errors.Unsupported, match=r"\[memoize\] .*f: argument value"):
        f.key(Opaque())


def test_many_reasons_are_counted_as_others():
    f = memoize(lambda value: 1)
    for i in range(100):
        f([*range(i), object()])
    assert len(f.stats.bypasses) == 65
    assert f.stats.bypasses["other reasons"] == 36


def test_generators_and_classes_are_refused():
    def generator(x):
        yield x

    async def asynchronous(x):
        yield x

    for function in (generator, asynchronous):
        with pytest.raises(errors.Unsupported, match="is a generator function.*return a list"):
            memoize(function)
    for thing in (Config, 3, memoize(helper)):
        with pytest.raises(errors.Unsupported, match="expected a function"):
            memoize(thing)
    with pytest.raises(errors.InvalidArgument, match="put @staticmethod above"):
        memoize(staticmethod(helper))


def test_recursion_and_the_same_call_from_within():
    @memoize
    def fibonacci(n):
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(60) == 1548008755920
    assert fibonacci.stats.misses == 61
    assert fibonacci.stats.assumptions == []

    @memoize(ignore=["depth"])
    def nested(x, depth):
        return nested(x, depth - 1) + 1 if depth else 0

    assert nested(1, 3) == 3
    assert nested.stats.bypasses == {"called for the same arguments by itself": 3}


def test_threads_run_a_call_once(x):
    started = threading.Barrier(8)
    runs = 0

    @memoize
    def f(value):
        nonlocal runs
        runs += 1
        threading.Event().wait(0.05)
        return value * 2

    results = []

    def ask():
        started.wait()
        results.append(f(x))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runs == 1
    assert (f.stats.hits, f.stats.misses) == (7, 1)
    assert len({result.ctypes.data for result in results}) == 8


def test_caches_are_shared_and_cleared_apart(x):
    cache = tk.ActivationCache("1 MiB")
    double = memoize(cache=cache)(lambda value: value * 2)

    @memoize(cache=cache)
    def triple(value):
        return value * 3

    double(x), triple(x)
    assert double.cache is triple.cache is cache
    assert len(cache) == 2
    triple.cache_clear()
    assert len(cache) == 1
    assert triple.stats.calls == 0
    double(x), triple(x)
    assert (double.stats.hits, triple.stats.misses) == (1, 1)


def test_a_cache_of_its_own_is_made_late(x):
    f = memoize(memory="1 MiB")(lambda value: value)
    assert f._cache is None
    assert f.stats.cache.bound == 0
    f(x)
    assert f.cache.stats.bound == 1 << 20
    for options in ({"memory": "1 MiB"}, {"disk": "a"}, {"disk_limit": 1}):
        with pytest.raises(errors.InvalidArgument, match="expected one of them"):
            memoize(cache=f.cache, **options)
    with pytest.raises(errors.InvalidArgument, match=r"\[memoize\] cache is dict"):
        memoize(cache={})
    with pytest.raises(errors.InvalidArgument):
        memoize(memory="much")


def test_kill_switches_hold(x):
    runs = 0

    @memoize
    def f(value):
        nonlocal runs
        runs += 1
        return value

    f(x)
    with tk.disabled():
        f(x)
    f(x)
    assert runs == 2
    assert f.stats.bypasses == {"tensorkey.disabled()": 1}


@memoize
def module_level(value):
    """Say what it does."""
    return value


def test_it_looks_like_the_function(x):
    assert module_level.__doc__ == "Say what it does."
    assert module_level.__wrapped__(x) is x
    assert pickle.loads(pickle.dumps(module_level)) is module_level
    assert isinstance(module_level.key(x), tk.Key)
    assert "memoized <function module_level" in repr(module_level)


def test_subclasses_with_fields_count_by_all_they_hold():
    @dataclasses.dataclass
    class Output(dict):
        a: int

    @dataclasses.dataclass
    class Text(str):
        a: int

        def __new__(cls, a):
            return super().__new__(cls, a)

    f = memoize(lambda value: 0)
    one, two = Output(1), Output(1)
    two["b"] = 2
    assert f.key(one) != f.key(two)
    with pytest.raises(errors.Unsupported, match="Text"):
        f.key(Text(1))


def test_objects_that_raise_when_they_are_read(x):
    class Rude(tuple):
        __slots__ = ()

        def __iter__(self):
            raise RuntimeError("leave me alone")

    f = memoize(lambda value: value)
    rude = Rude((1, 2))
    assert f(rude) is rude
    assert memoize(lambda: [rude])() == [rude]
    assert f.stats.bypasses == {"the call cannot be read: RuntimeError: leave me alone": 1}


def test_an_interrupt_passes_and_another_call_runs(x):
    interrupts = [KeyboardInterrupt, SystemExit]

    @memoize
    def f(value):
        if interrupts:
            raise interrupts.pop()
        return value

    for kind in (SystemExit, KeyboardInterrupt):
        with pytest.raises(kind):
            f(x)
    f(x)
    f(x)
    assert (f.stats.hits, f.stats.misses) == (1, 1)
