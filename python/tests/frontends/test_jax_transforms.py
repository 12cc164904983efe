"""Cached functions under the transformations of JAX: always what the function itself gives."""

import gc
import weakref

import pytest

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402

import tensorkey as tk  # noqa: E402
from tensorkey import _jax_graph  # noqa: E402
from tensorkey.jax import cached  # noqa: E402


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


W, HEAD = normal(1, 6, 4), normal(2, 4, 3)
X = normal(0, 32, 6)
XS = X.reshape(4, 8, 6)
GRADIENT = "a gradient with respect to the inputs or the parameters"


def function(x):
    return jnp.tanh(x @ W)


def cache(function, **options):
    return cached(function, **{"bypass": "never", **options})


def counts(made):
    return made.stats.misses, made.stats.hits


def close(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)


def head_loss(f, x):
    return lambda head: (f(x) @ head).sum()


def summed(f):
    return lambda x: f(x).sum()


def add(f):
    return lambda x: x + f(x).sum()


def over(f):
    return lambda carry, x: (carry + f(x).sum(), f(x))


def after_add_of_0(program):
    """An array of its own for a program to take; the program lives on, as it runs later."""
    return lambda x: program(x + 0)


# name: transformation of a function, arguments; each is looked up twice, the second time all hits
CACHED = {
    "jit": (lambda f: jax.jit(f), X),
    "jit of jit": (lambda f: jax.jit(jax.jit(f)), X),
    "jit, donated": (lambda f: after_add_of_0(jax.jit(add(f), donate_argnums=0)), X),
    "vmap": (lambda f: jax.vmap(f), XS),
    "jit of vmap": (lambda f: jax.jit(jax.vmap(f)), XS),
    "vmap of jit": (lambda f: jax.vmap(jax.jit(f)), XS),
    "vmap over a dim inside": (lambda f: jax.jit(jax.vmap(f, in_axes=1, out_axes=1)), XS),
    "vmap of vmap": (lambda f: jax.jit(jax.vmap(jax.vmap(f))), X.reshape(2, 4, 4, 6)),
    "vmap of one row": (lambda f: jax.vmap(lambda row: f(row[None])[0]), X),
    "scan": (lambda f: jax.jit(lambda xs: lax.scan(over(f), 0.0, xs)), XS),
    "scan, eager": (lambda f: lambda xs: lax.scan(over(f), 0.0, xs), XS),
    "map": (lambda f: jax.jit(lambda xs: lax.map(f, xs)), XS),
    "cond": (lambda f: jax.jit(lambda x: lax.cond(x.sum() > 1e9, lambda x: -f(x), f, x)), X),
    "vmap of cond": (
        lambda f: jax.jit(jax.vmap(lambda x: lax.cond(x.sum() > 0, lambda x: -f(x), f, x))),
        XS,
    ),
    "while": (
        lambda f: jax.jit(
            lambda x: lax.while_loop(
                lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + 0.01 * f(c[1]).sum()), (0, x)
            )
        ),
        X,
    ),
    "checkpoint": (lambda f: jax.jit(jax.checkpoint(f)), X),
    "gradient of a head": (lambda f: jax.jit(jax.grad(head_loss(f, X))), HEAD),
    "gradient of a head, eager": (lambda f: jax.grad(head_loss(f, X)), HEAD),
    "hessian of a head": (lambda f: jax.hessian(lambda h: (f(X) @ h).sum() ** 2), HEAD),
    "gradient of a head, checkpoint": (
        lambda f: jax.jit(jax.grad(jax.checkpoint(lambda h: (f(X) @ h).sum()))),
        HEAD,
    ),
    "gradient of a head in a scan": (
        lambda f: jax.jit(
            jax.grad(lambda h: lax.scan(lambda c, x: (c + (f(x) @ h).sum(), 0), 0.0, XS)[0])
        ),
        HEAD,
    ),
    "vmap inside jit inside grad": (
        lambda f: jax.grad(jax.jit(lambda h: (jax.vmap(f)(XS) @ h).sum())),
        HEAD,
    ),
    "vmap of heads": (lambda f: jax.vmap(head_loss(f, X)), jnp.stack([HEAD, -HEAD])),
    "jvp of a head": (lambda f: lambda h: jax.jvp(head_loss(f, X), (h,), (h,)), HEAD),
    "compiled ahead of time": (lambda f: jax.jit(f).lower(X).compile(), X),
}

