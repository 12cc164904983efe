"""A cache in layers of one's own: `self.cache = tk.TensorKeyDict()`, and `@tk.cached_method`.

A PyTorch module and a Keras layer remember what they computed for each input. The cache is theirs:
no framework tracks it, a saved model does not hold it. It knows nothing of the weights, so it is
cleared when they change; `@tk.cached_method` can be told what else an answer depends on.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import copy

import keras
import numpy as np
import torch
from torch import Tensor, nn

import tensorkey as tk


class Tower(nn.Module):
    """A frozen projection that runs once for each different input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3).requires_grad_(False)
        self.cache: tk.TensorKeyDict[Tensor] = tk.TensorKeyDict()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        """Project x."""
        y = self.cache.get(x)
        if y is None:
            self.runs += 1
            y = self.cache[x] = self.linear(x)
        return y.clone()  # whoever writes to the answer must not write to the cache


class Decorated(nn.Module):
    """The same with the decorator: copies, bounds and the state are its business."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3).requires_grad_(False)
        self.runs = 0

    @tk.cached_method(maxsize=1000, state=lambda self: list(self.linear.parameters()))
    def forward(self, x: Tensor) -> Tensor:
        """Project x."""
        self.runs += 1
        return self.linear(x)


class Remembering(keras.layers.Layer):
    """A Keras layer with a cache of its own, for eager calls."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.cache = tk.TensorKeyDict()
        self.runs = 0

    def call(self, x):
        """Softplus of x."""
        try:
            y = self.cache.get(x)
        except tk.errors.Unsupported:  # traced: the tensor has no value
            return keras.ops.softplus(x)
        if y is None:
            self.runs += 1
            y = self.cache[x] = keras.ops.softplus(x)
        return y


def main() -> None:
    """Run each layer twice on equal inputs."""
    torch.manual_seed(0)
    x = torch.randn(5, 4)
    tower = Tower()
    first = tower(x)
    first.zero_()  # the caller's own
    assert torch.equal(tower(x.clone()), tower.linear(x))
    assert tower.runs == 1
    assert list(tower.state_dict()) == ["linear.weight", "linear.bias"]
    assert torch.equal(copy.deepcopy(tower)(x), tower(x))
    print(f"TensorKeyDict in a PyTorch module: 4 calls, {tower.runs} run")

    decorated = Decorated()
    decorated(x)
    assert torch.equal(decorated(x.clone()), decorated.linear(x))
    assert decorated.runs == 1
    decorated.linear.weight.mul_(2)  # the state counts: no old answer
    assert torch.equal(decorated(x), decorated.linear(x))
    assert decorated.runs == 2
    print(f"cached_method: 3 calls, new weights before the last, {decorated.runs} runs")

    layer = Remembering()
    array = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    for _ in range(3):
        answer = layer(keras.ops.convert_to_tensor(array))
    np.testing.assert_allclose(np.array(answer), np.log1p(np.exp(array)), rtol=1e-6)
    assert layer.runs == 1
    print(f"TensorKeyDict in a Keras layer: 3 calls, {layer.runs} run")


if __name__ == "__main__":
    main()
