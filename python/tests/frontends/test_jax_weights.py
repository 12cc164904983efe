"""Weights of cached functions of JAX that change, threads and processes: never a stale answer."""

import random
import subprocess
import sys
import threading

import pytest

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")

from jax import numpy as jnp  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey.jax import cached, fingerprint  # noqa: E402


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, 32, 6)


def cache(function, **options):
    return cached(function, **{"bypass": "never", **options})


def counts(made):
    return made.stats.misses, made.stats.hits


def same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def apply(params, x):
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    return hidden @ params["layers"][0]


def params_of(seed):
    return {"w": normal(seed, 6, 5), "b": normal(seed + 50, 5), "layers": [normal(seed + 90, 5, 4)]}


PLAIN = jax.jit(apply)


def test_parameters_that_are_traced_are_never_stale():
    made = cache(apply, params_argnums=0)
    jitted = jax.jit(made)
    versions = [params_of(seed) for seed in range(4)]
    truth = [PLAIN(params, X) for params in versions]
    source = random.Random(0)
    seen = set()
    for _ in range(30):
        version = source.randrange(4)
        output = (jitted if source.random() < 0.7 else made)(versions[version], X)
        assert same(output, truth[version])
        seen.add(version)
    stats = made.stats
    assert stats.misses == 32 * len(seen)
    assert stats.hits == 32 * (30 - len(seen))
    assert stats.bypasses == {}


@pytest.mark.parametrize("leaf", ["w", "b", "layers"])
def test_one_leaf_that_is_traced(leaf):
    made = cache(apply, params_argnums=0)
    fixed = params_of(0)

    def call(f):
        def with_leaf(part, x):
            return f({**fixed, leaf: part}, x)

        return jax.jit(with_leaf)

    jitted, plain = call(made), call(apply)
    for seed in (0, 1, 0):
        part = params_of(seed)[leaf]
        assert same(jitted(part, X), plain(part, X))
    assert counts(made) == (64, 32)


def test_parameters_that_are_updated_and_donated_in_a_program():
    def step(f):
        def updated(params, x):
            output = f(params, x)
            return jax.tree.map(lambda p: p * 0.9, params), output

        return jax.jit(updated, donate_argnums=0)

    made = cache(apply, params_argnums=0)
    ours, theirs = params_of(0), params_of(0)
    one, other = step(made), step(apply)
    for _ in range(4):
        ours, output = one(ours, X)
        theirs, expected = other(theirs, X)
        assert same(output, expected)
    assert counts(made) == (128, 0)
    _, output = one(params_of(0), X)
    assert same(output, PLAIN(params_of(0), X))
    assert counts(made) == (128, 32)


def test_a_scan_that_updates_the_parameters():
    def run(f):
        def step(params, x):
            return jax.tree.map(lambda p: p * 0.9, params), f(params, x)

        return jax.jit(lambda params, xs: jax.lax.scan(step, params, xs))

    xs = jnp.stack([X, X, X])
    made = cache(apply, params_argnums=0)
    for _ in range(2):
        assert same(run(made)(params_of(0), xs), run(apply)(params_of(0), xs))
    assert counts(made) == (96, 96)


def test_a_training_loop_of_a_head_and_its_encoder():
    made = cache(apply, params_argnums=0)

    def train(f, frozen):
        def loss(weights, x):
            head, params = weights
            params = jax.lax.stop_gradient(params) if frozen else params
            return ((f(params, x) @ head - 1) ** 2).mean()

        @jax.jit
        def step(weights, x):
            value, grads = jax.value_and_grad(loss)(weights, x)
            return jax.tree.map(lambda w, g: w - 0.05 * g, weights, grads), value

        weights, values = (normal(9, 4, 2), params_of(0)), []
        for i in range(4):
            weights, value = step(weights, X if i % 2 else X * 2)
            values.append(float(value))
        return values

    np.testing.assert_allclose(train(made, True), train(apply, True), rtol=1e-5)
    assert counts(made) == (64, 64)  # stop_gradient: a frozen encoder
    made.reset_stats()
    np.testing.assert_allclose(train(made, False), train(apply, False), rtol=1e-5)
    assert made.stats.hits == 0
    assert any("a gradient" in reason for reason in made.stats.bypasses)


