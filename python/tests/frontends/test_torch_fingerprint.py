"""What each mode of a fingerprint sees of what can be done to a module, and when."""

import copy
import dataclasses
import subprocess
import sys
import textwrap

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey._fingerprint import Fingerprint  # noqa: E402
from tensorkey._torch_modules import TorchModules  # noqa: E402


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.plain = nn.BatchNorm1d(3)
        self.plain.num_batches_tracked = None
        self.plain.momentum = 0.1
        self.scale = 1.0

    def forward(self, x):
        return self.plain(self.norm(self.linear(x))) * self.scale


def make():
    torch.manual_seed(0)
    return Layer().eval()


def fingerprint(layer, mode="auto", **options):
    return Fingerprint(TorchModules(), lambda: layer, mode, **options)


def digest(layer):
    return fingerprint(layer, "strict").check().digest


def in_window(layer, mode="auto", **options):
    """A fingerprint whose next checks are guarded only."""
    tracker = fingerprint(layer, mode, **options)
    tracker.check()
    tracker.check()
    for _ in range(8):
        tracker.observe(1e-12)  # a layer so fast that a strict check is due every 1000 calls
    assert tracker.interval == (1000 if mode == "auto" else 0)
    if mode == "auto":
        assert tracker.check().strict
    assert tracker.check().pending
    return tracker


