"""``memoize``: what of a function and of an instance counts, and what is assumed."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tensorkey._memoize import memoize

SCALE = 2
TABLE = [1, 2, 3]
counted = 0


def helper(x):
    return x + SCALE


@pytest.fixture
def x():
    return np.arange(4.0)


def test_closures_count(x):
    factor, table, weights, scale = 2, {"a": [1]}, np.ones(4), lambda v: v * 3

    @memoize
    def f(value):
        return scale(value * factor * table["a"][0] * weights)

    keys = [f.key(x)]
    assert f(x).tolist() == [0, 6, 12, 18]
    factor = 3
    keys.append(f.key(x))
    assert f(x).tolist() == [0, 9, 18, 27]
    table["a"].append(7)
    keys.append(f.key(x))
    weights[0] = 5
    keys.append(f.key(x))
    scale = lambda v: v * 4  # noqa: E731
    keys.append(f.key(x))
    assert f(x).tolist() == [0, 12, 24, 36]
    assert len(set(keys)) == 5
    factor, weights[0] = 2, 1
    table["a"].pop()
    scale = lambda v: v * 3  # noqa: E731
    assert f.key(x) == keys[0]
    assert f(x).tolist() == [0, 6, 12, 18]
    assert (f.stats.hits, f.stats.assumptions) == (1, [])


def test_what_the_function_writes_is_an_assumption(x):
    global counted
    runs, seen, log = 0, [], {"n": 0}

    @memoize
    def f(value):
        global counted
        nonlocal runs
        runs += 1
        counted += 1
        seen.append(value)
        log["n"] += 1
        return value * 2

    counted = 0
    for _ in range(3):
        f(x)
    assert (runs, counted, len(seen), log["n"]) == (1, 1, 1, 1)
    assert f.stats.assumptions == [
        "closure runs: the function writes it",
        "closure log: the function changes it",
        "closure seen: the function changes it",
        "global counted: builtins.int",
    ]


def test_what_cannot_be_read_is_an_assumption(x):
    thing = object()

    @memoize
    def f(value):
        return helper(value) + len(TABLE) + SCALE + (thing is None) + np.exp(0)

    f(x)
    assert f.stats.assumptions == [
        "closure thing: builtins.object",
        f"global helper: function {__name__}.helper",
        "global TABLE: builtins.list",
    ]
    assert "assumed   global helper" in str(f.stats)


def test_global_constants_count(x, monkeypatch):
    @memoize
    def f(value):
        return value * SCALE

    assert f(x)[1] == 2
    monkeypatch.setitem(globals(), "SCALE", 5)
    assert f(x)[1] == 5
    monkeypatch.setitem(globals(), "SCALE", 2)
    f(x)
    assert f.stats.hits == 1


def test_code_counts_and_its_place_does_not():
    def defined(source, name="f"):
        space = {"__name__": "somewhere"}
        exec(source, space)
        return memoize(space[name]).key(1)

    plain = defined("def f(x): return [i + 1 for i in x]")
    assert plain == defined("\n\n# moved\ndef f(x):\n    return [i + 1 for i in x]")
    assert plain != defined("def f(x): return [i + 2 for i in x]")
    assert plain != defined("def g(x): return [i + 1 for i in x]", "g")
    nested = "def f(x):\n def g(y): return (lambda z: z * {})(y)\n return g(x)"
    assert defined(nested.format(2)) != defined(nested.format(3))


def test_an_edited_function_in_place_is_seen(x):
    def f(value):
        return value * 2

    def g(value):
        return value * 3

    cached = memoize(f)
    assert cached(x)[1] == 2
    f.__code__ = g.__code__
    assert cached(x)[1] == 3


def test_functions_that_change_what_they_are_given_are_not_kept(x):
    table = [1]

    @memoize
    def fill(value):
        value[0] += 1
        return value

    @memoize
    def reads(value):
        change()
        return value * table[0]

    def change():
        table[0] += 1

    for _ in range(2):
        fill(x)
        reads(x)
    assert x[0] == 2
    assert fill.stats.bypasses == {"the function changed argument value": 2}
    assert reads.stats.bypasses == {"the function changed closure change, closure table": 2}


def test_tensor_defaults_count(x):
    default = np.ones(2)

    @memoize
    def f(value, weights=default):
        return value.sum() + weights.sum()

    assert f(x) == 8
    assert f(x, np.ones(2)) == 8
    assert f.stats.hits == 1
    default[0] = 2
    assert f(x) == 9


def test_methods_count_what_can_be_read_of_the_instance(x):
    class Scale:
        def __init__(self, factor, weights):
            self.factor, self.weights, self.calls, self.thing = factor, weights, 0, object()

        @memoize
        def apply(self, value):
            self.calls += 1
            return value * self.factor * self.weights

        @memoize(state=lambda self: [self.factor])
        def aware(self, value):
            self.calls += 1
            return value * self.factor

        @staticmethod
        @memoize
        def static(value):
            return value * 2

        @classmethod
        @memoize
        def made(cls, value):
            return value * 3

    one, twin = Scale(2, np.ones(4)), Scale(2, np.ones(4))
    for scale in (one, one, twin):
        assert scale.apply(x).tolist() == [0, 2, 4, 6]
    assert (one.calls, twin.calls) == (1, 0)
    twin.weights[0] = 7
    twin.apply(x)
    twin.factor = 3
    assert twin.apply(x).tolist() == [0, 3, 6, 9]
    assert twin.calls == 2
    assert Scale.apply.stats.assumptions[0] == "self.calls: the method writes it"
    assert "self.thing: builtins.object" in Scale.apply.stats.assumptions
    twin.weights[0] = 8
    twin.aware(x), twin.aware(x)
    assert Scale.aware.stats.hits == 1
    for _ in range(2):
        assert Scale.static(x)[1] == one.static(x)[1] == 2
        assert Scale.made(x)[1] == 3
    assert (Scale.static.stats.hits, Scale.made.stats.hits) == (3, 1)
    assert Scale.apply.key(one, x) == Scale.apply.key(one, value=x)


def test_an_edited_class_counts(x):
    def made(constant):
        space = {"memoize": memoize, "__name__": "somewhere"}
        source = f"""
