"""Scripted modules by their graphs: the same for every load of one file, in any process."""

import importlib.util
import re
import struct
import subprocess
import sys
import textwrap
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey._fingerprint import Fingerprint  # noqa: E402
from tensorkey._torch_modules import TorchModules  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def double(x, factor: float):
    return x * factor * 2


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.factor = 0.5
        self.unused = 1

    def forward(self, x):
        return double(self.linear(x), self.factor)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = Inner()
        self.two = Inner()
        self.drop = nn.Dropout(0.5)
        self.register_buffer("offset", torch.zeros(2))
        self.table = torch.ones(2)  # an attribute, no buffer
        self.numbers = [1, 2]
        self.by_name = {"a": 1.5}

    def forward(self, x):
        y = self.drop(self.one(x) + self.two(x)) + self.offset + torch.tensor([1.0, 0.25])
        return y * self.numbers[0] + self.table * 0.12345678 + self.by_name["a"]

    @torch.jit.export
    def encode(self, x):
        return self.one(x)


def quietly(function, *args):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return function(*args)


def script(change=None):
    torch.manual_seed(0)
    layer = Outer().eval()
    if change is not None:
        change(layer)
    return quietly(torch.jit.script, layer)


def state(layer):
    return Fingerprint(TorchModules(), lambda: layer, "strict").check()


@pytest.fixture
def path(tmp_path):
    file = str(tmp_path / "layer.pt")
    quietly(torch.jit.save, script(), file)
    return file


def load(file):
    return quietly(torch.jit.load, file)


def test_two_loads_of_a_file_agree(path):
    one, two = load(path), load(path)
    assert state(one) == state(two)
    for _ in range(4):  # the executor optimises graphs of its own
        one(torch.ones(1, 2))
    assert state(one) == state(two)


def test_two_processes_agree_on_a_file(path):
    program = textwrap.dedent(
        """
        import sys, warnings
        import torch
        from tensorkey._fingerprint import Fingerprint
        from tensorkey._torch_modules import TorchModules

        warnings.simplefilter("ignore")
        for _ in range(int(sys.argv[2])):
            layer = torch.jit.load(sys.argv[1])
        state = Fingerprint(TorchModules(), lambda: layer).check()
        print(state.structure.hex(), state.weights.hex())
        """
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", program, path, loads], capture_output=True, text=True, check=True
        ).stdout.split()
        for loads in ("1", "3")
    ]
    here = state(load(path))
    assert found == [[here.structure.hex(), here.weights.hex()]] * 2


CHANGES = {
    "a parameter": lambda m: m.one.linear.weight.data.add_(1),
    "a buffer": lambda m: m.offset.add_(1),
    "a tensor that is no buffer": lambda m: m.table.add_(1),
    "an attribute": lambda m: setattr(m.two, "factor", 0.25),
    "an attribute's type": lambda m: setattr(m, "by_name", {"a": 1.5, "b": 2.0}),
    "an item of a list": lambda m: m.numbers.__setitem__(0, 3),
    "the training flag": lambda m: m.train(),
    "a submodule": lambda m: setattr(m, "drop", nn.Identity()),
    "a shared submodule": lambda m: setattr(m, "two", m.one),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_before_scripting_shows(name):
    assert state(script(CHANGES[name])).digest != state(script()).digest


AFTERWARDS = {
    "a parameter": lambda m: m.one.linear.weight.data.add_(1),
    "a new parameter": lambda m: setattr(m.one.linear, "weight", nn.Parameter(torch.ones(2, 2))),
    "a buffer": lambda m: m.offset.add_(1),
    "a tensor that is no buffer": lambda m: m.table.add_(1),
    "an attribute": lambda m: setattr(m.two, "factor", 0.25),
    "a list": lambda m: setattr(m, "numbers", [3, 2]),
    "a dict": lambda m: setattr(m, "by_name", {"a": 2.0}),
    "the training flag": lambda m: m.train(),
}


@pytest.mark.parametrize("name", AFTERWARDS)
def test_what_is_changed_in_a_loaded_module_shows(name, path):
    layer = load(path)
    tracker = Fingerprint(TorchModules(), lambda: layer, "strict")
    before = tracker.check()
    assert tracker.check() == before
    AFTERWARDS[name](layer)
    after = tracker.check()
    assert after.changed
    assert after.digest == state(layer).digest != before.digest


def test_what_the_code_does_not_use_does_not_count():
    assert state(script(lambda m: setattr(m.one, "unused", 2))) == state(script())


def with_source(tmp_path, name, body):
    source = tmp_path / f"{name}.py"
    source.write_text(
        "import torch\nfrom torch import nn\n\n"
        "def helper(x, y: float):\n    return " + body + "\n\n"
        "class Made(nn.Module):\n    def forward(self, x):\n        return helper(x, 0.5)\n"
    )
    return quietly(torch.jit.script, made(source))


def made(source):
    spec = importlib.util.spec_from_file_location("made", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Made()


def test_the_code_of_functions_that_are_called_counts(tmp_path):
    one = with_source(tmp_path, "one", "x + y")
    assert state(one) == state(with_source(tmp_path, "two", "x + y"))  # and their files do not
    assert state(one) != state(with_source(tmp_path, "three", "x - y"))


@pytest.mark.parametrize(
    ("one", "other"),
    [("x + 0.123456781", "x + 0.123456782"), ("x + 1", "x + 1.0"), ("x + 0.0", "x - 0.0")]
    + [("x + float(str(y) == 'a')", "x + float(str(y) == 'b')")],
)
def test_constants_count_to_the_last_bit(one, other, tmp_path):
    assert state(with_source(tmp_path, "a", one)) != state(with_source(tmp_path, "b", other))


def test_weights_in_a_frozen_module_are_tensors(path):
    frozen = quietly(torch.jit.freeze, load(path))
    again = quietly(torch.jit.freeze, load(path))
    assert state(frozen) == state(again)
    tracker = Fingerprint(TorchModules(), lambda: frozen, "strict")
    tracker.check()
    shapes = {tuple(tensor.shape) for tensor in tracker.reading().tensors}
    assert {(2, 2), (2,)} <= shapes
    changed = load(path)
    changed.one.linear.weight.data[0, 0] += 2**-20  # less than a text shows
    assert state(quietly(torch.jit.freeze, changed)).weights != state(frozen).weights


def test_a_traced_module_is_read():
    def trace(scale):
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).eval()
        layer[0].weight.data.mul_(scale)
        return quietly(torch.jit.trace, layer, torch.ones(1, 2))

    assert state(trace(1)) == state(trace(1))
    assert state(trace(1)).structure == state(trace(2)).structure
    assert state(trace(1)).weights != state(trace(2)).weights


def test_a_scripted_module_inside_another_counts(path):
    def build(file):
        return nn.Sequential(load(file), nn.ReLU())

    layer = build(path)
    assert state(layer) == state(build(path))
    tracker = Fingerprint(TorchModules(), lambda: layer, "strict")
    tracker.check()
    layer[0].two.factor = 0.75
    assert tracker.check().changed


def test_the_guard_sees_a_scripted_modules_tensors(path):
    layer = load(path)
    tracker = Fingerprint(TorchModules(), lambda: layer, "guard")
    tracker.check()
    assert tracker.check().pending
    with torch.no_grad():
        layer.one.linear.weight.add_(1)
    assert tracker.check().changed


def test_objects_in_a_scripted_module_are_refused():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)))
        layer = torch.jit.script(packed)
    with pytest.raises(errors.Unsupported, match="cannot be read"):
        state(layer)


