"""Cached functions of JAX, called eagerly: what counts, what is answered, what is refused."""

import functools
import subprocess
import sys
import threading
import types

import pytest

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")

from jax import numpy as jnp  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import _jax_programs, _jax_tracing, _layer_runner, errors  # noqa: E402
from tensorkey.jax import cached, fingerprint, tensor  # noqa: E402

SCALE = 2.0
TABLE = jnp.ones((8, 4))


def normal(seed, *shape, dtype="float32"):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


W = normal(100, 8, 4)
X = normal(0, 40, 8)


def cache(function, **options):
    return cached(function, **{"bypass": "never", **options})


def counts(made):
    stats = made.stats
    return stats.misses, stats.hits


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(np.asarray(a, "f8"), np.asarray(b, "f8"), rtol=1e-5, atol=1e-5)


def compilations(made):
    [programs] = made._engine.backend.programs._states.values()
    return sum(program._cache_size() for program in programs.values())


def linear(x):
    return x @ W


# What a function is.


def helper(x):
    return x @ TABLE * SCALE


def uses_globals(x):
    return helper(x)


def test_globals_and_helpers_are_read(monkeypatch):
    made = cache(uses_globals)
    made(X)
    module = sys.modules[__name__]
    changes = {
        "TABLE": TABLE + 1,
        "SCALE": 3.0,
        "helper": lambda x: x @ TABLE - SCALE,
    }
    for number, (name, value) in enumerate(changes.items(), 1):
        monkeypatch.setattr(module, name, value)
        close(made(X), uses_globals(X))
        assert counts(made) == (40 * (number + 1), 0), name
    monkeypatch.undo()
    made(X)
    assert counts(made) == (160, 40)
    assert made.stats.assumptions == []


def test_names_of_own_modules_are_read(monkeypatch):
    library = types.ModuleType("own_library")
    library.weights = W
    library.unused = 1
    library.loop = library
    space = {"own_library": library, "__name__": "own_program"}
    exec("def f(x):\n    return x @ own_library.loop.weights", space)  # noqa: S102
    made = cache(space["f"])
    made(X)
    library.unused = 2
    made(X)
    assert counts(made) == (40, 40)
    library.weights = W * 2
    close(made(X), X @ W * 2)
    assert counts(made) == (80, 40)


def test_variables_of_closures_are_read():
    weights = W
    made = cache(lambda x: x @ weights)
    close(made(X), X @ W)
    weights = W * 2
    close(made(X), X @ W * 2)
    weights = W
    made(X)
    assert counts(made) == (80, 40)


def test_dicts_of_closures_are_read():
    params = {"w": W, "rest": [1.0, {"b": jnp.zeros(4)}]}
    made = cache(lambda x: x @ params["w"] + params["rest"][1]["b"])
    made(X)
    params["rest"][1]["b"] = jnp.ones(4)
    close(made(X), X @ W + 1)
    params["w"] = W * 2
    close(made(X), X @ W * 2 + 1)
    assert counts(made) == (120, 0)


class Encoder:
    scale = 1.0

    def __init__(self):
        self.w = W

    def encode(self, x):
        return self.inner(x) * self.scale

    def inner(self, x):
        return x @ self.w


class Slotted:
    __slots__ = ("w",)

    def __call__(self, x):
        return x @ self.w


def test_instances_are_read(monkeypatch):
    encoder = Encoder()
    made = cache(encoder.encode)
    made(X)
    encoder.w = W * 2
    close(made(X), encoder.encode(X))
    encoder.scale = 3.0
    close(made(X), encoder.encode(X))
    monkeypatch.setattr(Encoder, "inner", lambda self, x: x @ self.w + 1)
    close(made(X), encoder.encode(X))
    assert counts(made) == (160, 0)
    slotted = Slotted()
    slotted.w = W
    made = cache(slotted)
    made(X)
    slotted.w = W * 2
    close(made(X), X @ W * 2)


