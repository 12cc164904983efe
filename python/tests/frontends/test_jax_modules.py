"""Modules of Flax and Equinox as they are used: enclosed, bound, as arguments."""

import functools

import pytest

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")

from jax import numpy as jnp  # noqa: E402

from tensorkey import errors  # noqa: E402
from tensorkey.jax import cached, fingerprint  # noqa: E402


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(0, 32, 6)
IMAGES = normal(1, 32, 3, 8, 8)


def cache(function, **options):
    return cached(function, **{"bypass": "never", **options})


def counts(made):
    return made.stats.misses, made.stats.hits


def close(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=2e-5)


def check(made, plain, *args, misses):
    """Compare an eager and a jitted call with the function, and with what is to be run."""
    before = made.stats.misses
    close(made(*args), plain(*args))
    close(jax.block_until_ready(jax.jit(lambda *args: made(*args))(*args)), plain(*args))
    assert made.stats.misses == before + misses
    assert made.stats.bypasses == {}
    assert made.stats.assumptions == []


# Flax, Linen.


def linen_module(features=4):
    nn = pytest.importorskip("flax.linen")

    class Encoder(nn.Module):
        features: int
        rate: float = 0.5

        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dense(8)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.Dropout(self.rate, deterministic=not train)(nn.gelu(x))
            return nn.Dense(self.features)(x)

    module = Encoder(features)
    return module, module.init(jax.random.key(0), X)


def test_linen():
    module, variables = linen_module()
    plain = functools.partial(module.apply, variables)
    for function in (
        plain,
        lambda x: module.apply(variables, x),
        module.bind(variables),
        jax.jit(lambda x: module.apply(variables, x)),
    ):
        check(cache(function), plain, X, misses=32)


def test_linen_variables_as_arguments():
    module, variables = linen_module()
    made = cache(module.apply, params_argnums=0)
    check(made, module.apply, variables, X, misses=32)
    other = jax.tree.map(lambda p: p + 0.5, variables)
    check(made, module.apply, other, X, misses=32)
    statistics = {**variables, "batch_stats": other["batch_stats"]}
    check(made, module.apply, statistics, X, misses=32)
    check(made, module.apply, variables, X, misses=0)
    flax = pytest.importorskip("flax")
    frozen = flax.core.freeze(variables)
    close(made(frozen, X), module.apply(variables, X))
    twice = jax.tree.map(jnp.array, variables)
    assert fingerprint(variables) == fingerprint(twice) != fingerprint(other)


def test_options_of_linen_modules_count():
    one, variables = linen_module()
    made = cache(lambda x, module=one: module.apply(variables, x))
    made(X)
    other = one.copy(rate=0.25)
    close(made(X, module=other), other.apply(variables, X))
    made = {rate: cache(functools.partial(one.copy(rate=rate).apply, variables)) for rate in (0, 1)}
    digests = {rate: m._engine.fingerprint.check().structure for rate, m in made.items()}
    assert digests[0] != digests[1]


def test_linen_in_training_is_refused():
    module, variables = linen_module()

    key = jax.random.key(7)

    def train(x):
        rngs = {"dropout": key}
        return module.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

    with pytest.raises(errors.Unsupported, match="rows"):  # statistics of the batch
        cache(lambda x: train(x)[0])(X)
    made = cache(train)
    with pytest.raises(errors.InvalidArgument, match="row"):
        made(X)


# Flax, NNX.


def nnx_module():
    nnx = pytest.importorskip("flax.nnx")

    class Encoder(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(6, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.last = nnx.Linear(8, 4, rngs=rngs)
            self.scale = 1.0

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x)))) * self.scale

    return nnx, Encoder(nnx.Rngs(0))