BRANCHES = """
import warnings

import torch
from torch import nn

class Made(nn.Module):
    def forward(self, x, y: int):
        if y > 1:
            warnings.warn("large")
            for _ in range(y):
                x = x + 1
        return x
"""


def test_neither_files_nor_numbers_of_the_process_count(tmp_path):
    """Inner blocks print their place in a file, warnings a counter."""
    found = []
    for i in range(2):
        source = tmp_path / f"branches{i}.py"
        source.write_text("\n" * i + BRANCHES)
        layer = quietly(torch.jit.script, made(source))
        quietly(torch.jit.save, layer, str(tmp_path / "made.pt"))
        found += [state(layer), state(load(str(tmp_path / "made.pt")))]
    assert "branches1" in layer.graph.str(False)
    assert "warn_id" in str(layer.graph)
    assert found[0] == found[2]
    assert found[1] == found[3]


def item(tag, body):
    return tag + len(body).to_bytes(8, "little") + body


def text(value):
    return item(b"S", value.encode())


def test_the_recipe_of_the_format_gives_the_same_bytes(tmp_path):
    """docs/key_format.md, "Structure of a TorchScript module", by hand for a small module."""
    blake3 = pytest.importorskip("blake3").blake3

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.factor = 0.5

        def forward(self, x):
            return self.linear(x) * self.factor

    torch.manual_seed(0)
    layer = quietly(torch.jit.script, Small().eval())

    def code(module):
        graph = module.inlined_graph.str(False)
        return re.sub(r"___torch_mangle_\d+\.", "", graph)

    def head(module, path):
        kind = re.sub(r"___torch_mangle_\d+\.", "", module._c.qualified_name)
        return text(kind) + text(path) + item(b"l", text("forward") + text(code(module)))

    def tensor(path):
        return item(b"n", text("tensor") + text(path))

    half = item(b"f", struct.pack("<d", 0.5))
    outer = head(layer, "layer") + item(b"l", b"") + item(b"d", text("factor") + half)
    bias = text("bias") + tensor("layer.linear.bias")
    weight = text("weight") + tensor("layer.linear.weight")
    inner = head(layer.linear, "layer.linear") + item(b"l", b"") + item(b"d", bias + weight)
    found = state(layer)
    assert found.structure == blake3(item(b"J", outer + inner)).digest()
    keys = b"".join(
        text(f"layer.linear.{name}") + item(b"K", bytes(tk.key(getattr(layer.linear, name))))
        for name in ("bias", "weight")
    )
    assert found.weights == blake3(item(b"t", keys)).digest()
