"""Keys of the caller's own, tables of them, and entries that were computed elsewhere."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import errors  # noqa: E402
from tensorkey.torch import CachedLayer  # noqa: E402

FILES = {name: torch.full((8,), float(i)) for i, name in enumerate("abcdefghij")}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def frozen(width=8):
    return nn.Linear(8, width).requires_grad_(False)


class Loader:
    """Reads rows on demand, and remembers which."""

    def __init__(self, names):
        self.names, self.asked = names, []

    def __call__(self, positions):
        self.asked.append(positions)
        return torch.stack([FILES[self.names[i]] for i in positions])


def read(names):
    return torch.stack([FILES[name] for name in names])


# --- Hits and misses.


def test_a_function_reads_what_is_missing_alone():
    encoder = CachedLayer(frozen(), bypass="never")
    first = Loader("abcd")
    one = encoder.with_keys("abcd" and list("abcd"))(first)
    assert sorted(set(sum(first.asked, []))) == [0, 1, 2, 3]
    second = Loader("xbyd".replace("x", "e").replace("y", "f"))
    two = encoder.with_keys(list("ebfd"))(second)
    assert second.asked == [[0, 2]]
    assert torch.equal(two[1], one[1])
    assert torch.equal(two[3], one[3])
    third = Loader("abef")
    encoder.with_keys(list("abef"))(third)
    assert third.asked == []
    stats = encoder.stats
    assert (stats.lookups, stats.hits, stats.misses) == (12, 6, 6)
    assert any("an id is taken to mean one input" in text for text in stats.assumptions)


def test_what_is_returned_is_the_layers_own():
    layer = frozen()
    encoder = CachedLayer(layer, chunk=1, bypass="never")
    x = read("abca")
    rows = torch.cat([layer(row[None]) for row in x])
    assert torch.equal(encoder.with_keys([0, 1, 2, 0])(x), rows)
    assert torch.equal(encoder.with_keys([2, 1, 0])(Loader("")), rows[[2, 1, 0]])


def test_one_id_twice_in_a_batch_runs_once():
    encoder = CachedLayer(frozen(), bypass="never")
    load = Loader("aba")
    out = encoder.with_keys(["a", "b", "a"])(load)
    assert set(sum(load.asked, [])) == {0, 1}
    assert torch.equal(out[0], out[2])
    assert encoder.stats.misses == 2
    assert encoder.stats.duplicates == 1


def test_two_ids_of_one_content_are_two_rows():
    encoder = CachedLayer(frozen(), bypass="never")
    x = FILES["a"].expand(2, 8)
    out = encoder.with_keys(["a", "copy of a"])(x)
    assert torch.equal(out[0], out[1])
    assert encoder.stats.misses == 2


def test_types_of_ids_are_told_apart():
    encoder = CachedLayer(frozen(), bypass="never")
    ids = [1, "1", b"1", -1, 2**70, ""]
    encoder.with_keys(ids)(read("abcdef"))
    assert encoder.stats.misses == 6
    assert encoder.missing([*ids, "2", 1]) == [6]


@pytest.mark.parametrize(
    "ids",
    [
        np.array([1, 2], "int16"),
        [np.int64(1), np.uint8(2)],
        torch.tensor([1, 2]),
        [torch.tensor(1), torch.tensor(2)],
        (1, 2),
        range(1, 3),
        {1: "a", 2: "b"},
    ],
    ids=str,
)
def test_integers_of_all_kinds_are_one(ids):
    encoder = CachedLayer(frozen(), bypass="never")
    encoder.with_keys([1, 2])(read("ab"))
    assert encoder.missing(ids) == []


def test_text_of_numpy_is_text():
    encoder = CachedLayer(frozen(), bypass="never")
    encoder.with_keys(np.array(["a", "b"]))(read("ab"))
    assert encoder.missing(["a", "b"]) == []
    encoder.with_keys(np.array([b"a"]))(read("a"))
    assert encoder.missing([b"a"]) == []


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        ([True], "bool"),
        ([np.True_], "bool"),
        ([torch.tensor(True)], "Tensor"),
        (torch.tensor([True]), "bool"),
        ([1.0], "float"),
        ([np.float32(1)], "float32"),
        ([None], "NoneType"),
        ([("a", 1)], "tuple"),
        (np.ones((2, 2), int), "list"),
        ("abc", "expected a sequence"),
        (b"abc", "expected a sequence"),
        (7, "expected a sequence"),
        (np.int64(7), "expected a sequence"),
        (["\udce4.png"], "os.fsencode"),
    ],
    ids=str,
)
def test_other_ids_are_refused(ids, what):
    encoder = CachedLayer(frozen())
    for use in (encoder.with_keys, encoder.missing, encoder.to_table):
        with pytest.raises(errors.Unsupported, match=what):
            use(ids)


def test_one_id_a_row():
    encoder = CachedLayer(frozen())
    with pytest.raises(errors.InvalidArgument, match="2 keys for 3 rows"):
        encoder.with_keys(["a", "b"])(read("abc"))
    with pytest.raises(errors.InvalidArgument, match="gave 1 rows for 2 positions"):
        encoder.with_keys(["a", "b"])(lambda missing: read("a"))
    with pytest.raises(errors.InvalidArgument, match="more than tensors with a row"):
        CachedLayer(Scaled()).with_keys(["a"])(lambda missing: {"x": read("a"), "scale": 3.0})
    assert encoder.stats.misses == 0


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = frozen()

    def forward(self, x, scale=1.0):
        return self.linear(x) * scale

    def encode(self, x):
        return self.linear(x) + 1


def test_a_function_may_give_arguments_by_position_or_name():
    encoder = CachedLayer(Scaled(), bypass="never")
    one = encoder.with_keys(["a"])(lambda missing: (read("a"),))
    encoder.cache_clear()
    assert torch.equal(encoder.with_keys(["a"])(lambda missing: {"x": read("a")}), one)


def test_other_arguments_are_another_row():
    encoder = CachedLayer(Scaled(), bypass="never")
    once = encoder.with_keys(["a"])(read("a"))
    twice = encoder.with_keys(["a"])(read("a"), scale=2.0)
    assert torch.equal(2 * once, twice)
    assert torch.equal(encoder.with_keys(["a"])(read("a"), scale=2.0), twice)
    assert encoder.stats.misses == 2


def test_a_method_has_keys_of_its_own():
    layer, cache = Scaled(), tk.ActivationCache()
    forward = CachedLayer(layer, cache=cache, bypass="never")
    encode = CachedLayer(layer, cache=cache, method="encode", bypass="never")
    one = forward.with_keys(["a"])(read("a"))
    assert encode.missing(["a"]) == [0]
    assert torch.equal(encode.with_keys(["a"])(read("a")), one + 1)


def test_keys_of_ones_own_are_no_content_keys():
    encoder = CachedLayer(frozen(), bypass="never")
    encoder.with_keys(["a", "b"])(read("cd"))
    encoder(read("ab"))
    assert (encoder.stats.hits, encoder.stats.misses) == (0, 4)
    assert torch.equal(encoder.with_keys(["a"])(Loader("")), encoder(read("c")))


def test_other_weights_miss_and_come_back():
    layer = frozen()
    encoder = CachedLayer(layer, bypass="never")
    encoder.with_keys(["a"])(read("a"))
    before = layer.weight.clone()
    layer.weight.mul_(2)
    assert encoder.missing(["a"]) == [0]
    layer.weight.copy_(before)
    assert encoder.missing(["a"]) == []


def test_an_empty_batch_runs_the_layer():
    encoder = CachedLayer(frozen())
    assert encoder.with_keys([])(torch.empty(0, 8)).shape == (0, 8)
    assert encoder.missing([]) == []


def test_a_secret_makes_other_keys():
    cache = tk.ActivationCache()
    layer = frozen()
    one, other = (
        CachedLayer(layer, cache=cache, secret=secret, bypass="never")
        for secret in (b"s" * 32, b"t" * 32)
    )
    one.with_keys(["a"])(read("a"))
    assert one.missing(["a"]) == []
    assert other.missing(["a"]) == [0]


def test_a_whole_batch_has_one_key():
    encoder = CachedLayer(frozen(), rows="batch", bypass="never")
    x = read("abc")
    out = encoder.with_keys(["batch 1"])(x)
    assert torch.equal(encoder.with_keys(["batch 1"])(Loader("")), out)
    assert torch.equal(encoder.to_table(["batch 1"]), out)
    with pytest.raises(errors.InvalidArgument, match="2 keys of whole batches"):
        encoder.to_table(["batch 1", "batch 1"])


def test_trim_and_keys_of_ones_own_exclude_each_other():
    encoder = CachedLayer(frozen(), trim=("mask", 1))
    with pytest.raises(errors.Unsupported, match="trim="):
        encoder.with_keys(["a"])


def test_under_torch_compile_keys_are_looked_up():
    encoder = CachedLayer(frozen(), bypass="never")
    expected = encoder.with_keys(["a", "b"])(read("ab"))
    x = read("ab")
    assert torch.equal(
        torch.compile(lambda x: encoder.with_keys(["a", "b"])(x) * 1.0, backend="eager")(x),
        expected,
    )
    assert encoder.stats.hits == 2


# --- verify.


def test_verify_notices_a_changed_file():
    encoder = CachedLayer(frozen(), chunk=32, verify=1.0, on_error="raise", bypass="never")
    encoder.with_keys(["a", "b"])(read("ab"))
    encoder.with_keys(["a", "b"])(read("ab"))
    assert (encoder.stats.verified, encoder.stats.deviating) == (2, 0)
    with pytest.raises(errors.CorruptEntry, match="1 hits of this call differ"):
        encoder.with_keys(["a", "b"])(read("ac"))
    assert encoder.stats.deviating == 1


def test_verify_notices_a_changed_input_of_equal_output():
    layer = frozen()
    layer.weight[:, 7] = 0  # what is in column 7 makes no difference to the output
    encoder = CachedLayer(layer, chunk=32, verify=1.0, bypass="never")
    x = read("ab")
    encoder.with_keys(["a", "b"])(x)
    y = x.clone()
    y[1, 7] = 9
    load = Loader("")
    load_y = lambda missing: (load.asked.append(missing), y[missing])[1]  # noqa: E731
    encoder.with_keys(["a", "b"])(load_y)
    assert load.asked == [[0, 1]]  # verify reads them again
    stats = encoder.stats
    assert (stats.verified, stats.deviating) == (2, 1)
    assert stats.largest_deviation == float("inf")


def test_verify_reads_a_whole_batch_again():
    encoder = CachedLayer(frozen(), rows="batch", verify=1.0, bypass="never")
    encoder.with_keys(["one"])(read("ab"))
    encoder.with_keys(["one"])(read("ab"))
    assert (encoder.stats.verified, encoder.stats.deviating) == (1, 0)


# --- Without the cache.


def test_switched_off_everything_is_read_and_run():
    layer = frozen()
    encoder = CachedLayer(layer, bypass="never")
    encoder.with_keys(list("ab"))(read("ab"))
    load = Loader("abc")
    with tk.disabled():
        out = encoder.with_keys(list("abc"))(load)
        assert encoder.missing(list("abc")) == [0, 1, 2]
    assert load.asked == [[0, 1, 2]]
    assert torch.equal(out, layer(read("abc")))
    encoder.bypass = "always"
    encoder.with_keys(list("abc"))(load)
    assert load.asked[1:] == [[0, 1, 2]]
    assert encoder.missing(list("abc")) == [0, 1, 2]
    assert encoder.stats.bypasses == {"tensorkey.disabled()": 1, "bypass='always'": 1}


def test_the_environment_switches_off(tmp_path):
    code = """
