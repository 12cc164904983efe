"""A head learns on a frozen backbone of Keras that is run once an image instead of once an epoch.

    python examples/transfer_learning.py                          # on TensorFlow
    KERAS_BACKEND=jax python examples/transfer_learning.py        # or torch

Drawn circles, squares and triangles; a MobileNetV2, whose weights stay as they are made (pretrained
ones would be downloaded); a head that `fit` trains, inside the graph or jit that the backend makes
of it. The same is trained twice, without the cache and with it: `strip` gives the plain model back.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tensorkey.keras import CachedLayer, strip

IMAGES, SIDE, EPOCHS, BATCH = 256, 32, 4, 64


def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images, (count, 32, 32, 3), of one shape each, and which shape it is."""
    random = np.random.default_rng(0)
    kinds = random.integers(0, 3, count)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    images = random.normal(0, 0.1, (count, SIDE, SIDE, 3)).astype("float32")
    for image, kind in zip(images, kinds, strict=True):
        (row, column), size = random.integers(10, SIDE - 10, 2), random.integers(5, 9)
        down, right = y - row, x - column
        inside = (
            down**2 + right**2 <= size**2,
            np.maximum(abs(down), abs(right)) <= size,
            (abs(down) <= size) & (2 * abs(right) <= down + size),
        )[kind]
        image[inside] += random.uniform(0.4, 1, 3)
    return images, kinds


def classifier(backbone: keras.layers.Layer) -> keras.Model:
    """Return a head on a backbone."""
    keras.utils.set_random_seed(1)  # the same head, whatever is below it
    model = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), backbone, keras.layers.Dense(3, activation="softmax")]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return model


def train(model: keras.Model, images: np.ndarray, kinds: np.ndarray) -> tuple[list[float], object]:
    """Return the seconds of each epoch and what `fit` recorded."""
    seconds = []

    class Clock(keras.callbacks.Callback):
        """Looks at the time."""

        def on_epoch_begin(self, epoch, logs=None):
            """Begin an epoch."""
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            """End it."""
            seconds.append(time.perf_counter() - self.start)

    history = model.fit(
        images, kinds, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[Clock()]
    )
    return seconds, history.history


def main() -> None:
    """Train twice, and compare."""
    keras.utils.set_random_seed(0)
    backbone = keras.applications.MobileNetV2(
        (SIDE, SIDE, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    backbone.trainable = False
    images, kinds = draw(IMAGES)

    plain, expected = train(classifier(backbone), images, kinds)
    encoder = CachedLayer(backbone, memory="256 MiB", bypass="never")
    model = classifier(encoder)
    cached, found = train(model, images, kinds)

    print(f"epoch   without   cached   loss ({keras.backend.backend()})")
    rows = zip(plain, cached, expected["loss"], found["loss"], strict=True)
    for epoch, (before, after, truth, loss) in enumerate(rows):
        print(f"{epoch}     {before:6.2f} s {after:6.2f} s   {loss:.5f}")
        assert abs(loss - truth) < 1e-3
    print(encoder.stats)
    assert encoder.stats.hits >= (EPOCHS - 2) * IMAGES  # docs/frontends/keras.md: where bits depend

    served = strip(model)  # the plain model, with the trained head and the same weights
    one, other = (m.predict(images[:8], verbose=0) for m in (served, model))
    np.testing.assert_allclose(one, other, atol=1e-5)


if __name__ == "__main__":
    main()
