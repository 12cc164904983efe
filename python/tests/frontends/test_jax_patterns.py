"""Whatever the pattern of hits, eagerly or under jit, no bit differs from the jitted function."""

import random

import pytest

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey.jax import cached  # noqa: E402
from tensorkey.testing import run_in_chunks  # noqa: E402

ROWS = 60
BATCH = 40  # rows of a batch in a program; an eager one has any number
PATTERNS = 110


def normal(seed, *shape, dtype="float32"):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def mlp(params, x):
    hidden = jax.nn.gelu(x @ params[0] + params[1])
    return jax.nn.softmax(hidden @ params[2])


def layer_norm(params, x):
    mean = x.mean(-1, keepdims=True)
    normed = (x - mean) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
    return normed * params[0] + params[1]


def convolution(params, x):
    for kernel in params:
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME")
        x = jax.nn.silu(x)
    return x.mean((2, 3))


def attention(params, x):
    q, k, v = (x @ w for w in params)
    scores = jnp.einsum("bqd,bkd->bqk", q, k) / 4
    return jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), v)


def embedding(params, ids):
    return params[0][ids].mean(1)


def several(params, batch, *, scale=1.0):
    hidden = jnp.tanh(batch["x"] @ params[0]) * batch["mask"][:, None]
    return {"z": hidden * scale, "a": (hidden.sum(-1), batch["x"].argmax(-1))}


CASES = {
    "mlp": (mlp, [normal(1, 16, 48), normal(2, 48), normal(3, 48, 10)], normal(0, ROWS, 16)),
    "narrow": (mlp, [normal(1, 7, 5), normal(2, 5), normal(3, 5, 3)], normal(0, ROWS, 7)),
    "bfloat16": (
        mlp,
        [normal(1, 16, 48, dtype="bfloat16"), normal(2, 48), normal(3, 48, 10)],
        normal(0, ROWS, 16, dtype="bfloat16"),
    ),
    "layer norm": (layer_norm, [normal(1, 33), normal(2, 33)], normal(0, ROWS, 33)),
    "convolution": (
        convolution,
        [normal(1, 4, 3, 3, 3), normal(2, 4, 4, 3, 3)],
        normal(0, ROWS, 3, 8, 8),
    ),
    "attention": (attention, [normal(i, 16, 16) for i in (1, 2, 3)], normal(0, ROWS, 5, 16)),
    "embedding": (
        embedding,
        [normal(1, 50, 12)],
        jax.random.randint(jax.random.key(0), (ROWS, 6), 0, 50),
    ),
    "several": (
        several,
        [normal(1, 16, 12)],
        {"x": normal(0, ROWS, 16), "mask": jnp.arange(ROWS) % 3},
    ),
}


def taken(inputs, rows):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[np.array(rows)]), inputs)


def bits(output, row):
    return [np.asarray(leaf)[row].tobytes() for leaf in jax.tree.leaves(output)]


PASSED = ["mlp", "convolution", "several"]


@pytest.mark.parametrize(
    ("name", "passed"),
    [(name, False) for name in CASES] + [(name, True) for name in PASSED],
    ids=[*CASES, *(f"{name}, weights passed" for name in PASSED)],
)
def test_bits(name, passed):
    function, params, inputs = CASES[name]
    plain = jax.jit(function if passed else lambda x: function(params, x))
    made = cached(function, params_argnums=0, bypass="never") if passed else None
    if made is None:
        made = cached(lambda x: function(params, x), bypass="never")
    first = (params,) if passed else ()
    made(*first, taken(inputs, range(20)))
    chunk = made.stats.chunk

    def reference(rows):
        output = plain(*first, taken(inputs, rows))
        return [bits(output, i) for i in range(len(rows))]

    truth = run_in_chunks(reference, range(ROWS), chunk)
    structure = jax.tree.structure(plain(*first, taken(inputs, range(chunk))))
    jitted = jax.jit(made)
    source = random.Random(3)
    for number in range(PATTERNS):
        if source.random() < 0.1:
            made.cache_clear()
        call, size = (jitted, BATCH) if source.random() < 0.5 else (made, source.randint(1, BATCH))
        rows = [source.randrange(ROWS) for _ in range(size)]
        output = call(*first, taken(inputs, rows))
        wrong = [row for i, row in enumerate(rows) if bits(output, i) != truth[row]]
        assert not wrong, f"call {number}: {len(wrong)} of {len(rows)} rows differ"
        assert jax.tree.structure(output) == structure
    stats = made.stats
    assert stats.bypasses == {}
    assert stats.errors == {}
    assert stats.hits > stats.misses > 0


def test_rows_that_depend_on_each_other_are_refused():
    def centred(x):
        return x - x.mean(0)

    x = normal(0, 40, 8)
    with pytest.raises(errors.Unsupported, match="rows depend on each other"):
        cached(centred)(x)
    made = cached(centred)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a row changes with the rows"):
        jax.block_until_ready(jax.jit(made)(x))
    # The second call knows, and runs the function itself.
    np.testing.assert_allclose(jax.jit(made)(x), centred(x), atol=1e-6)
    assert made.stats.hits == 0