import torch
from tensorkey.torch import CachedLayer
encoder = CachedLayer(torch.nn.Linear(8, 8).requires_grad_(False))
asked = []
def load(missing):
    asked.append(missing)
    return torch.zeros(len(missing), 8)
for _ in range(2):
    encoder.with_keys(["a", "b"])(load)
assert asked == [[0, 1], [0, 1]], asked
assert encoder.stats.bypasses == {"TENSORKEY_DISABLE is set": 2}, encoder.stats.bypasses
"""
    run(code, TENSORKEY_DISABLE="1")


def run(code, *args, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_trained_weights_run_the_layer():
    layer = nn.Linear(8, 8)
    encoder = CachedLayer(layer, bypass="never")
    load = Loader("ab")
    out = encoder.with_keys(list("ab"))(load)
    assert out.requires_grad
    assert encoder.missing(list("ab")) == [0, 1]
    out.sum().backward()
    assert layer.weight.grad is not None
    assert load.asked == [[0, 1]]
    assert [*encoder.stats.bypasses.values()] == [1]
    with torch.no_grad():
        encoder.with_keys(list("ab"))(load)
        assert encoder.missing(list("ab")) == []


def test_inputs_that_need_gradients_run_the_layer():
    encoder = CachedLayer(frozen(), bypass="never")
    x = read("ab").requires_grad_()
    encoder.with_keys(list("ab"))(lambda missing: x[missing]).sum().backward()
    assert x.grad is not None


def test_a_failing_function_stores_nothing():
    encoder = CachedLayer(frozen(), bypass="never")

    def load(missing):
        raise OSError("a disk is away")

    with pytest.raises(OSError, match="a disk is away"):
        encoder.with_keys(["a"])(load)
    assert encoder.missing(["a"]) == [0]
    assert encoder.with_keys(["a"])(Loader("a")).shape == (1, 8)


# --- Other processes.


def test_another_process_finds_them(tmp_path):
    code = """