def test_nnx():
    _, module = nnx_module()
    made = cache(module)
    check(made, module, X, misses=32)
    module.last.bias[...] = jnp.ones(4)
    check(made, module, X, misses=32)
    module.norm.mean.set_value(jnp.ones(8))
    check(made, module, X, misses=32)
    module.scale = 2.0
    check(made, module, X, misses=32)
    module.scale = 1.0
    check(made, module, X, misses=0)


def test_nnx_state_as_an_argument():
    nnx, module = nnx_module()
    graph, state = nnx.split(module)

    def apply(state, x):
        return nnx.merge(graph, state)(x)

    made = cache(apply, params_argnums=0)
    check(made, apply, state, X, misses=32)
    other = jax.tree.map(lambda p: p * 2, state)
    check(made, apply, other, X, misses=32)
    check(made, apply, state, X, misses=0)


# Equinox.


def test_equinox():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(6, 4, 8, 2, key=jax.random.key(0))
    plain = jax.vmap(module)
    for function in (plain, jax.jit(plain), lambda x: jax.vmap(module)(x), eqx.filter_vmap(module)):
        check(cache(function), plain, X, misses=32)
    made = cache(eqx.filter_jit(eqx.filter_vmap(module)))
    close(made(X), plain(X))
    assert counts(made) == (32, 0)


def test_equinox_modules_as_arguments():
    eqx = pytest.importorskip("equinox")

    def apply(module, x):
        return jax.vmap(module)(x)

    module = eqx.nn.MLP(6, 4, 8, 2, key=jax.random.key(0))
    made = cache(apply, params_argnums=0)
    jitted = eqx.filter_jit(lambda module, x: made(module, x))
    changed = [
        module,
        eqx.tree_at(lambda m: m.layers[0].bias, module, module.layers[0].bias + 1),
        eqx.tree_at(lambda m: m.activation, module, jnp.tanh),
    ]
    for number, one in enumerate(changed, 1):
        close(made(one, X), apply(one, X))
        close(jax.block_until_ready(jitted(one, X)), apply(one, X))
        assert counts(made) == (32 * number, 32 * number)
    arrays, static = eqx.partition(module, eqx.is_array)
    close(made(eqx.combine(arrays, static), X), apply(module, X))
    assert counts(made) == (96, 128)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradients(module):
        return (made(module, X) ** 2).sum()

    @eqx.filter_grad
    def truth(module):
        return (apply(module, X) ** 2).sum()

    close(eqx.filter(gradients(module), eqx.is_array), eqx.filter(truth(module), eqx.is_array))


def test_equinox_convolutions():
    eqx = pytest.importorskip("equinox")

    class Encoder(eqx.Module):
        layers: list
        scale: float = eqx.field(static=True)

        def __init__(self, key, scale=1.0):
            keys = jax.random.split(key, 2)
            self.layers = [eqx.nn.Conv2d(3, 4, 3, key=keys[0]), eqx.nn.Conv2d(4, 2, 3, key=keys[1])]
            self.scale = scale

        def __call__(self, x):
            for layer in self.layers:
                x = jax.nn.relu(layer(x))
            return x.mean((1, 2)) * self.scale

    module = Encoder(jax.random.key(0))
    made = cache(jax.vmap(module))
    jitted = jax.jit(lambda x: made(x))
    truth = np.asarray(jax.jit(jax.vmap(module))(IMAGES))
    for rows in (range(32), range(31, -1, -1)):
        made.cache_clear()
        rows = np.array(rows)
        assert np.asarray(jitted(IMAGES[rows])).tobytes() == truth[rows].tobytes()
        assert np.asarray(made(IMAGES[rows])).tobytes() == truth[rows].tobytes()
    assert counts(made) == (64, 64)
    scaled = cache(lambda module, x: jax.vmap(module)(x), params_argnums=0)
    close(scaled(module, IMAGES), jax.vmap(module)(IMAGES))
    other = Encoder(jax.random.key(0), 2.0)
    close(scaled(other, IMAGES), jax.vmap(other)(IMAGES))
    assert counts(scaled) == (64, 0)