def test_what_a_program_encloses_is_what_it_was_traced_with():
    weights = normal(1, 6, 4)

    def f(x):
        return x @ weights

    made = cache(f)
    jitted, plain = jax.jit(made), jax.jit(f)
    assert same(jitted(X), plain(X))
    weights = normal(2, 6, 4)
    assert same(jitted(X), plain(X))  # JAX has both as they were
    assert same(made(X), jax.jit(lambda x: x @ weights)(X))
    assert counts(made) == (64, 32)


def test_manual_fingerprint_in_a_program():
    params = params_of(0)
    options = {"fingerprint": "manual", "scope": fingerprint(params), "params_argnums": 0}
    made = cache(apply, **options)
    jitted = jax.jit(made)
    first = jitted(params, X)
    assert same(first, PLAIN(params, X))
    assert same(jitted(params_of(1), X), first)  # the caller's word
    assert same(made(params, X), first)
    assert counts(made) == (32, 64)


def test_weights_are_read_on_every_call_of_a_program():
    """Other contents in the same memory, as XLA gives donated buffers to the next ones."""
    made = cache(apply, params_argnums=0)
    jitted = jax.jit(made)
    raw = jax.tree.map(lambda p: np.array(p), params_of(0))
    assert same(jitted(raw, X), PLAIN(raw, X))
    for leaf in jax.tree.leaves(raw):
        leaf *= 2
    assert same(jitted(raw, X), PLAIN(raw, X))
    assert counts(made) == (64, 0)


def test_threads():
    made = cache(apply, params_argnums=0)
    jitted = jax.jit(made)
    pool = normal(5, 60, 6)
    versions = [params_of(seed) for seed in range(2)]
    truth = [np.asarray(jax.jit(apply)(params, pool)) for params in versions]
    wrong, raised = [], []

    def work(seed):
        source = random.Random(seed)
        try:
            for _ in range(25):
                version = source.randrange(2)
                rows = np.array([source.randrange(60) for _ in range(32)])
                call = jitted if source.random() < 0.6 else made
                output = np.asarray(call(versions[version], pool[rows]))
                if not np.allclose(output, truth[version][rows], atol=1e-6):
                    wrong.append((seed, version))
        except Exception as error:  # noqa: BLE001
            raised.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    assert wrong == []
    assert made.stats.errors == {}
    assert made.stats.hits > made.stats.misses


PROCESS = """
import sys
import jax, numpy as np
from jax import numpy as jnp
from tensorkey.jax import cached

w = np.linspace(-1, 1, 24, dtype="float32").reshape(6, 4)
w = jnp.asarray(w)
x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")

def encode(x):
    return {"z": jnp.tanh(x @ w), "n": jnp.argmax(x, 1)}

def with_params(params, x):
    return jnp.tanh(x @ params["w"]) + params["b"]

directory, way = sys.argv[1:]
for made, args in (
    (cached(encode, disk=directory, bypass="never"), (x,)),
    (
        cached(with_params, params_argnums=0, disk=directory, bypass="never"),
        ({"w": w, "b": jnp.ones(4)}, x),
    ),
):
    call = jax.jit(made) if way == "jit" else made
    out = jax.block_until_ready(call(*args))
    made.cache.flush()
    leaves = [np.asarray(leaf).view("uint8").astype("u8") for leaf in jax.tree.leaves(out)]
    places = [np.arange(1, leaf.size + 1).reshape(leaf.shape) for leaf in leaves]
    digest = sum(int((leaf * at).sum()) for leaf, at in zip(leaves, places))
    print(made.stats.misses, made.stats.hits, made.stats.probe_runs > 0, digest)
"""


def test_processes_share_a_directory(tmp_path):
    def run(way):
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, str(tmp_path / "store"), way],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "leaked" not in done.stderr
        return [line.split() for line in done.stdout.splitlines()]

    first = run("jit")
    assert [line[:2] for line in first] == [["32", "0"]] * 2
    for way in ("eager", "jit"):
        again = run(way)
        assert [line[:3] for line in again] == [["0", "32", "False"]] * 2
        assert [line[3] for line in again] == [line[3] for line in first]


def test_a_cache_shared_by_functions_and_programs():
    shared = tk.ActivationCache("16 MiB")
    made = [cache(apply, params_argnums=0, cache=shared) for _ in range(2)]
    jax.block_until_ready(jax.jit(made[0])(params_of(0), X))
    jax.block_until_ready(jax.jit(made[1])(params_of(0), X))
    assert counts(made[1]) == (0, 32)
