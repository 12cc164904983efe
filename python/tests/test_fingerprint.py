"""Every change of a layer gives another fingerprint, and going back gives the earlier one."""

import dataclasses
import enum
import functools
import math
import subprocess
import sys
import textwrap

import pytest

from tensorkey._encoding import code, plain
from tensorkey._watch import Watch

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey._fingerprint import Fingerprint  # noqa: E402
from tensorkey._reading import Reading  # noqa: E402
from tensorkey._torch_modules import TorchModules  # noqa: E402


def fingerprint(layer):
    return Fingerprint(TorchModules(), lambda: layer)


def digest(layer):
    tracker = fingerprint(layer)
    return tracker.check().digest


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


@dataclasses.dataclass
class Config:
    depth: int = 2


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.scale = 1
        self.mode = Mode.FAST
        self.options = {"a": [1, 2], "b": (None, {3, 4})}
        self.dtype = torch.float32
        self.config = Config()
        self.table = torch.arange(4.0)  # not registered
        self.stages = [nn.ReLU()]  # nor these

    def forward(self, x):
        return self.norm(self.linear(x)) * self.scale


def make():
    torch.manual_seed(0)
    return Layer().eval()


def write_through_numpy(layer):
    layer.linear.weight.detach().numpy()[0, 0] += 1


