"""Modes, ignore= and state= of a fingerprint, with a framework that is none."""

import pytest

from tensorkey import errors
from tensorkey._fingerprint import Fingerprint


class Part:
    """A layer: attributes are parts, bytearrays ("tensors") and plain values."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


class FakeGuard:
    def __init__(self, tensors):
        self.tensors = tensors
        self.lengths = list(map(len, tensors))

    def unchanged(self):
        return list(map(len, self.tensors)) == self.lengths

    def hooked(self):
        return False


class Parts:
    """A framework whose guard sees the lengths of tensors alone."""

    roots = frozenset({"tensorkey"})
    unguarded = None

    def tensor(self, value):
        return value if isinstance(value, bytearray) else None

    def leaf(self, value):
        return None

    def is_module(self, value):
        return isinstance(value, Part)

    def attributes(self, module):
        return vars(module)

    def containers(self, module):
        return iter(())

    def foreign(self, module, path, reading):
        return None

    def guard(self, tensors, modules):
        return FakeGuard(tensors)


class Unguarded(Parts):
    unguarded = "bytearrays count no versions"

    def guard(self, tensors, modules):
        return None


def make():
    inner = Part(weight=bytearray(b"inner"), calls=0, options={"depth": 1, "log": "a"})
    return Part(weight=bytearray(b"weight"), calls=0, inner=inner, name="layer")


def fingerprint(layer, mode="auto", framework=None, **options):
    return Fingerprint(framework or Parts(), lambda: layer, mode, **options)


def in_window(layer, mode="auto", **options):
    tracker = fingerprint(layer, mode, **options)
    tracker.check()
    tracker.check()
    for _ in range(8):
        tracker.observe(1e-12)
    tracker.check()
    assert tracker.check().pending
    return tracker


def digest(layer, **options):
    return fingerprint(layer, "strict", **options).check().digest


def test_auto_is_strict_until_eight_calls_ran_the_layer():
    tracker = fingerprint(make())
    assert tracker.check().strict
    for _ in range(7):
        tracker.observe(1e-12)
        assert tracker.check().strict
        assert tracker.interval == 1
    tracker.observe(1e-12)
    assert tracker.interval == 1000
    assert [tracker.check().strict for _ in range(1001)] == [True] + [False] * 999 + [True]


def test_guard_is_strict_first_and_when_demanded():
    tracker = fingerprint(make(), "guard")
    assert tracker.interval == 0
    assert tracker.check().strict
    assert not any(tracker.check().strict for _ in range(2000))
    tracker.demand()
    assert tracker.check().strict
    assert tracker.check().pending


def test_strict_is_strict():
    tracker = fingerprint(make(), "strict")
    for _ in range(8):
        tracker.observe(1e-12)
    assert tracker.interval == 1
    assert all(tracker.check().strict for _ in range(20))


def test_manual_reads_nothing_until_asked():
    def layer():
        raise AssertionError("read")

    tracker = Fingerprint(Parts(), layer, "manual")
    state = tracker.check()
    assert (state.structure, state.weights) == (bytes(32), bytes(32))
    assert (state.pending, state.strict, state.changed) == (False, False, False)
    tracker.demand()
    tracker.observe(1.0)
    assert tracker.check() == state
    assert tracker.settle()
    assert "scope" in tracker.assumptions()[0]
    assert fingerprint(make(), "manual").reading().names == ["layer.weight", "layer.inner.weight"]


def test_without_a_guard_auto_is_strict_and_guard_is_refused():
    layer = make()
    tracker = fingerprint(layer, framework=Unguarded())
    tracker.check()
    for _ in range(8):
        tracker.check()
        tracker.observe(1e-12)
    assert tracker.interval == 1
    assert all(tracker.check().strict for _ in range(20))
    layer.weight[0] ^= 1
    assert tracker.check().changed
    with pytest.raises(errors.Unsupported, match="count no versions"):
        fingerprint(layer, "guard", Unguarded())


def test_options_out_of_range_are_refused():
    with pytest.raises(errors.InvalidArgument, match="'never'"):
        fingerprint(make(), "never")
    with pytest.raises(errors.InvalidArgument, match="sequence of names"):
        fingerprint(make(), ignore="calls")


@pytest.mark.parametrize("mode", ["auto", "guard"])
def test_a_guard_that_sees_a_change_leads_to_a_strict_check(mode):
    layer = make()
    tracker = in_window(layer, mode) if mode == "auto" else fingerprint(layer, mode)
    tracker.check()
    layer.weight.append(1)
    state = tracker.check()
    assert state.strict
    assert state.changed
    assert state.digest == digest(layer)
    layer.weight[0] ^= 1
    assert tracker.check().pending


# ignore=


def change_calls(layer):
    layer.calls += 1


def change_inner(layer):
    layer.inner.calls += 1


def change_log(layer):
    layer.inner.options["log"] += "b"


@pytest.mark.parametrize(
    ("ignore", "unseen", "seen"),
    [
        (["calls"], [change_calls, change_inner], [change_log]),
        (["inner.calls"], [change_inner], [change_calls, change_log]),
        (["inner.options.log"], [change_log], [change_calls, change_inner]),
        (["inner"], [change_inner, change_log], [change_calls]),
        (["inner.options", "calls"], [change_calls, change_inner, change_log], []),
    ],
)
def test_what_is_ignored_is_not_read(ignore, unseen, seen):
    layer = make()
    tracker = fingerprint(layer, "strict", ignore=ignore)
    before = tracker.check()
    for change in unseen:
        change(layer)
        assert tracker.check() == before
    for change in seen:
        change(layer)
        assert tracker.check().changed
    assert digest(layer, ignore=ignore) == tracker.check().digest


def test_ignored_tensors_are_not_read():
    layer = make()
    tracker = fingerprint(layer, "strict", ignore=["inner.weight"])
    before = tracker.check()
    layer.inner.weight[0] ^= 1
    assert tracker.check() == before
    layer.weight[0] ^= 1
    assert tracker.check().changed


def test_what_is_ignored_is_an_assumption():
    tracker = fingerprint(make(), ignore=["calls", "absent"])
    assert tracker.assumptions() == [
        "ignored by the caller: layer.calls",
        "ignored by the caller: layer.inner.calls",
    ]


# state=


def test_state_is_read_by_every_strict_check():
    layer, table, options = make(), bytearray(b"table"), {"k": [1, 2]}
    tracker = fingerprint(layer, "strict", state={"table": table, "options": options})
    first = tracker.check()
    assert first.digest != digest(layer)
    table[0] ^= 1
    second = tracker.check()
    assert second.changed
    assert second.structure == first.structure
    assert second.weights != first.weights
    options["k"].append(3)
    third = tracker.check()
    assert third.changed
    assert third.structure != first.structure
    assert not tracker.check().changed


def test_state_may_be_a_function():
    values = [1]
    tracker = fingerprint(make(), "strict", state=lambda: values[0])
    before = tracker.check()
    values[0] = 2
    assert tracker.check().changed
    values[0] = 1
    tracker.check()
    assert tracker.check() == before


def test_a_layer_as_state_is_read_and_not_called():
    class Callable(Part):
        def __call__(self):
            raise AssertionError("called")

    other = Callable(weight=bytearray(b"other"))
    tracker = fingerprint(make(), "strict", state=other)
    tracker.check()
    other.weight[0] ^= 1
    assert tracker.check().changed


def test_tensors_of_the_state_are_guarded():
    table = bytearray(b"table")
    tracker = in_window(make(), state=lambda: [table])
    table.append(1)
    assert tracker.check().changed


def test_state_and_layer_do_not_mix():
    one = Part(weight=bytearray(b"a"))
    assert digest(one, state=bytearray(b"b")) != digest(
        Part(weight=bytearray(b"b")), state=bytearray(b"a")
    )
    assert digest(one, state=0) != digest(one, state=False)


def test_state_that_cannot_be_read_is_refused():
    tracker = fingerprint(make(), state=[object()])
    with pytest.raises(errors.Unsupported, match=r"state\[0\]: builtins.object"):
        tracker.check()
