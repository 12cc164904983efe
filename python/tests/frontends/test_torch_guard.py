"""The guard in C++, by itself."""

import gc
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey import _core, errors  # noqa: E402


def test_a_guard_over_nothing_sees_nothing():
    guard = _core.Guard([])
    assert guard.unchanged()
    assert not guard.hooked()
    assert not guard.trainable()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(()),
        torch.zeros(0, 3),
        torch.zeros(4, 6)[::2, 1:].T,
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.complex64).conj(),
        nn.Parameter(torch.zeros(3)),
    ],
    ids=["scalar", "empty", "strided", "bool", "conj", "Parameter"],
)
def test_any_tensor_can_be_guarded(tensor):
    guard = _core.Guard([torch.ones(2), tensor])
    for _ in range(3):
        assert guard.unchanged()
    with torch.no_grad():
        tensor.zero_()
    assert not guard.unchanged()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: setattr(x, "data", x.data.clone()),
        lambda x: setattr(x, "data", x.data[:1]),
        lambda x: setattr(x, "data", x.data.T),
        lambda x: setattr(x, "data", x.data.view(torch.int32)),
        lambda x: x.resize_(1),
        lambda x: x.add_(1),
        lambda x: x[0].add_(1),
        lambda x: torch._foreach_add_([x], 1),
    ],
    ids=["pointer", "shape", "strides", "dtype", "resize", "write", "view", "foreach"],
)
def test_a_change_shows(change):
    tensor = torch.ones(2, 2)
    guard = _core.Guard([tensor])
    change(tensor)
    assert not guard.unchanged()


def test_dicts_must_hold_the_same_objects():
    one, two = nn.ReLU(), nn.ReLU()
    modules, empty = {"a": one, "b": two}, {}
    guard = _core.Guard([], [], [modules, empty])
    assert guard.unchanged()
    modules["a"] = nn.ReLU()
    assert not guard.unchanged()
    modules["a"] = one
    assert guard.unchanged()
    modules["a"], modules["b"] = two, one
    assert not guard.unchanged()
    modules |= {"a": one, "b": two}
    empty["c"] = None
    assert not guard.unchanged()
    empty.clear()
    del modules["b"]
    assert not guard.unchanged()


def test_hooks_and_gradients_are_asked_for_now():
    layer = nn.Linear(2, 2).requires_grad_(False)
    guard = _core.Guard(list(layer.parameters()), [layer._forward_hooks, layer._forward_pre_hooks])
    assert not guard.hooked()
    assert not guard.trainable()
    handle = layer.register_forward_pre_hook(lambda *args: None)
    layer.bias.requires_grad_(True)
    assert guard.hooked()
    assert guard.trainable()
    assert guard.unchanged()
    handle.remove()
    layer.bias.requires_grad_(False)
    assert not guard.hooked()
    assert not guard.trainable()


def test_a_tensor_that_becomes_unreadable_has_changed():
    tensor = torch.ones(2)
    guard = _core.Guard([tensor])
    tensor.data = torch.ones(2, device="meta")
    assert not guard.unchanged()


def test_what_has_no_version_is_refused():
    with torch.inference_mode():
        tensor = torch.ones(2)
    with pytest.raises(errors.Unsupported, match="inference mode"):
        _core.Guard([tensor])
    for other in ([1.0], bytearray(2), None):
        with pytest.raises(errors.Unsupported, match="has no version"):
            _core.Guard([other])
    with pytest.raises(errors.Unsupported, match="layout"):
        _core.Guard([torch.zeros(2).to_sparse()])
    for hooks, dicts in (([1], []), ([], [[]])):
        with pytest.raises(TypeError, match="sequence of dicts"):
            _core.Guard([], hooks, dicts)


def test_a_guard_in_a_cycle_is_collected():
    layer = nn.Linear(2, 2)
    layer.guard = _core.Guard(list(layer.parameters()), [layer._forward_hooks], [vars(layer)])
    layer.guard = _core.Guard([], [], [vars(layer)])
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
