"""What does a cached layer of Keras cost and save, on each backend and in each way of calling it?

The layer is a frozen MobileNet (alpha 0.25, images of 64 x 64, average pooling, random weights)
on batches of 64 images. A ratio is the time of the bare layer over that of the cached one, called
in the same way; where it says "at most", ours over the bare one. Every backend is a process of
its own; its answers are checked first. "usual" is the layer with a dict under tuples of values
that people write (examples/seed_content.py), "bare" the layer itself; Keras's own call is in all of
them. What no cache can be faster than is the row "a layer that averages".

    python bench/keras/bench_keras.py > keras.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from common import Row, Work, interleaved, show, spread

BACKENDS = ("tensorflow", "torch", "jax")
ROWS = 64
BATCHES = 8


def compared(works: dict[str, Work], ours: str, bars: dict[str, Row], rounds: int) -> list[Row]:
    """Rows of a table: ratios of each work's time to ours, or ours to it where a bar is a most."""
    times = interleaved(works, rounds, seconds=0.05)
    rows = []
    for name, theirs in times.items():
        bar = bars.get(name, {})
        pairs = list(zip(theirs, times[ours], strict=True))
        ratios = [o / t if "most" in bar else t / o for t, o in pairs]
        middle = sorted(theirs)[len(theirs) // 2]
        rows.append({"name": name, "ns": round(middle), **spread(ratios, 3), **bar})
    return rows


def images(seed: int, rows: int = ROWS) -> np.ndarray:
    """Return a batch."""
    return np.random.default_rng(seed).random((rows, 64, 64, 3), dtype=np.float32)


def of_backend(rounds: int) -> dict[str, list[Row]]:
    """Time one backend: that of this process."""
    import keras
    from keras import ops

    from tensorkey.keras import CachedLayer

    keras.utils.set_random_seed(0)
    name = keras.backend.backend()

    def encoder() -> Any:
        layer = keras.applications.MobileNet(
            (64, 64, 3), alpha=0.25, include_top=False, weights=None, pooling="avg"
        )
        layer.trainable = False
        return layer

    def model(layer: Any) -> Any:
        built = keras.Sequential([keras.Input((64, 64, 3)), layer])
        built.compile()
        return built

    def ready(tensor: object) -> np.ndarray:
        return ops.convert_to_numpy(tensor)

    tables: dict[str, list[Row]] = {}
    bare = encoder()
    batch = ops.convert_to_tensor(images(0))

    # All hits, eager.
    cached = CachedLayer(bare, bypass="never")
    for _ in range(3):
        cached(batch)
    np.testing.assert_allclose(ready(cached(batch)), ready(bare(batch, training=False)), atol=1e-4)
    works = {"cached": lambda: ready(cached(batch)), "bare": lambda: ready(bare(batch))}
    cached.reset_stats()
    tables[f"{name}: eager, all hits"] = compared(works, "cached", {"bare": {"bar": 10.0}}, rounds)
    assert cached.stats.misses == 0
    assert not cached.stats.bypasses

    # All hits, predict.
    data = images(1, ROWS * BATCHES)
    inside = CachedLayer(bare, bypass="never")
    ours, theirs = model(inside), model(bare)

    def predicted(of: Any) -> np.ndarray:
        return of.predict(data, batch_size=ROWS, verbose=0)

    for _ in range(3):
        answer = predicted(ours)
    np.testing.assert_allclose(answer, predicted(theirs), atol=1e-4)
    least = model(keras.layers.GlobalAveragePooling2D())  # what is Keras's own, in all of them
    predicted(least)
    works = {
        "cached": lambda: predicted(ours),
        "bare": lambda: predicted(theirs),
        "a layer that averages": lambda: predicted(least),
    }
    inside.reset_stats()
    title = f"{name}: predict on {BATCHES} batches, all hits"
    tables[title] = compared(works, "cached", {"bare": {"bar": 10.0}}, rounds)
    assert inside.stats.misses == 0
    assert not inside.stats.bypasses

    for how in ("eager", "predict_on_batch"):
        title = f"{name}: {how}, no reuse (making a new batch is in both)"
        tables[title] = no_reuse(encoder(), how, rounds)
    return tables | relu(name, rounds)


def no_reuse(layer: Any, how: str, rounds: int) -> list[Row]:
    """Time batches that are never seen again."""
    import keras
    from keras import ops

    from tensorkey.keras import CachedLayer

    def work_of(of: Any, size: int = ROWS) -> Work:
        model = keras.Sequential([keras.Input((64, 64, 3)), of])
        model.compile()
        batch = images(2)

        def call() -> object:
            np.add(batch, 1e-4, out=batch)
            return np.concatenate([run(batch[i : i + size]) for i in range(0, ROWS, size)])

        def run(part: np.ndarray) -> np.ndarray:
            if how == "eager":
                return ops.convert_to_numpy(of(ops.convert_to_tensor(part)))
            return model.predict_on_batch(part)

        return call

    cached = CachedLayer(layer, memory="64 MiB")
    works = {
        "cached": work_of(cached),
        "bare": work_of(layer),
        "bare, in chunks of 32": work_of(layer, 32),
    }
    for _ in range(3):
        one, *others = (work() for work in works.values())
        for other in others:
            np.testing.assert_allclose(one, other, atol=1e-4)
    rows = compared(works, "cached", {"bare": {"most": 1.05}}, rounds)
    assert cached.stats.hits == 0
    return rows


def relu(name: str, rounds: int) -> dict[str, list[Row]]:
    """The example that people start from: relu on 16 x 384."""
    import keras
    from keras import ops

    from tensorkey.keras import CachedLayer

    class Usual(keras.layers.Layer):
        """Values in a tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.answers = {}

        def call(self, x):
            """Relu of x, or of whatever had the same numbers in it."""
            key = tuple(np.array(x).flatten().tolist())
            if key not in self.answers:
                self.answers[key] = ops.relu(x)
            return self.answers[key]

    x = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(16, 384)).astype("float32"))
    ours = CachedLayer(keras.layers.ReLU(), bypass="never")
    usual, bare = Usual(), keras.layers.ReLU()
    for layer in (ours, usual, bare):
        for _ in range(3):
            answer = layer(x)
        assert (ops.convert_to_numpy(answer) == np.maximum(ops.convert_to_numpy(x), 0)).all()
    works = {"cached": lambda: ours(x), "usual": lambda: usual(x), "bare": lambda: bare(x)}
    bars: dict[str, Row] = {"usual": {"bar": 4.0}} if name == "tensorflow" else {}
    rows = compared(works, "cached", bars, 4 * rounds)
    tables = {f"{name}: relu on 16 x 384, eager, hit for hit": rows}
    if name == "tensorflow":
        import tensorflow as tf

        in_graph = tf.function(lambda x: ours(x), autograph=False)
        bare_graph = tf.function(lambda x: bare(x), autograph=False)
        for _ in range(3):
            assert (in_graph(x).numpy() == bare_graph(x).numpy()).all()
        works = {"cached": lambda: in_graph(x), "bare": lambda: bare_graph(x)}
        rows = compared(works, "cached", {}, 4 * rounds)
        tables["tensorflow: relu on 16 x 384, in tf.function, where the usual answer fails"] = rows
    return tables


def main() -> None:
    """Time the backends, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--backends", nargs="*", default=BACKENDS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(of_backend(args.rounds)))
        return
    tables: dict[str, list[Row]] = {}
    for name in args.backends:
        start = time.perf_counter()
        environment = {**os.environ, "KERAS_BACKEND": name, "TF_CPP_MIN_LOG_LEVEL": "3"}
        told = subprocess.run(
            [sys.executable, __file__, "--here", "--rounds", str(args.rounds)],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        tables |= json.loads(told.stdout.splitlines()[-1])
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    about = (
        "A cached layer of Keras 3: a frozen MobileNet on 64 images of 64 x 64, time of the bare "
        "layer over ours; at most: ours over the bare one's."
    )
    show("keras", about, tables, versions=versions())


def versions() -> dict[str, str]:
    """What it ran on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("keras", "tensorflow-cpu", "torch", "jax", "numpy")}


if __name__ == "__main__":
    main()