def test_functions_inside_functions_are_read():
    weights = {"w": W}

    def row(x):
        return x @ weights["w"]

    def step(carry, x):
        return carry, row(x)

    cases = [
        functools.partial(lambda w, x: x @ w["w"], weights),
        jax.jit(lambda x: x @ weights["w"]),
        jax.vmap(lambda row: row @ weights["w"]),
        jax.checkpoint(lambda x: x @ weights["w"]),
        jax.tree_util.Partial(lambda w, x: x @ w["w"], weights),
        lambda x, w=weights: x @ w["w"],
        lambda x: jax.lax.map(row, x),
        lambda x: jax.lax.scan(step, 0.0, x)[1],
        lambda x: jax.lax.cond(x.sum() > 1e9, row, row, x),
        lambda x: jax.lax.fori_loop(0, 1, lambda i, y: row(x), jnp.zeros((len(x), 4))),
    ]
    for function in cases:
        weights["w"] = W
        made = cache(function)
        close(made(X), X @ W)
        function(X)
        weights["w"] = W * 2  # JAX keeps traces of some, and what they enclosed
        close(made(X), X @ W * 2)
        close(jax.jit(lambda x: made(x))(X + 1), (X + 1) @ W * 2)  # noqa: B023
        weights["w"] = W
        made(X)
        assert counts(made) == (120, 40)


def test_a_counter_of_traces_does_not_count():
    traces = 0

    def counted(x):
        nonlocal traces
        traces += 1
        return x @ W

    made = cache(counted)
    made(X)
    made(X)
    assert counts(made) == (40, 40)
    assert made.stats.assumptions == ["layer.function, closure traces: the function writes it"]


def test_writes_to_arrays_of_numpy():
    weights = np.array(W)
    strict = cache(lambda x: x @ weights, fingerprint="strict")
    close(strict(X), X @ weights)
    weights *= 2  # the program that was compiled has the old ones in it
    close(strict(X), X @ weights)
    assert counts(strict) == (80, 0)


def test_weakly_typed_constants_are_others():
    x = X.astype("bfloat16")
    for scale, dtype in ((jnp.asarray(2.0), "bfloat16"), (jnp.float32(2.0), "float32")):
        made = cache(lambda x, scale=scale: x * scale, cache=SHARED)
        assert made(x).dtype == dtype
        made = cache(lambda x, scale: x * scale, cache=SHARED)
        assert made(x, scale).dtype == dtype


SHARED = tk.ActivationCache("16 MiB")


# Parameters as arguments.


def apply(params, x, *, scale=1.0):
    return {"y": x @ params["w"] * scale, "n": params["n"] * x[:, 0]}


def test_parameters():
    made = cache(apply, params_argnums=0)
    params = {"w": W, "n": 2}
    close(made(params, X), apply(params, X))
    made({"w": jnp.array(W), "n": 2}, X)
    assert counts(made) == (40, 40)
    for changed in ({"w": W * 2, "n": 2}, {"w": W, "n": 3}, {"w": W.astype("bfloat16"), "n": 2}):
        close(made(changed, X), apply(changed, X))
    params["w"] = W * 4
    close(made(params, X), apply(params, X))
    made({"w": W, "n": 2}, X, scale=1.0)
    close(made({"w": W, "n": 2}, X, scale=2.0), apply({"w": W, "n": 2}, X, scale=2.0))
    assert counts(made) == (240, 80)
    made(x=X, params={"w": W, "n": 2})
    assert counts(made) == (240, 120)
    with pytest.raises(TypeError, match="params"):
        made(x=X)


def test_parameters_anywhere():
    def f(x, head, y, backbone):
        return (x + y) @ backbone @ head

    made = cache(f, params_argnums=(3, 1))
    args = (X, normal(5, 4, 2), X * 2, W)
    close(made(*args), f(*args))
    close(made(X, args[1], y=X * 2, backbone=W), f(*args))
    assert counts(made) == (40, 40)
    close(made(X, args[1] * 2, X * 2, W), f(X, args[1] * 2, X * 2, W))
    for wrong in (4, -1, (0, 9)):
        with pytest.raises(errors.InvalidArgument, match="params_argnums names argument"):
            cached(f, params_argnums=wrong)


def test_numpy_parameters_change_in_place():
    params = {"w": np.array(W), "n": 2}
    made = cache(apply, params_argnums=0)
    made(params, X)
    params["w"] *= 2
    close(made(params, X), apply(params, X))
    assert counts(made) == (80, 0)