# name: transformation, argument, a part of the reason
BYPASSED = {
    "grad": (lambda f: jax.grad(summed(f)), X, GRADIENT),
    "jit of grad": (lambda f: jax.jit(jax.grad(summed(f))), X, GRADIENT),
    "grad of jit": (lambda f: jax.grad(jax.jit(summed(f))), X, GRADIENT),
    "value and grad": (lambda f: jax.value_and_grad(summed(f)), X, GRADIENT),
    "jvp": (lambda f: lambda x: jax.jvp(f, (x,), (x,)), X, GRADIENT),
    "jit of jvp": (lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (x,))), X, GRADIENT),
    "vjp": (lambda f: lambda x: jax.vjp(f, x)[1](jnp.ones((32, 4))), X, GRADIENT),
    "linearize": (lambda f: lambda x: jax.linearize(f, x)[1](x), X, GRADIENT),
    "hessian": (lambda f: jax.hessian(summed(f)), X[:3], GRADIENT),
    "jacrev": (lambda f: jax.jacrev(f), X[:3], GRADIENT),
    "jacfwd": (lambda f: jax.jit(jax.jacfwd(f)), X[:3], GRADIENT),
    "checkpoint": (lambda f: jax.grad(summed(jax.checkpoint(f))), X, GRADIENT),
    "vmap of grad": (lambda f: jax.jit(jax.vmap(jax.grad(summed(f)))), XS, GRADIENT),
    "grad of vmap": (lambda f: jax.grad(summed(jax.vmap(f))), XS, GRADIENT),
    "grad through a scan": (
        lambda f: jax.jit(jax.grad(lambda xs: lax.scan(over(f), 0.0, xs)[0])),
        XS,
        GRADIENT,
    ),
    "vmap with a name": (lambda f: jax.vmap(f, axis_name="i"), XS, "a named axis"),
    "pmap": (lambda f: jax.pmap(f), X[None], "a named axis"),
    "one dim": (lambda f: jax.vmap(f), X, "without a row for each"),
}


@pytest.mark.parametrize("name", CACHED)
def test_cached(name):
    transformed, argument = CACHED[name]
    made = cache(function)
    expected = transformed(function)(argument)
    wrapped = transformed(made)
    close(wrapped(argument), expected)
    misses, _ = counts(made)
    assert misses >= len(X)
    close(wrapped(argument), expected)
    assert made.stats.misses == misses
    assert made.stats.hits >= len(X)
    assert made.stats.bypasses == {}
    assert made.stats.errors == {}


@pytest.mark.parametrize("name", BYPASSED)
def test_bypassed(name):
    transformed, argument, reason = BYPASSED[name]
    made = cache(function)
    made(X)
    close(transformed(made)(argument), transformed(function)(argument))
    assert counts(made) == (32, 0)
    assert made.stats.bypasses
    assert all(reason in told for told in made.stats.bypasses)


def test_tracing_touches_nothing():
    made = cache(function)
    text = str(jax.make_jaxpr(made)(X))
    assert "tensorkey_cached" in text
    assert "tanh" not in text
    assert jax.eval_shape(made, X).shape == (32, 4)
    jax.jit(made).lower(X)
    assert counts(made) == (0, 0)
    assert made.stats.batches == 0
    assert made.stats.cache.entries == 0
    assert made.stats.bypasses == {}


def test_export_holds_the_function_itself():
    made = cache(function)
    exported = jax.export.export(jax.jit(made))(X)
    assert list(made.stats.bypasses) == ["jax.export: what is exported holds the function itself"]
    close(jax.export.deserialize(exported.serialize()).call(X), function(X))
    both = jax.export.export(jax.jit(made), platforms=("cpu", "cuda"))(X)
    close(both.call(X), function(X))
    assert counts(made) == (0, 0)


def test_eager_calls_and_programs_share_their_answers():
    made = cache(function)
    jitted = jax.jit(made)
    first = made(X)
    assert np.asarray(jitted(X)).tobytes() == np.asarray(first).tobytes()
    assert np.asarray(jax.vmap(made)(XS)).tobytes() == np.asarray(first).tobytes()
    assert counts(made) == (32, 64)
    made.cache_clear()
    jax.block_until_ready(jitted(X))
    made(X)
    jax.block_until_ready(jax.jit(jax.vmap(made))(XS))
    assert counts(made) == (64, 128)


def batch_function(batch, *, scale=1.0):
    hidden = jnp.tanh(batch["x"] @ W) * batch["mask"][:, None]
    return {"z": hidden * scale, "a": (hidden.sum(-1), batch["x"].argmax(-1))}


BATCH = {"x": X, "mask": jnp.arange(32) % 3}