import sys, torch
from tensorkey.torch import CachedLayer
torch.manual_seed(0)
encoder = CachedLayer(torch.nn.Linear(8, 8).requires_grad_(False), disk=sys.argv[1])
asked = []
def load(missing):
    asked.append(missing)
    return torch.arange(8.0).expand(len(missing), 8) * torch.tensor(missing)[:, None]
missing = encoder.missing([f"{i}.png" for i in range(40)])
out = encoder.with_keys([f"{i}.png" for i in range(40)])(load)
import json
print(json.dumps([len(missing), len(asked), out.sum().item()]))
"""
    first = json.loads(run(code, tmp_path / "d"))
    second = json.loads(run(code, tmp_path / "d"))
    assert first[0] == 40
    assert first[1] >= 1
    assert second == [0, 0, first[2]]


# --- Tables and files.


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = frozen()

    def forward(self, x):
        return {"a": self.linear(x), "b": x.long(), "same": self.linear.bias * 1}


def test_a_table_is_the_layers_output():
    encoder = CachedLayer(Two(), bypass="never")
    out = encoder.with_keys([1, 2, 3])(read("abc"))
    table = encoder.to_table([3, 1, 3])
    assert table.keys() == out.keys()
    assert torch.equal(table["a"], out["a"][[2, 0, 2]])
    assert torch.equal(table["same"], out["same"])


def test_a_table_goes_through_adapters():
    encoder = CachedLayer(
        frozen(), outputs=(lambda out: [out], lambda nest: ("mine", nest[0])), bypass="never"
    )
    _, out = encoder.with_keys([1])(read("a"))
    name, table = encoder.to_table([1])
    assert name == "mine"
    assert torch.equal(table, out)


def test_missing_keys_are_named():
    encoder = CachedLayer(frozen(), bypass="never")
    encoder.with_keys(["a"])(read("a"))
    for use in (encoder.to_table, lambda keys: encoder.to_safetensors("/nowhere", keys)):
        with pytest.raises(
            errors.MissingKey, match=r"2 of 3 rows are not .*: 'x', b'y'; precompute"
        ):
            use(["a", "x", b"y"])
        with pytest.raises(errors.InvalidArgument, match="no keys"):
            use([])
    with pytest.raises(errors.MissingKey, match=r"'0', '1', '2', ...; precompute"):
        encoder.to_table([str(i) for i in range(9)])


def test_a_table_of_a_layer_with_hooks_says_why_not():
    layer = nn.Sequential(frozen())
    encoder = CachedLayer(layer, bypass="never")
    encoder.with_keys(["a"])(read("a"))
    layer[0].register_forward_hook(lambda *_: None)
    with pytest.raises(errors.Unsupported, match="without the cache: forward hooks"):
        encoder.to_table(["a"])


def test_safetensors_there_and_back(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    layer = frozen().bfloat16()
    encoder = CachedLayer(layer, bypass="never")
    path = tmp_path / "rows.safetensors"
    out = encoder.with_keys(list("ab"))(read("ab").bfloat16())
    assert encoder.to_safetensors(path, ["b", "a", "b"]) == 2
    held = load_file(path)
    assert held.keys() == {"a", "b"}
    assert held["b"].dtype == torch.bfloat16
    assert torch.equal(held["b"], out[1])

    other = CachedLayer(layer, bypass="never")
    assert other.import_entries(path) == 2
    assert other.import_entries(str(path)) == 0
    assert torch.equal(other.with_keys(list("ba"))(Loader("")), out[[1, 0]])
    assert any("rows.safetensors" in text for text in other.stats.assumptions)


def test_safetensors_of_several_leaves(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.torch import load_file

    encoder = CachedLayer(Two(), bypass="never")
    out = encoder.with_keys([7, 8])(read("bc"))
    path = tmp_path / "rows.safetensors"
    assert encoder.to_safetensors(path, [7, 8]) == 4
    held = load_file(path)
    assert held.keys() == {"7/0", "7/1", "8/0", "8/1"}
    assert torch.equal(held["8/1"], out["b"][1])
    with pytest.raises(errors.Unsupported, match="several tensors"):
        encoder.import_entries(path)


def test_names_in_a_file_are_texts(tmp_path):
    pytest.importorskip("safetensors")
    encoder = CachedLayer(frozen(), bypass="never")
    encoder.with_keys([1, "1", b"\xff"])(read("abc"))
    with pytest.raises(errors.InvalidArgument, match="two keys have one name"):
        encoder.to_safetensors(tmp_path / "x.safetensors", [1, "1"])
    with pytest.raises(errors.InvalidArgument, match="UTF-8"):
        encoder.to_safetensors(tmp_path / "x.safetensors", [b"\xff"])
    assert not (tmp_path / "x.safetensors").exists()


def test_without_safetensors_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    encoder = CachedLayer(frozen(), bypass="never")
    encoder.with_keys([1])(read("a"))
    (tmp_path / "x.safetensors").write_bytes(b"")
    for use in (
        lambda: encoder.to_safetensors(tmp_path / "x.safetensors", [1]),
        lambda: encoder.import_entries(tmp_path / "x.safetensors"),
    ):
        with pytest.raises(errors.Unsupported, match="pip install safetensors"):
            use()


# --- Imports.


@pytest.mark.parametrize("rows", [1, 5, 40, 600])
def test_imported_rows_are_hits(tmp_path, rows):
    layer = frozen(2)
    values = torch.randn(rows, 2)
    path = tmp_path / "latents.npz"
    np.savez(path, **{f"{i}.png": values[i].numpy() for i in range(rows)})
    encoder = CachedLayer(layer, bypass="never")
    assert encoder.import_entries(path) == rows
    names = [f"{i}.png" for i in range(rows)]
    assert encoder.missing(names) == []
    assert torch.equal(encoder.with_keys(names)(Loader("")), values)
    assert torch.equal(encoder.to_table(names), values)
    assert encoder.stats.seconds_spent == 0
    # What is not there runs beside it.
    mixed = encoder.with_keys([*names, "new"])(lambda missing: read("b" * len(missing)))
    assert torch.equal(mixed[:rows], values)
    assert torch.allclose(mixed[rows:], layer(read("b")), atol=1e-6)


def test_imported_rows_are_hits_in_another_process(tmp_path):
    code = """