def test_programs_serve_all_parameters():
    made = cache(apply, params_argnums=0)
    compiled = set()
    for seed in range(4):
        made({"w": normal(seed, 8, 4), "n": 2}, X)
        compiled.add(compilations(made))
    assert len(compiled) == 1


def test_manual_fingerprint_of_parameters():
    params = {"w": W, "n": 2}
    made = cache(
        apply, params_argnums=0, fingerprint="manual", scope=fingerprint(params), cache=SHARED
    )
    first = made(params, X)
    assert same(made({"w": W * 2, "n": 2}, X), first)  # the caller's word
    other = {"w": W * 2, "n": 2}
    again = cache(
        apply, params_argnums=0, fingerprint="manual", scope=fingerprint(other), cache=SHARED
    )
    close(again(other, X), apply(other, X))


def test_fingerprint_of_parameters():
    params = {"w": W, "n": [2, "text"]}
    known = fingerprint(params)
    assert known == fingerprint({"w": jnp.array(W), "n": [2, "text"]})
    for other in ({"w": W + 1, "n": [2, "text"]}, {"w": W, "n": [3, "text"]}, {"v": W}, W):
        assert fingerprint(other) != known
    with pytest.raises(errors.Unsupported, match=r"\[fingerprint\] cannot be read"):
        fingerprint({"lock": threading.Lock()})


def test_keys_of_ones_own_need_bound_parameters():
    made = cache(apply, params_argnums=0)
    for call in (
        lambda: made.with_keys([1]),
        lambda: made.missing([1]),
        lambda: made.to_table([1]),
        lambda: made.import_entries("x.npz"),
    ):
        with pytest.raises(errors.Unsupported, match=r"functools\.partial"):
            call()


# Inputs and outputs.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32", "uint8", "bool", "complex64"])
def test_dtypes(dtype):
    x = ((X > 0) if dtype == "bool" else X * 50 + 200).astype(dtype)
    made = cache(lambda x: (x[:, ::-1], x[:, 0]))
    first = made(x)
    assert same(first, (x[:, ::-1], x[:, 0]))
    assert same(made(x), first)
    distinct = len(np.unique(np.asarray(x), axis=0)) if dtype == "bool" else 40
    assert counts(made) == (distinct, 80 - distinct)
    assert [leaf.dtype for leaf in first] == [x.dtype] * 2


def test_arrays_of_numpy_are_those_of_jax():
    made = cache(linear)
    first = made(X)
    array = np.asarray(X)
    views = [array, np.asfortranarray(array), array.astype(">f4"), array.astype("f8")]
    views.append(np.repeat(array, 2, axis=1)[:, ::2])
    for view in views:
        assert same(made(view), first)
    assert same(made(x=array), first)
    nested = cache(lambda batch: batch["x"] @ W)
    nested({"x": array})
    nested({"x": X})
    assert counts(made) == (40, 240)
    assert counts(nested) == (40, 40)


def test_sixty_four_bits():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(40, 8)))
        made = cache(lambda x: x * 2)
        assert made(x).dtype == "float64"
        assert same(made(x), x * 2)
    assert counts(made) == (40, 40)


def test_plain_arguments_are_static():
    def f(x, mode, k=2, flag=True):
        assert isinstance(flag, bool)
        return x * k if mode == "scale" and flag else x

    made = cache(f)
    close(made(X, "scale"), X * 2)
    close(made(X, "scale", 3), X * 3)
    close(made(X, "no"), X)
    close(made(X, "scale", k=2), X * 2)
    assert counts(made) == (120, 40)


def test_small_arrays_are_no_constants_of_a_program():
    made = cache(lambda x, t: x * t)
    compiled = set()
    for t in range(3):
        close(made(X, jnp.float32(t)), X * t)
        compiled.add(compilations(made))
    assert counts(made) == (120, 0)
    assert len(compiled) == 1