def test_nests_under_transformations():
    made = cache(batch_function)
    jitted = jax.jit(made, static_argnames="scale")
    for scale in (1.0, 2.0):
        close(jitted(BATCH, scale=scale), batch_function(BATCH, scale=scale))
        close(made(BATCH, scale=scale), batch_function(BATCH, scale=scale))
    assert counts(made) == (64, 64)
    tangent = {"x": X * 2, "mask": np.zeros(32, jax.dtypes.float0)}
    close(jax.jvp(made, (BATCH,), (tangent,)), jax.jvp(batch_function, (BATCH,), (tangent,)))
    batches = {"x": XS, "mask": BATCH["mask"].reshape(4, 8)}
    close(jax.vmap(made)(batches), jax.vmap(batch_function)(batches))
    one_mask = {"x": XS, "mask": jnp.arange(8)}
    axes = ({"x": 0, "mask": None},)
    close(
        jax.jit(jax.vmap(made, in_axes=axes))(one_mask),
        jax.vmap(batch_function, in_axes=axes)(one_mask),
    )


def test_functions_with_gradients_of_their_own():
    @jax.custom_vjp
    def clipped(x):
        return jnp.tanh(x)

    clipped.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (jnp.clip(g, -0.1, 0.1),))

    def f(x):
        return clipped(x @ W)

    made = cache(f)
    close(jax.jit(made)(X), f(X))
    close(jax.grad(summed(made))(X), jax.grad(summed(f))(X))
    close(jax.grad(jax.jit(summed(made)))(X), jax.grad(summed(f))(X))
    close(jax.vmap(jax.grad(summed(made)))(XS), jax.vmap(jax.grad(summed(f)))(XS))


def passed(params, x):
    return jnp.tanh(x @ params["w"]) + params["b"]


PARAMS = {"w": W, "b": jnp.ones(4)}


def test_transformations_of_parameters():
    made = cache(passed, params_argnums=0)
    jitted = jax.jit(made)
    close(jitted(PARAMS, X), passed(PARAMS, X))
    made(PARAMS, X)
    assert counts(made) == (32, 32)

    def loss(f):
        return lambda params: f(params, X).sum()

    for transform in (jax.grad, jax.hessian, lambda f: jax.jit(jax.value_and_grad(f))):
        close(transform(loss(made))(PARAMS), transform(loss(passed))(PARAMS))
    several = jax.tree.map(lambda p: jnp.stack([p, p * 2]), PARAMS)
    for call in (lambda f: jax.vmap(f, (0, None)), lambda f: jax.jit(jax.vmap(f, (0, None)))):
        close(call(made)(several, X), call(passed)(several, X))
    assert any("vmap over the parameters" in reason for reason in made.stats.bypasses)
    close(jax.vmap(made, (None, 0))(PARAMS, XS), jax.vmap(passed, (None, 0))(PARAMS, XS))
    close(jax.vmap(made)(several, XS[:2]), jax.vmap(passed)(several, XS[:2]))
    assert counts(made) == (32, 64)


def test_values_of_other_transformations_that_are_enclosed():
    shared = tk.ActivationCache("16 MiB")

    def enclosing(make):
        return lambda w, x: make(lambda x: jnp.tanh(x @ w))(x)

    seen = []

    def make(f):
        seen.append(cache(f, cache=shared))
        return seen[-1]

    plain, made = enclosing(lambda f: f), enclosing(make)
    jitted = jax.jit(made)
    for w in (W, W * 2, W):
        close(jitted(w, X), plain(w, X))
    assert counts(seen[-1]) == (64, 32)
    close(jax.grad(lambda w: made(w, X).sum())(W), jax.grad(lambda w: plain(w, X).sum())(W))
    ws = jnp.stack([W, W * 2])
    for call in (lambda f: jax.vmap(f, (0, None)), lambda f: jax.jit(jax.vmap(f, (0, None)))):
        close(call(made)(ws, X), call(plain)(ws, X))
    close(jax.vmap(made, (None, 0))(W, XS), jax.vmap(plain, (None, 0))(W, XS))
    close(jax.jit(jax.vmap(made, (None, 0)))(W, XS), jax.vmap(plain, (None, 0))(W, XS))