import sys, numpy, torch
from tensorkey.torch import CachedLayer
torch.manual_seed(0)
encoder = CachedLayer(torch.nn.Linear(8, 8).requires_grad_(False), disk=sys.argv[1])
names = ["a", "b", "c"]
if len(sys.argv) > 2:
    print(encoder.import_entries(sys.argv[2]))
    sys.exit()
print(encoder.missing(names), encoder.to_table(names)[1].tolist())
def load(missing):
    return torch.zeros(len(missing), 8)
print(encoder.with_keys(names + [str(i) for i in range(40)])(load)[1].tolist())
print(encoder.stats.hits)
"""
    path = tmp_path / "latents.npz"
    np.savez(path, **{name: np.full(8, i, "f") for i, name in enumerate("abc")})
    assert run(code, tmp_path / "d", path) == "3\n"
    row = str([1.0] * 8)
    assert run(code, tmp_path / "d").splitlines() == [f"[] {row}", row, "6"]


def test_imports_take_the_form_of_the_outputs(tmp_path):
    class Output(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = frozen(2)

        def forward(self, x):
            return {"latent": self.linear(x)}

    encoder = CachedLayer(Output(), bypass="never")
    encoder.with_keys(["z"])(read("z".replace("z", "a")))
    path = tmp_path / "latents.npz"
    np.savez(path, a=np.ones(2, "f"))
    assert encoder.import_entries(path) == 1
    out = encoder.with_keys(["a", "z"])(Loader(""))
    assert out["latent"][0].tolist() == [1, 1]


def test_arrays_of_several_kinds(tmp_path):
    path = tmp_path / "mixed.npz"
    arrays = {
        "big endian": np.arange(3, dtype=">f4"),
        "transposed": np.arange(6, dtype="f").reshape(2, 3).T,
        "half": np.ones(2, "f2"),
        "nothing": np.zeros((0, 2), "f"),
        "number": np.float32(4),
    }
    np.savez(path, **arrays)
    encoder = CachedLayer(frozen(), bypass="never")
    assert encoder.import_entries(path) == 5
    for name, array in arrays.items():
        row = encoder.to_table([name])[0]
        assert row.shape == array.shape
        np.testing.assert_array_equal(row.numpy(), array)
    assert encoder.to_table(["half"]).dtype == torch.float16


def test_what_is_there_is_not_taken_again(tmp_path):
    path = tmp_path / "latents.npz"
    np.savez(path, a=np.zeros(8, "f"), x=np.zeros(8, "f"))
    encoder = CachedLayer(frozen(), bypass="never")
    out = encoder.with_keys(["a"])(read("a"))
    assert encoder.import_entries(path) == 1
    assert torch.equal(encoder.to_table(["a"]), out)


# --- Files of others.


class Boom:
    def __reduce__(self):
        return (os._exit, (7,))


def hostile(path):
    good = path / "good.npz"
    np.savez(good, a=np.arange(1000.0))
    whole = good.read_bytes()
    (path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (path / "flipped.npz").write_bytes(flipped)
    (path / "empty.npz").write_bytes(b"")
    (path / "text.npz").write_bytes(b"hello, world")
    np.savez(path / "objects.npz", a=np.array([Boom()], dtype=object))
    with zipfile.ZipFile(path / "huge.npz", "w") as file:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }"
        header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
        magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
        file.writestr("a.npy", magic + header + b"1234")
    with zipfile.ZipFile(path / "other.npz", "w") as file:
        file.writestr("../../a.txt", b"hello")
    np.save(path / "array.npy", np.ones(3))
    (path / "array.npy").rename(path / "array.npz")
    (path / "cut.safetensors").write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{}")
    (path / "long.safetensors").write_bytes(b"\xff" * 20)
    return ["cut", "flipped", "empty", "text", "objects", "huge", "other", "array"]


def test_damaged_and_hostile_files(tmp_path):
    pytest.importorskip("safetensors")
    names = [f"{name}.npz" for name in hostile(tmp_path)]
    encoder = CachedLayer(frozen(), bypass="never")
    for name in [*names, "cut.safetensors", "long.safetensors"]:
        with pytest.raises(errors.CorruptEntry, match=name):
            encoder.import_entries(tmp_path / name)
    assert encoder.missing(["a"]) == [0]


def test_files_that_are_none(tmp_path):
    encoder = CachedLayer(frozen())
    with pytest.raises(FileNotFoundError):
        encoder.import_entries(tmp_path / "nowhere.npz")
    with pytest.raises(
        errors.InvalidArgument, match=r"latents.pt; expected a .npz or .safetensors"
    ):
        encoder.import_entries(tmp_path / "latents.pt")
    np.savez(tmp_path / "texts.npz", a=np.array(["a"]))
    with pytest.raises(errors.Unsupported, match="texts.npz: a:"):
        encoder.import_entries(tmp_path / "texts.npz")
    np.savez(tmp_path / "none.npz")
    assert encoder.import_entries(tmp_path / "none.npz") == 0
    assert encoder.stats.assumptions == []