def test_what_has_no_rows_runs_uncached():
    deleted = X + 0
    deleted.delete()
    cases = [
        (linear, jnp.ones(8), "no array without"),
        (lambda key: jax.vmap(lambda k: jax.random.normal(k, (2,)))(key), None, "key_data"),
        (lambda x: x * 2, jnp.broadcast_to(jnp.asarray(2.0), (4, 3)), "weakly typed"),
        (lambda x: jnp.where(x > 0, 1.0, 0.0), X, "weakly typed array"),
        (lambda x: {"sum": x.sum()} | {"x": x}, X, None),
    ]
    for function, x, reason in cases[1:4]:
        x = jax.random.split(jax.random.key(0), 4) if x is None else x
        made = cache(function)
        assert same(made(x), function(x))
        [told] = made.stats.bypasses
        assert reason in told
        assert counts(made) == (0, 0)
    made = cache(linear)
    with pytest.raises(RuntimeError, match="deleted"):
        made(deleted)
    assert counts(made) == (0, 0)


def test_deleted_weights_are_never_read():
    weights = W + 0
    made = cache(lambda x: x @ weights)
    made(X)
    weights.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        made(X)
    weights = W + 0
    close(made(X), X @ W)
    assert counts(made) == (40, 40)


def test_a_function_that_cannot_be_traced_runs_uncached():
    made = cache(lambda x: jnp.asarray(np.asarray(x) * 2))
    close(made(X), X * 2)
    close(made(X), X * 2)
    assert all("jax.jit cannot trace it" in reason for reason in made.stats.bypasses)
    assert counts(made) == (0, 0)


def test_exceptions_of_the_function_pass_through():
    class OwnError(Exception):
        pass

    def fails(x):
        raise OwnError("as it is")

    made = cache(fails)
    with pytest.raises(OwnError, match="as it is"):
        made(X)
    with pytest.raises(OwnError):
        jax.jit(made)(X)
    with pytest.raises(TypeError, match="positional"):
        cache(linear)(X, X, X)


def test_a_cached_function_inside_another():
    inner = cache(linear)
    outer = cache(lambda x: inner(x) * 2)
    close(outer(X), linear(X) * 2)
    close(jax.jit(outer)(X), linear(X) * 2)
    assert counts(inner) == (0, 0)
    assert counts(outer) == (40, 40)


# Options and methods.


def test_two_functions_share_a_cache_and_no_answers():
    shared = tk.ActivationCache("16 MiB")
    one, other = (cache(f, cache=shared) for f in (lambda x: x * 2, lambda x: x * 3))
    close(one(X), X * 2)
    close(other(X), X * 3)
    again = cache(lambda x: x * 2, cache=shared)
    again(X)
    assert counts(again) == (0, 40)


def test_rows_batch():
    made = cache(lambda x: x - x.mean(), rows="batch")
    close(made(X), X - X.mean())
    close(made(X), X - X.mean())
    close(made(X[:3]), X[:3] - X[:3].mean())
    assert counts(made) == (2, 1)
    close(jax.jit(made)(X), X - X.mean())


def test_by_structure():
    made = cache(lambda x: jnp.arange(x.shape[0] * 1.0), by="structure")
    made(X)
    close(made(X + 1), jnp.arange(40.0))
    assert counts(made) == (1, 1)


def test_trim():
    table = normal(3, 100, 6)
    made = cache(lambda ids, mask: table[ids] * mask[..., None], trim=("mask", 1))
    ids = jax.random.randint(jax.random.key(0), (32, 10), 1, 100)
    mask = jnp.ones_like(ids)
    first = made(ids, mask)
    longer = [jnp.pad(part, ((0, 0), (0, 30))) for part in (ids, mask)]
    again = made(*longer)
    assert again.shape == (32, 40, 6)
    assert same(again[:, :10], first)
    assert made.stats.hits == 32


def test_keys_and_files(tmp_path):
    made = cache(linear)
    rows = {f"{i}.png": X[i] for i in range(40)}
    names = list(rows)
    first = made.with_keys(names)(lambda missing: jnp.stack([rows[names[i]] for i in missing]))
    assert same(first, made(X))
    assert made.missing(["new", *names]) == [0]
    assert same(made.to_table(names[::-1]), first[::-1])
    path = tmp_path / "rows.npz"
    np.savez(path, a=np.zeros(4, "f4"), b=np.ones(4, "f4"))
    assert made.import_entries(path) == 2
    assert same(made.to_table(["b"]), jnp.ones((1, 4)))
    pytest.importorskip("safetensors")
    half = cache(lambda x: x.astype("bfloat16"))
    half.with_keys(["a", "b"])(X[:2])
    path = tmp_path / "rows.safetensors"
    assert half.to_safetensors(path, ["a", "b"]) == 2
    other = cache(lambda x: x.astype("bfloat16") + 0)
    assert other.import_entries(path) == 2
    assert same(other.to_table(["b"]), X[1:2].astype("bfloat16"))


