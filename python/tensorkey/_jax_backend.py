"""JAX below a cached Keras layer: what _keras_below.py asks.

Whether anything is being traced is asked of a module of JAX that is not public; the tests pin what
it must detect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from time import perf_counter
from typing import Any

import jax
import keras
from jax._src.core import trace_state_clean
from keras.src.backend.common.stateless_scope import get_stateless_scope

from tensorkey._backend import Bypass
from tensorkey._fingerprint import Fingerprint
from tensorkey._jax_environment import environment
from tensorkey._jax_rows import Rows, unfit_inputs

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
    return not trace_state_clean()


def traced_call(wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the answer of a call while something is traced, symbolic if its inputs are."""
    held: Iterable[Any] = ()
    scope = get_stateless_scope()
    if scope is not None:
        held = map(scope.get_current_value, wrapper.layer.variables)
    if any(isinstance(x, jax.core.Tracer) for x in chain(keras.tree.flatten((args, kwargs)), held)):
        raise Bypass("a traced call")
    if not wrapper.layer.built:
        raise Bypass("the first call builds the layer")
    with jax.ensure_compile_time_eval():  # all of it has values
        return wrapper._engine.call(args, kwargs, perf_counter())


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