def step(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def load(layer, assign):
    state = {key: value + 1 for key, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)


def copy_in(layer):
    with torch.no_grad():
        layer.linear.weight.copy_(torch.zeros(3, 3))


def train_statistics(layer):
    layer.norm.train()
    layer.norm(torch.randn(8, 3))
    layer.norm.eval()


CHANGES = {
    "optimizer step": step,
    "no_grad copy_": copy_in,
    "data.copy_": lambda m: m.linear.weight.data.copy_(torch.zeros(3, 3)),
    "data +=": lambda m: m.linear.weight.data.add_(1),
    "data = new": lambda m: setattr(m.linear.weight, "data", torch.zeros(3, 3)),
    "EMA on data": lambda m: m.linear.weight.data.lerp_(torch.zeros(3, 3), 0.1),
    "_foreach on data": lambda m: torch._foreach_mul_([m.linear.weight.data], 0.5),
    "NumPy alias": write_through_numpy,
    "load_state_dict": lambda m: load(m, assign=False),
    "load_state_dict, assign": lambda m: load(m, assign=True),
    "running statistics": train_statistics,
    "half a buffer": lambda m: m.norm.running_var.data.mul_(2),
    "new Parameter": lambda m: setattr(m.linear, "bias", nn.Parameter(torch.ones(3))),
    "removed Parameter": lambda m: setattr(m.linear, "bias", None),
    "new submodule": lambda m: setattr(m, "linear", nn.Linear(3, 3)),
    "same weights, other class": lambda m: setattr(m, "norm", nn.Identity()),
    "added submodule": lambda m: m.add_module("extra", nn.ReLU()),
    "buffer": lambda m: m.register_buffer("extra", torch.ones(1)),
    "eps": lambda m: setattr(m.norm, "eps", 1e-3),
    "train()": lambda m: m.train(),
    "train() of a part": lambda m: m.norm.train(),
    "int to bool": lambda m: setattr(m, "scale", True),
    "int to float": lambda m: setattr(m, "scale", 1.0),
    "zero": lambda m: setattr(m, "scale", 0.0),
    "minus zero": lambda m: setattr(m, "scale", -0.0),
    "NaN": lambda m: setattr(m, "scale", math.nan),
    "enum": lambda m: setattr(m, "mode", Mode.SLOW),
    "dtype": lambda m: setattr(m, "dtype", torch.float64),
    "item of a nested list": lambda m: m.options["a"].append(3),
    "item of a nested set": lambda m: m.options["b"][1].add(5),
    "key of a dict": lambda m: m.options.update(b2=m.options.pop("b")),
    "field of a dataclass": lambda m: setattr(m.config, "depth", 3),
    "unregistered tensor": lambda m: m.table.mul_(2),
    "unregistered module": lambda m: m.stages.__setitem__(0, nn.GELU()),
    "instance forward": lambda m: setattr(m, "forward", lambda x: x),
    "new attribute": lambda m: setattr(m, "extra", 1),
    "dtype of weights": lambda m: m.half(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows_at_once(name):
    layer = make()
    tracker = fingerprint(layer)
    before = tracker.check().digest
    assert tracker.check().digest == before
    CHANGES[name](layer)
    after = tracker.check().digest
    assert after != before
    assert after == digest(layer)  # what a fresh reading gives


def test_all_these_changes_differ_from_each_other():
    digests = set()
    for change in CHANGES.values():
        layer = make()
        change(layer)
        digests.add(digest(layer))
    same = {"load_state_dict", "load_state_dict, assign"}  # the same weights in two ways
    zeros = {"no_grad copy_", "data.copy_", "data = new"}
    assert len(digests) == len(CHANGES) - (len(same) - 1) - (len(zeros) - 1)


def test_going_back_finds_the_earlier_fingerprint():
    layer = make()
    tracker = fingerprint(layer)
    before = tracker.check()
    kept = {key: value.clone() for key, value in layer.state_dict().items()}
    step(layer)
    after = tracker.check()
    assert after.changed
    assert after.weights != before.weights
    assert after.structure == before.structure
    layer.load_state_dict(kept)
    assert tracker.check() == dataclasses.replace(before, changed=True)
    assert tracker.check() == before
    layer.scale = 7
    after = tracker.check()
    assert after.structure != before.structure
    assert after.weights == before.weights
    layer.scale = 1
    tracker.check()
    assert tracker.check() == before


def test_gradients_and_requires_grad_are_not_content():
    layer = make()
    before = digest(layer)
    layer(torch.ones(2, 3)).sum().backward()
    layer.requires_grad_(False)
    assert digest(layer) == before


def test_equal_layers_agree_and_names_count():
    assert digest(make()) == digest(make())
    one = nn.Sequential(nn.ReLU(), nn.Tanh())
    assert digest(one) != digest(nn.Sequential(nn.Tanh(), nn.ReLU()))


def test_swapped_modules_differ():
    layer = make()
    layer.first, layer.second = nn.ReLU(), nn.Tanh()
    before = digest(layer)
    layer.first, layer.second = layer.second, layer.first
    assert digest(layer) != before


def test_swapped_tensors_and_modules_in_containers_differ():
    def build(swap):
        layer = nn.Module()
        one, two = torch.zeros(2), torch.ones(2)
        layers = nn.Linear(1, 1), nn.Linear(1, 1)
        if swap == "tensors":
            one, two = two, one
        layer.tables = {0: one, 1: two}
        layer.partial = functools.partial(lambda x, y=one: x, two)
        layer.modules_by_number = {0: nn.ReLU(), 1: nn.Tanh()}
        layer.twins = {0: layers[0], 1: layers[1]}
        layer.zcurrent = layers[swap == "modules"]
        return layer

    torch.manual_seed(0)
    weights = [build("").twins[i].state_dict() for i in range(2)]
    seen = set()
    for swap in ("", "tensors", "modules"):
        layer = build(swap)
        for i, state in enumerate(weights):
            layer.twins[i].load_state_dict(state)
        seen.add(digest(layer))
    assert len(seen) == 3


def test_a_shared_module_and_a_cycle_end():
    layer = make()
    layer.again = layer.linear
    layer.options["self"] = layer.options
    layer.__dict__["parent"] = layer
    assert digest(layer) == digest(layer)


def test_code_counts_and_its_place_does_not():
    source = "class L(nn.Module):\n    def forward(self, x):\n        return x * {}\n"

    def build(factor, filename, lines=0):
        space = {"nn": nn, "__name__": "somewhere"}
        exec(compile("\n" * lines + source.format(factor), filename, "exec"), space)
        return space["L"]()

    assert digest(build(2, "a.py")) == digest(build(2, "b.py", lines=9))
    assert digest(build(2, "a.py")) != digest(build(3, "a.py"))


def test_code_below_the_framework_and_in_decorators_counts():
    def build(factor):
        class Base(nn.Module):
            @torch.no_grad()
            def helper(self, x):
                return x * factor

        class Top(Base):
            @staticmethod
            def forward(x):
                return x

        return Top()

    assert digest(build(2)) == digest(build(2))
    assert digest(build(2)) != digest(build(3))


def test_a_class_changed_in_place_shows():
    class Patched(nn.Module):
        def forward(self, x):
            return x

    layer = Patched()
    tracker = fingerprint(layer)
    seen = [tracker.check().digest]
    Patched.forward = lambda self, x: x + 1
    seen.append(tracker.check().digest)
    Patched.forward.__code__ = (lambda self, x: x + 2).__code__  # as reloaders do
    seen.append(tracker.check().digest)
    Patched.scale = 3
    seen.append(tracker.check().digest)
    layer.__class__ = Layer
    assert len({*seen}) == 4


def test_functions_partials_and_closures_are_read():
    def build(power):
        layer = nn.Module()
        layer.activation = lambda x: x**power
        layer.partial = functools.partial(torch.clamp, min=power)
        layer.builtin = torch.nn.functional.relu
        return layer

    assert digest(build(2)) == digest(build(2))
    assert digest(build(2)) != digest(build(3))
    assert Reading(TorchModules(), build(2)).unread == []


def test_what_cannot_be_read_is_named_once():
    layer = make()
    layer.handle = thing = object()
    layer.generator = torch.Generator()
    layer.again = [thing, thing]
    unread = Reading(TorchModules(), layer).unread
    assert "layer.generator: torch._C.Generator" in unread
    assert sum("builtins.object" in text for text in unread) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (1, 1.0), (0.0, -0.0), ("1", b"1"), ((1,), [1]), ((1, (2,)), ((1, 2),))]
    + [("ab", "a"), (None, 0), (("a", "b"), ("ab", "")), (1j, 1.0)],
)
def test_different_values_have_different_encodings(one, other):
    assert plain(one) != plain(other)


def test_equal_values_have_equal_encodings():
    assert plain(math.nan) == plain(math.nan)
    assert plain(frozenset("abc")) == plain(frozenset("cba"))
    assert code((lambda x: x in {1, 2}).__code__) == code((lambda x: x in {2, 1}).__code__)
    with pytest.raises(TypeError):
        plain(object())


def test_the_fingerprint_is_the_same_in_another_process():
    program = textwrap.dedent(
        """
        import torch
        from torch import nn
        from tensorkey._fingerprint import Fingerprint
        from tensorkey._torch_modules import TorchModules

        class Custom(nn.Module):
            names = frozenset({"alpha", "beta", "gamma"})
            def forward(self, x):
                return x if x in {"delta", "epsilon"} else self.names

        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2), Custom())
        tracker = Fingerprint(TorchModules(), lambda: layer)
        print(tracker.check().digest.hex())
        """
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**__import__("os").environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_a_watch_sees_renames_and_reordering():
    options = {"scale": 2}
    watch = Watch()
    watch.add_dict(options)
    options["shift"] = options.pop("scale")
    assert not watch.unchanged()
    items = [1, 2]
    watch = Watch()
    watch.add_sequence(items)
    assert watch.unchanged()
    items.reverse()
    assert not watch.unchanged()