def test_what_a_graph_leaves_to_the_function():
    cases = [
        (lambda x: {"x": x, "sum": x.sum()}, {}, "without a row for each"),
        (lambda x: x[:, None].repeat(x.shape[0], 1), {}, "another one for another batch size"),
        (lambda x: x.reshape(8, 4, 6), {}, "without a row for each"),
        (lambda x: x.reshape(8, 24).repeat(4, 0), {}, "cannot be traced for chunks"),
        (lambda x: jnp.where(x > 0, 1.0, 0.0), {}, "weakly typed"),
        (lambda x: x * 2, {"rows": "batch"}, "rows='batch'"),
        (lambda x: x * 2, {"codec": "fp16"}, "codec='fp16'"),
        (lambda x: x * 2, {"outputs": (lambda x: x, lambda x: x)}, "outputs="),
    ]
    for f, options, reason in cases:
        made = cache(f, **options)
        x = normal(3, 24, 6) if "chunks" in reason else X
        if "chunks" in reason:
            f = made.__wrapped__
            x = X
            made = cache(lambda x: x.reshape(8, 4, 6).repeat(4, 1)[:, :4].reshape(32, 6), chunk=64)
            f = made.__wrapped__
        close(jax.jit(made)(x), f(x))
        [told] = made.stats.bypasses
        assert reason in told, told
        assert counts(made) == (0, 0)
    made = cache(lambda x, t: x * t)
    close(jax.jit(made)(X, jnp.float32(2.0)), X * 2)
    [told] = made.stats.bypasses
    assert "has no value while the model is being traced" in told
    made = cache(lambda key: jax.random.normal(key, (2,)))
    keys = jax.random.split(jax.random.key(0), 4)
    draw = jax.vmap(lambda key: made(key))
    close(jax.jit(draw)(keys), jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys))


def test_switches_are_asked_when_a_program_runs():
    made = cache(function)
    jitted = jax.jit(made)
    close(jitted(X), function(X))  # and it has ended
    with tk.disabled():
        close(jitted(X), function(X))
        close(jitted(X + 1), function(X + 1))
    assert counts(made) == (32, 0)
    made.bypass = "always"
    close(jitted(X), function(X))
    assert counts(made) == (32, 0)
    made.bypass = "never"
    close(jitted(X), function(X))
    assert counts(made) == (32, 32)
    made.cache_clear()
    close(jitted(X), function(X))
    assert counts(made) == (64, 32)


def test_a_convolution_in_a_program_that_is_switched_off():
    kernel = normal(4, 3, 2, 3, 3)

    def convolve(x):
        return lax.conv(x, kernel, (1, 1), "SAME").mean((2, 3))

    made = cache(convolve)
    x = normal(5, 32, 2, 6, 6)
    with tk.disabled():
        close(jax.jit(made)(x), convolve(x))


def test_verify_inside_a_program():
    made = cache(function, verify=1.0)
    jitted = jax.jit(made)
    for _ in range(3):
        close(jitted(X), function(X))
    assert made.stats.verified > 0
    assert made.stats.deviating == 0


def test_batches_of_other_sizes():
    made = cache(function)
    jitted = jax.jit(made)
    for rows in (1, 5, 31, 32, 33, 70):
        x = normal(6, rows, 6)
        close(jitted(x), function(x))
        close(jitted(x), function(x))
        assert made.stats.hits >= rows
    close(jitted(X[:0]), function(X[:0]))
    alone = cache(function, chunk=1)
    close(jax.jit(alone)(X[:5]), function(X[:5]))
    assert counts(alone) == (5, 0)
    assert alone.stats.padded_rows == 0


def test_nothing_that_is_traced_leaks():
    made = cache(passed, params_argnums=0)
    enclosed = cache(function)
    with jax.checking_leaks():
        close(jax.jit(lambda p, x: made(p, x) * 2)(PARAMS, X), passed(PARAMS, X) * 2)
        close(jax.jit(lambda x: enclosed(x) * 2)(X), function(X) * 2)
        close(jax.jit(jax.grad(lambda x: enclosed(x).sum()))(X), jax.grad(summed(function))(X))


def test_what_is_dropped_is_freed():
    """JAX keeps what it knows of operations: no cache may hang on that."""

    def used(call):
        made = cache(lambda x: jnp.tanh(x @ W))
        jax.block_until_ready(call(made))
        return weakref.ref(made)

    calls = [
        lambda made: made(X),
        lambda made: jax.make_jaxpr(lambda x: made(x))(X).consts,
        lambda made: jax.jit(lambda x: made(x))(X),
        lambda made: jax.vmap(lambda x: made(x))(XS),
        lambda made: jax.jit(jax.grad(lambda x: made(x).sum()))(X),
    ]
    dropped = [used(call) for call in calls]
    gc.collect()
    _jax_graph.let_go(patience=0.0)  # programs that still ran
    assert [ref() for ref in dropped] == [None] * len(calls)


def test_programs_that_are_dropped_while_they_run():
    made = cache(function)
    outputs = [jax.jit(lambda x, i=i: made(x + i))(X) for i in range(20)]
    jax.block_until_ready(outputs)
    assert counts(made) == (20 * 32, 0)


def test_a_program_holds_what_it_calls():
    def compiled():
        made = cache(function)
        return jax.jit(lambda x: made(x)).lower(X).compile()

    program = compiled()
    gc.collect()
    close(program(X), function(X))
    close(program(X), function(X))
