"""JAX below a cached Keras layer: what _keras_below.py asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import keras

from tensorkey._fingerprint import Fingerprint
from tensorkey._jax_environment import environment
from tensorkey._jax_rows import Rows, unfit_inputs
from tensorkey._jax_tracing import is_tracing

__all__ = [
    "Rows",
    "answers_stateless",
    "differentiated",
    "environment",
    "inference",
    "recording",
    "runner",
    "supports_jit",
    "traced",
    "traced_call",
    "transform",
    "unfit_inputs",
    "unfit_layer",
]

supports_jit = True
answers_stateless = True
inference = nullcontext
"""A context in which no gradients are recorded: JAX records none."""


def transform() -> str | None:
    """Return why a call now must run the layer itself, whatever its arguments."""
    if keras.distribution.distribution() is not None:
        return "keras.distribution is in use: arrays lie on several devices"
    return None


def traced(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether JAX traces something: under jit, grad, vmap, in fit and predict."""
    return is_tracing()


def traced_call(wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the answer of a call while something is traced, symbolic if its inputs are."""
    from tensorkey._keras_jax_graph import traced_call as call

    return call(wrapper, args, kwargs)


def runner(wrapper: Any) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """Return what runs the layer on a chunk."""
    from tensorkey._keras_jax import Programs

    return Programs(wrapper)


def recording() -> bool:
    """Whether gradients are recorded: never."""
    return False


def differentiated(inputs: Sequence[Any]) -> bool:
    """Whether gradients of these inputs are recorded: never."""
    return False


def unfit_layer(fingerprint: Fingerprint) -> str | None:
    """Return why a layer must run: nothing here."""
    return None