def test_precompute_explain_check():
    x = jnp.round(X * 8)
    made = cache(linear)
    assert made.precompute([x[:16], x[16:]]).misses == 40
    assert [row.hit for row in made.explain(jnp.concatenate([x[:2], x[:1] + 0.5]))] == [
        True,
        True,
        False,
    ]
    assert "seen with another dtype" in str(made.explain(x.astype("float16")))
    found = tk.check(made, X)
    assert found.refused is None
    assert found.chunk == 32
    assert "tensors of weights" in "\n".join(found.scope)
    passed = cache(apply, params_argnums=0)
    params = {"w": W, "n": 2}
    assert passed.precompute([(params, X)]).misses == 40
    assert passed.explain(params, X)[0].hit
    assert "other weights" in str(passed.explain({"w": W * 2, "n": 2}, X))
    assert tk.check(passed, (params, X)).refused is None


def test_verify_sees_what_the_fingerprint_does_not():
    box = [W]

    class Box(list):
        """Holds more than can be read."""

    hidden = types.MappingProxyType({"w": box})
    made = cache(lambda x: x @ hidden["w"][0], verify=1.0)
    made(X)
    assert "MappingProxyType" in "".join(made.stats.assumptions) or "mappingproxy" in "".join(
        made.stats.assumptions
    )
    box[0] = W * 2
    made._engine.backend.programs.clear()  # as in another process
    made(X)
    assert made.stats.deviating > 0


def test_switches():
    made = cache(linear)
    made(X)
    with tk.disabled():
        close(made(X), linear(X))
    made.bypass = "always"
    close(made(X), linear(X))
    assert counts(made) == (40, 0)
    made.bypass = "never"
    made.cache_clear()
    made(X)
    assert counts(made) == (80, 0)
    made.reset_stats()
    assert counts(made) == (0, 0)


def test_what_is_refused():
    with pytest.raises(errors.InvalidArgument, match="expected a callable"):
        cached(3)
    with pytest.raises(errors.InvalidArgument, match="cached already"):
        cached(cached(linear))
    with pytest.raises(TypeError, match="is 'memory' meant"):
        cached(linear, memorry=3)
    with pytest.raises(errors.Unsupported, match="cpu_input"):
        cached(linear, index="cpu_input")
    with pytest.raises(errors.Unsupported, match="cannot be copied or pickled"):
        cached(linear).__reduce_ex__(4)
    made = cached(linear)
    assert made.__name__ == "linear"
    assert made.__wrapped__ is linear
    assert "cached <function linear" in repr(made)


def test_entries_as_arrays():
    store = tk.ActivationCache()
    x = jnp.arange(6, dtype="bfloat16").reshape(2, 3)
    [entry] = store.get_or_compute(tk.key(x), lambda: x)
    assert same(tensor(entry), x)