def step(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()


def load(layer, assign):
    state = layer.state_dict()
    for key in state:
        state[key] = state[key] + 1
    layer.load_state_dict(state, assign=assign)


@torch.no_grad()
def copy_in(layer):
    layer.linear.weight.copy_(torch.zeros(3, 3))


def merge(layer):
    layer.linear.weight.data += torch.ones(3, 1) @ torch.ones(1, 3)


def average(layer):
    for parameter in layer.parameters():
        parameter.data.mul_(0.9).add_(torch.ones_like(parameter), alpha=0.1)


def write_through_numpy(layer):
    layer.linear.weight.detach().numpy()[0, 0] += 1


def train_statistics(norm):
    norm.train()
    norm(torch.randn(8, 3))
    norm.eval()


def patch(layer):
    layer.forward = lambda x: x


def replace_parameter(layer):
    layer.linear.weight = nn.Parameter(torch.zeros(3, 3))


GUARD_SEES = {
    "optimiser step": step,
    "copy_": copy_in,
    "load_state_dict": lambda m: load(m, assign=False),
    "load_state_dict, assign": lambda m: load(m, assign=True),
    "data = new": lambda m: setattr(m.linear.weight, "data", torch.zeros(3, 3)),
    "data = another dtype": lambda m: m.half(),
    "data = another shape": lambda m: setattr(m.linear.weight, "data", m.linear.weight.data[:2]),
    "data = other strides": lambda m: setattr(m.linear.weight, "data", m.linear.weight.data.T),
    "BatchNorm statistics": lambda m: train_statistics(m.norm),
    "replaced submodule": lambda m: setattr(m, "linear", nn.Linear(3, 3)),
    "replaced Parameter": replace_parameter,
    "removed Parameter": lambda m: setattr(m.linear, "bias", None),
    "another buffer": lambda m: m.register_buffer("extra", torch.ones(1)),
    "a hook": lambda m: m.linear.register_forward_hook(lambda *args: None),
    "a pre-hook": lambda m: m.norm.register_forward_pre_hook(lambda *args: None),
}
GUARD_MISSES = {
    "data.copy_": lambda m: m.linear.weight.data.copy_(torch.zeros(3, 3)),
    "data +=, an adapter merged": merge,
    "average on data": average,
    "_foreach on data": lambda m: torch._foreach_mul_([p.data for p in m.parameters()], 0.5),
    "NumPy alias": write_through_numpy,
    "BatchNorm statistics, not counted": lambda m: train_statistics(m.plain),
    "eps": lambda m: setattr(m.norm, "eps", 1e-3),
    "a plain attribute": lambda m: setattr(m, "scale", 0.5),
    "a patched forward": patch,
    "train()": lambda m: m.train(),
}
CHANGES = GUARD_SEES | GUARD_MISSES


@pytest.mark.parametrize("name", CHANGES)
def test_strict_sees_every_change_at_once(name):
    layer = make()
    tracker = fingerprint(layer, "strict")
    before = tracker.check()
    assert (before.strict, before.pending, before.changed) == (True, False, False)
    assert tracker.check() == before
    CHANGES[name](layer)
    after = tracker.check()
    assert after.digest != before.digest
    assert (after.strict, after.pending, after.changed) == (True, False, True)
    assert tracker.check() == dataclasses.replace(after, changed=False)
    assert after.digest == digest(layer)


@pytest.mark.parametrize("mode", ["auto", "guard"])
@pytest.mark.parametrize("name", GUARD_SEES)
def test_a_guard_sees_at_once(mode, name):
    layer = make()
    tracker = in_window(layer, mode)
    before = tracker.check()
    GUARD_SEES[name](layer)
    after = tracker.check()
    assert (after.strict, after.pending, after.changed) == (True, False, True)
    assert after.digest != before.digest
    assert after.digest == digest(layer)


@pytest.mark.parametrize("mode", ["auto", "guard"])
@pytest.mark.parametrize("name", GUARD_MISSES)
def test_what_a_guard_misses_the_next_strict_check_sees(mode, name):
    layer = make()
    tracker = in_window(layer, mode)
    before = tracker.check()
    GUARD_MISSES[name](layer)
    late = tracker.check()
    assert late == before  # the window: this process may give an old answer here,
    assert late.pending
    tracker.demand()
    after = tracker.check()  # and what it computed is dropped here
    assert (after.strict, after.pending, after.changed) == (True, False, True)
    assert after.digest == digest(layer) != before.digest
    assert tracker.check().pending


def test_auto_is_strict_after_as_many_calls_as_it_says():
    layer = make()
    tracker = in_window(layer)
    write_through_numpy(layer)
    states = [tracker.check() for _ in range(tracker.interval)]
    assert sum(state.strict for state in states) == 1
    assert sum(state.changed for state in states) == 1
    assert states[-1].digest == digest(layer)


class Book:
    """The engine's part: what is computed in guarded calls waits, what is known is on disk."""

    def __init__(self, layer, disk):
        self.layer = layer
        self.tracker = fingerprint(layer)
        self.disk = disk
        self.waiting = {}

    def call(self, row):
        state = self.tracker.check()
        if state.changed:
            self.waiting.clear()
        elif state.strict:
            self.disk |= self.waiting
            self.waiting.clear()
        key = (state.digest, row)
        known = self.waiting.get(key, self.disk.get(key))
        if known is None:
            with torch.no_grad():
                known = self.layer(torch.full((1, 3), float(row)))
            (self.waiting if state.pending else self.disk)[key] = known
        return known

    def flush(self):
        if self.tracker.settle():
            self.disk |= self.waiting
        self.waiting.clear()


# After these the layer does not run on its inputs, or not twice alike.
UNRUNNABLE = {"data = another dtype", "data = another shape", "train()"}


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in UNRUNNABLE])
def test_an_unseen_change_is_never_stored(name):
    disk, layer = {}, make()
    book = Book(layer, disk)
    for _ in range(2):
        book.call(0)
    for _ in range(8):
        book.tracker.observe(1e-12)
    for row in range(5):
        book.call(row)
    assert book.waiting
    book.flush()
    assert not book.waiting
    stored = len(disk)
    for row in range(5, 10):
        book.call(row)
    CHANGES[name](layer)
    for row in range(10, 15):
        book.call(row)
    book.flush()
    known = {digest(layer): layer, digest(make()): make()}
    assert len(known) == 2
    assert len(disk) >= stored
    for (state, row), answer in disk.items():
        with torch.no_grad():
            assert torch.equal(answer, known[state](torch.full((1, 3), float(row)))), row
    # Another process with the changed layer.
    for row in range(15):
        with torch.no_grad():
            truth = layer(torch.full((1, 3), float(row)))
        assert torch.equal(disk.get((digest(layer), row), truth), truth)