class Layer:
    def inner(self, x): return x * {constant}
    @memoize
    def run(self, x): return self.inner(x)
"""
        exec(source, space)
        return space["Layer"]

    assert made(1).run.key(made(1)(), x) == made(1).run.key(made(1)(), x)
    assert made(1).run.key(made(1)(), x) != made(2).run.key(made(2)(), x)


def test_slots_are_read(x):
    class Slotted:
        __slots__ = ("factor",)

        def __init__(self, factor):
            self.factor = factor

        @memoize
        def apply(self, value):
            return value * self.factor

    assert [Slotted(n).apply(x)[1] for n in (2, 3, 2)] == [2, 3, 2]
    assert Slotted.apply.stats.hits == 1


def test_names_that_the_code_writes_elsewhere_still_count(x):
    factor = 2

    class Box:
        pass

    def made():
        @memoize
        def f(value):
            box = Box()
            box.factor = 7

            def inner():
                factor = 1

                def innermost():
                    nonlocal factor
                    factor += 1

                innermost()
                return factor

            return value * factor * inner()

        return f

    f = made()
    assert f(x)[1] == 4
    factor = 3
    assert f(x)[1] == 6


def test_bound_builtins_and_things_that_libraries_made_count(x):
    f = memoize(lambda join: join(["a", "b"]))
    assert (f("-".join), f("+".join), f("-".join)) == ("a-b", "a+b", "a-b")
    assert f.stats.hits == 1
    join = "-".join
    g = memoize(lambda: join(["a", "b"]))
    assert g() == "a-b"
    join = "+".join
    assert g() == "a+b"

    space = {"__name__": "somewhere", "helper": functools.partial(helper), "nest": ([1],)}
    space |= {"bound": "-".join, "exp": np.exp, "mean": np.mean, "linalg": np.linalg}
    exec("def f(x): return (helper, nest, bound, exp, mean, linalg, len, sum) and x", space)
    f = memoize(space["f"])
    f(x)
    assert f.stats.assumptions == [
        "global helper: functools.partial",
        "global nest: builtins.tuple",
        "global bound: builtins.builtin_function_or_method",
    ]


def test_instances_that_hold_more_than_attributes():
    class Bag(list):
        @memoize
        def total(self):
            return sum(self)

        @memoize(state=lambda self: [list(self)])
        def aware(self):
            return sum(self)

    class Base:
        __slots__ = ("__hidden",)

        def __init__(self, hidden):
            self.__hidden = hidden

        @property
        def hidden(self):
            return self.__hidden

    class Slotted(Base):
        def __init__(self, hidden):
            super().__init__(hidden)
            self.more = 1

        @memoize
        def get(self):
            return self.hidden

    assert (Bag([1]).total(), Bag([2]).total()) == (1, 2)
    assert list(Bag.total.stats.bypasses.values()) == [2]
    assert (Bag([1]).aware(), Bag([2]).aware(), Bag([1]).aware()) == (1, 2, 1)
    assert Bag.aware.stats.hits == 1
    assert [Slotted(n).get() for n in (1, 2, 1)] == [1, 2, 1]
    assert Slotted.get.stats.hits == 1


def test_a_function_that_is_also_put_into_a_class(x):
    @memoize
    def f(value):
        return value * 2

    class Holder:
        double = f

    for value in (x, x + 1, 1, 2, "a", "b", [1], [2], np.float32(1), np.float32(2)):
        assert np.array_equal(f(value), value * 2)


def test_globals_of_functions_that_are_given_count():
    space = {"__name__": "somewhere", "SCALE": 2, "helper": helper}
    exec("given = lambda v: helper(v) and v * SCALE", space)

    @memoize
    def f(function, value):
        return function(value)

    assert f(space["given"], 3) == 6
    space["SCALE"] = 3
    assert f(space["given"], 3) == 9
    assert f.stats.assumptions == [f"global helper: function {__name__}.helper"]