SEVERAL = """
import jax, numpy as np
from jax import numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import tensorkey.jax as tkj
assert len(jax.devices()) == 2
mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
x = jnp.arange(320.0).reshape(40, 8)
w = jnp.ones((8, 4))
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("d")))
f = lambda x: x @ w
for call in (lambda f: f, jax.jit):
    made = tkj.cached(f, bypass="never")
    y = call(made)(spread)
    assert np.array_equal(y, f(x)) and len(y.sharding.device_set) == 2
    assert any("several devices" in reason for reason in made.stats.bypasses), made.stats
    assert made.stats.misses == 0
typed = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
told = jax.device_put(x, NamedSharding(typed, PartitionSpec("d")))
made = tkj.cached(f, bypass="never")
assert jax.jit(made)(told).sharding == jax.jit(f)(told).sharding
assert any("its type" in reason for reason in made.stats.bypasses)
made = tkj.cached(lambda x: x * 3, bypass="never")
there = jax.device_put(x, jax.devices()[1])
y = made(there)
assert y.device == jax.devices()[1] and y.committed
assert made(x).device == jax.devices()[0] and not made(x).committed
assert (made.stats.misses, made.stats.hits) == (40, 80)
z = jax.jit(made)(there)
assert z.device == jax.devices()[1] and np.array_equal(y, z)
moved = jax.device_put(w, jax.devices()[1])
passing = tkj.cached(lambda w, x: x @ w, params_argnums=0, bypass="never")
for given in (moved, w, moved):
    y = passing(given, x)
    assert y.devices() == given.devices() and np.array_equal(y, f(x))
assert passing.stats.misses == 40 and sum(passing.stats.bypasses.values()) == 2, passing.stats
y = passing(moved, there)
assert y.device == jax.devices()[1] and np.array_equal(y, f(x)) and passing.stats.hits == 40
shards = jax.shard_map(f, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d"))
made = tkj.cached(f, bypass="never")
for call in (lambda f: f, jax.jit):
    wrapped = jax.shard_map(
        made, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d")
    )
    assert np.array_equal(call(wrapped)(x), f(x))
assert np.array_equal(jax.pmap(made)(x.reshape(2, 20, 8)).reshape(40, 4), f(x))
assert all("named axis" in reason for reason in made.stats.bypasses) and made.stats.misses == 0
"""


def test_several_devices():
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    import os

    done = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_what_is_asked_of_jax():
    """Modules of JAX that are not public say these things."""
    seen = {}

    def look(name):
        def function(x):
            now = _jax_tracing
            seen[name] = (now.is_tracing(), now.is_staging(), now.has_named_axes())
            return x

        return function

    look("eager")(X)
    jax.jit(look("jit"))(X)
    jax.vmap(look("vmap"))(X)
    jax.vmap(look("named"), axis_name="i")(X)
    jax.grad(lambda x: look("grad")(x).sum())(X)
    jax.pmap(look("pmap"))(X[None])
    jax.lax.scan(lambda c, x: (c, look("scan")(x)), 0, X)
    jax.jit(jax.grad(lambda x: look("jit grad")(x).sum()))(X)
    with jax.ensure_compile_time_eval():
        look("eval")(X)
    assert seen == {
        "eager": (False, False, False),
        "jit": (True, True, False),
        "vmap": (True, False, False),
        "named": (True, False, True),
        "grad": (True, False, False),
        "pmap": (True, True, True),
        "scan": (True, True, False),
        "jit grad": (True, True, False),
        "eval": (False, False, False),
    }


def test_traces_are_forgotten_where_jax_knows_no_contexts(monkeypatch):
    cleared = []
    monkeypatch.setattr(_jax_tracing, "_context", None)
    monkeypatch.setattr(_jax_tracing._jax, "clear_caches", lambda: cleared.append(1))
    weights = W
    made = cache(lambda x: x @ weights)
    made(X)
    made(X)
    assert cleared == []
    weights = W * 2
    made(X)
    assert cleared == [1]


def test_compiling_is_no_cost_of_the_function(monkeypatch):
    clock = [0.0]

    def traced_slowly(x):
        clock[0] += 100.0
        return jnp.tanh(x @ W)

    for module in (_jax_programs, _layer_runner):
        monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    made = cache(traced_slowly)
    made(X)
    assert clock[0] >= 100.0
    costs = [entry.seconds for entry in made.cache.snapshot()]
    assert costs.count(0.0) >= 40  # the core measured the plan


def test_switches_of_jax_are_in_the_environment():
    made = cache(lambda x: x @ W)
    switches = [
        jax.default_matmul_precision("highest"),
        jax.numpy_dtype_promotion("strict"),
        jax.default_prng_impl("rbg"),
        jax.enable_x64(True),
        jax.disable_jit(),
    ]
    made(X)
    for number, switch in enumerate(switches, 1):
        with switch:
            close(made(X), X @ W)
        made(X)
        assert counts(made) == (40 * (number + 1), 40 * number)
    with jax.default_matmul_precision("highest"):
        jax.block_until_ready(jax.jit(made)(X))
    assert counts(made) == (240, 240)