def test_settling_finds_the_same_or_drops():
    layer = make()
    tracker = in_window(layer)
    assert tracker.settle()
    merge(layer)
    assert not tracker.settle()
    assert not tracker.check().changed  # who settled knows of it
    assert tracker.settle()


def test_nothing_was_found_before_the_first_check():
    assert not fingerprint(make()).settle()


def test_earlier_weights_give_the_earlier_digest():
    layer = make()
    kept = copy.deepcopy(layer.state_dict())
    tracker = in_window(layer)
    before = tracker.check()
    step(layer)
    assert tracker.check().weights != before.weights
    layer.load_state_dict(kept)
    again = tracker.check()
    assert again.changed
    assert (again.structure, again.weights) == (before.structure, before.weights)


def test_a_hook_removed_gives_the_earlier_digest():
    layer = make()
    tracker = in_window(layer)
    before = tracker.check()
    handle = layer.linear.register_forward_hook(lambda *args: None)
    assert tracker.check().digest != before.digest
    assert tracker.guard.hooked()
    assert not tracker.check().pending  # strict while there is one
    handle.remove()
    assert tracker.check().digest == before.digest


def test_a_demand_is_for_one_check():
    tracker = in_window(make())
    tracker.demand()
    assert tracker.check().strict
    assert tracker.check().pending


def test_tensors_of_inference_mode_are_checked_strictly():
    with torch.inference_mode():
        layer = make()
    tracker = fingerprint(layer, "guard")
    before = tracker.check()
    assert tracker.guard is None
    assert tracker.check() == before
    assert before.strict
    with torch.inference_mode():
        layer.linear.weight.mul_(2)
    assert tracker.check().changed


def test_a_tensor_without_a_key_is_told_of_and_tried_again():
    layer = make()
    tracker = in_window(layer)
    layer.register_buffer("sparse", torch.zeros(2).to_sparse())
    for _ in range(2):
        with pytest.raises(errors.Unsupported, match="layout"):
            tracker.check()
    assert not tracker.settle()
    del layer.sparse
    state = tracker.check()
    assert state.strict
    assert not state.changed


def test_edited_code_shows_between_two_processes(tmp_path):
    module = textwrap.dedent(
        """
        import torch
        from torch import nn

        class Edited(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(2, 2)

            def helped(self, x):
                return HELPER

            def forward(self, x):
                return FORWARD
        """
    )
    program = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import torch
        from edited import Edited
        from tensorkey._fingerprint import Fingerprint
        from tensorkey._torch_modules import TorchModules

        torch.manual_seed(0)
        layer = Edited()
        state = Fingerprint(TorchModules(), lambda: layer).check()
        print(state.structure.hex(), state.weights.hex())
        """
    )
    found = {}
    versions = {
        "first": ("", "x * 2", "self.helped(x)"),
        "the same": ("", "x * 2", "self.helped(x)"),
        "moved down": ("\n\n\n", "x * 2", "self.helped(x)"),
        "forward": ("", "x * 2", "self.helped(x) + 1"),
        "helper method": ("", "x * 3", "self.helped(x)"),
    }
    for name, (above, helper, forward) in versions.items():
        source = module.replace("HELPER", helper).replace("FORWARD", forward)
        (tmp_path / "edited.py").write_text(above + source)
        run = [sys.executable, "-B", "-c", program, str(tmp_path)]
        found[name] = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    assert found["first"] == found["the same"] == found["moved down"]
    structures = {structure for structure, _ in found.values()}
    assert len(structures) == 3
    assert len({weights for _, weights in found.values()}) == 1
