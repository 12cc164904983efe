import copy
import gc
import pickle
import weakref

import pytest

from tensorkey import errors
from tensorkey._method import cached_method

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)
        self.calls = 0

    @cached_method
    def forward(self, x, power=1, *, names=()):
        """Raise to a power."""
        self.calls += 1
        return self.weight * x**power

    @cached_method(maxsize=2, state=lambda self: self.parameters())
    def aware(self, x):
        self.calls += 1
        return {"sum": (self.weight * x).sum(), "more": [x * 2, None]}

    @cached_method(maxsize=None)
    def unreadable(self, x):
        self.calls += 1
        return iter([x])


@pytest.fixture
def layer():
    return Layer()


def test_equal_content_is_one_call(layer):
    x = torch.arange(3.0)
    first = layer(x)
    assert torch.equal(layer(x.clone()), first)
    assert layer.calls == 1
    assert Layer.forward.cache_info(layer) == (1, 1, 0, 128, 1)
    assert Layer.forward.__doc__ == "Raise to a power."
    Layer.forward.cache_clear(layer)
    layer(x)
    assert layer.calls == 2


def test_every_argument_counts_with_its_type(layer):
    x = torch.arange(3.0)
    calls = [
        ((x,), {}),
        ((x.double(),), {}),
        ((x[:, None],), {}),
        ((x, 1), {}),
        ((x, True), {}),
        ((x, 1.0), {}),
        ((x,), {"power": 1}),
        ((x,), {"names": ("a",)}),
        ((x,), {"names": ["a"]}),
        ((x,), {"names": {"a": x}}),
        ((-torch.zeros(3),), {}),
        ((torch.zeros(3),), {}),
    ]
    for args, kwargs in calls:
        layer(*args, **kwargs)
    assert layer.calls == len(calls)
    for args, kwargs in calls:
        layer(*args, **kwargs)
    assert layer.calls == len(calls)


def test_changing_results_and_arguments_changes_no_hit(layer):
    x = torch.ones(3)
    for _ in range(3):
        result = layer.aware(x)
        assert result["sum"] == 3
        assert torch.equal(result["more"][0], torch.full((3,), 2.0))
        result["sum"].zero_()
        result["more"][0].zero_()
        result["more"].clear()
    assert layer.calls == 1
    x.zero_()
    assert layer.aware(x)["sum"] == 0


def test_state_is_asked_and_nothing_else(layer):
    x = torch.ones(3)
    layer.aware(x)
    layer(x)
    layer.weight.data.mul_(2)
    assert layer.aware(x)["sum"] == 6
    assert torch.equal(layer(x), x)  # as documented: only the arguments count
    layer.weight.data.mul_(0.5)
    assert layer.aware(x)["sum"] == 3
    assert layer.calls == 3


def test_the_least_recently_used_leave(layer):
    one, two, three = (torch.full((3,), float(i)) for i in range(3))
    for x in (one, two, one, three, one, two):
        layer.aware(x)
    assert Layer.aware.cache_info(layer) == (2, 4, 0, 2, 2)


def test_instances_are_apart_and_held_weakly(layer):
    x = torch.ones(3)
    other = Layer()
    layer(x)
    other(x)
    assert (layer.calls, other.calls) == (1, 1)
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


def test_copies_carry_no_results(layer):
    x = torch.ones(3)
    layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert Layer.forward.cache_info(twin).currsize == 0
        twin(x)
        assert twin.calls == 2


def test_gradients_are_never_lost(layer):
    x = torch.ones(3)
    with torch.no_grad():
        layer(x)
    layer.weight.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    y = x.clone().requires_grad_(True)
    layer(y).sum().backward()
    assert y.grad is not None
    with torch.no_grad():
        assert torch.equal(layer(y), x)
    assert layer.calls == 3
    assert Layer.forward.cache_info(layer).bypasses == 2


def test_hits_outside_inference_mode_feed_autograd(layer):
    x = torch.ones(3)
    with torch.inference_mode():
        layer(x)
        layer(x)
    result = layer(x)
    (result * nn.Parameter(torch.ones(3))).sum().backward()


def test_what_has_no_key_or_no_copy_runs_each_time(layer):
    for _ in range(2):
        layer(torch.ones(3), names=object())
        layer.unreadable(torch.ones(3))
    assert layer.calls == 4
    assert Layer.forward.cache_info(layer).bypasses == 2
    assert Layer.unreadable.cache_info(layer) == (0, 0, 2, None, 0)
    assert torch.func.vmap(layer)(torch.ones(2, 3)).shape == (2, 3)


def test_an_exception_passes_and_stores_nothing(layer):
    with pytest.raises(RuntimeError, match="size"):
        layer(torch.ones(4))
    assert Layer.forward.cache_info(layer).currsize == 0


def test_instances_need_not_be_hashable():
    class Plain:
        __hash__ = None

        @cached_method
        def double(self, x):
            return x * 2

    plain = Plain()
    assert plain.double(torch.ones(1)) == plain.double(torch.ones(1)) == 2
    assert Plain.double.cache_info(plain).hits == 1


@pytest.mark.parametrize("maxsize", [0, -1, 1.5, True, "2"])
def test_a_size_out_of_range_is_refused(maxsize):
    with pytest.raises(errors.InvalidArgument):
        cached_method(maxsize=maxsize)
