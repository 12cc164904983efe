"""A linear probe on a frozen encoder in plain JAX: the whole training step is jitted.

    python examples/linear_probe.py

What does a layer of a network know? A probe is a linear classifier that is trained on what it
gives. Here the encoder is a residual network with weights as they are drawn, the inputs are waves
of three shapes, and the probe learns to tell them apart. `cached` has the encoder run once for each
input, inside `jax.jit` and below the `jax.grad` of the probe.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import numpy as np
from jax import numpy as jnp

from tensorkey.jax import cached

ROWS, WIDTH, BLOCKS, BATCH, EPOCHS = 512, 256, 24, 64, 4

Params = dict[str, jax.Array]


def waves() -> tuple[np.ndarray, np.ndarray]:
    """Return sines, squares and saws with noise, (512, 256), and which is which."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 3, ROWS)
    time_of = np.linspace(0, 1, WIDTH) * random.uniform(2, 9, (ROWS, 1)) + random.random((ROWS, 1))
    phase = time_of % 1
    shapes = np.stack([np.sin(2 * np.pi * phase), np.sign(phase - 0.5), 2 * phase - 1])
    rows = shapes[kinds, np.arange(ROWS)] + random.normal(0, 0.2, (ROWS, WIDTH))
    return rows.astype("float32"), kinds


def make_encoder() -> Callable[[jax.Array], jax.Array]:
    """Return a frozen network, from (n, 256) to (n, 256), that holds its weights."""
    keys = jax.random.split(jax.random.key(0), 2 * BLOCKS)
    weights = [jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5 for key in keys]

    def encode(x: jax.Array) -> jax.Array:
        for up, down in zip(weights[::2], weights[1::2], strict=True):
            x = x + jax.nn.gelu(x @ up) @ down / 4
        return x

    return encode


def loss_of(probe: Params, features: jax.Array, kinds: jax.Array) -> jax.Array:
    """Return the cross entropy of a linear classifier."""
    logits = features @ probe["weights"] + probe["bias"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), kinds[:, None], 1).mean()


def train(encoder: Callable[[jax.Array], jax.Array]) -> tuple[list[float], list[float]]:
    """Return the seconds and the mean loss of each epoch."""
    rows, kinds = waves()

    @jax.jit
    def step(probe: Params, x: jax.Array, y: jax.Array) -> tuple[Params, jax.Array]:
        loss, slope = jax.value_and_grad(lambda probe: loss_of(probe, encoder(x), y))(probe)
        return jax.tree.map(lambda value, by: value - 0.1 * by, probe, slope), loss

    probe = {"weights": jnp.zeros((WIDTH, 3)), "bias": jnp.zeros(3)}
    step(probe, rows[:BATCH] + 1, kinds[:BATCH])  # compiles
    seconds, losses = [], []
    for epoch in range(EPOCHS):
        order = np.random.default_rng(epoch).permutation(ROWS)
        start, total = time.perf_counter(), 0.0
        for first in range(0, ROWS, BATCH):
            part = order[first : first + BATCH]
            probe, loss = step(probe, rows[part], kinds[part])
            total += float(loss)
        seconds.append(time.perf_counter() - start)
        losses.append(total * BATCH / ROWS)
    return seconds, losses


def main() -> None:
    """Train twice, and compare."""
    encode = make_encoder()
    plain, expected = train(encode)
    encoder = cached(encode, memory="64 MiB", bypass="never")
    ours, losses = train(encoder)

    print("epoch   plain     cached    loss")
    for epoch, (before, after, loss) in enumerate(zip(plain, ours, losses, strict=True)):
        print(f"{epoch}    {before:6.3f} s  {after:6.3f} s   {loss:.4f}")
    print(encoder.stats)
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert encoder.stats.misses == ROWS + BATCH
    assert encoder.stats.hits == (EPOCHS - 1) * ROWS


if __name__ == "__main__":
    main()
