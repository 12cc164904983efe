"""TensorFlow below a cached Keras layer: guards and environment.

Two of the guards ask modules of TensorFlow that are not public; the tests pin what they must
detect.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.framework import config as framework_config

from tensorkey import _core
from tensorkey._fingerprint import Fingerprint
from tensorkey._tensorflow_graph import traced_call, unfit_graph
from tensorkey._tensorflow_rows import Rows

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


supports_jit = False
"""XLA cannot call back, as lookups do."""
answers_stateless = False


def transform() -> str | None:
    """Return why a call now must run the layer itself, whatever its arguments."""
    return None if tf.executing_eagerly() else unfit_graph()


def traced(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the call is traced: by tf.function, fit, predict, tf.data."""
    return not tf.executing_eagerly()


def unfit_inputs(inputs: Sequence[Any]) -> str | None:
    """Return why rows of these inputs cannot be looked up."""
    eager = tf.executing_eagerly()
    for tensor in inputs:
        if eager and not hasattr(tensor, "numpy"):
            return f"an input that is no eager tensor: {type(tensor).__name__}"
        if tensor.dtype in (tf.string, tf.variant, tf.resource):
            return f"an input of dtype {tensor.dtype.name}"
    return None


def recording() -> bool:
    """Whether a GradientTape or ForwardAccumulator is active."""
    return bool(record.could_possibly_record())


def differentiated(inputs: Sequence[Any]) -> bool:
    """Whether the active tapes or accumulators follow one of these inputs."""
    inputs = list(inputs)
    if record.should_record_backprop(inputs):
        return True
    return bool(forwardprop_util.pack_tangents(inputs).tangents)


@functools.cache
def _machine() -> tuple[str, str]:
    """Return the CPU's model, and a digest of all that it can do."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    wanted = ("flags", "Features", "CPU part")
    able = "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    model = next((line for line in lines if line.startswith("model name")), "").partition(":")[2]
    return model.strip(), _core.blake3(able.encode()).hex()[:16]


def unfit_layer(fingerprint: Fingerprint) -> str | None:
    """Return why a layer must run: nothing here."""
    return None


inference = record.stop_recording
"""A context in which no gradients are recorded."""


def _threads() -> int:
    """Return in how many threads an operation may run."""
    return tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1


_settled_threads = functools.cache(_threads)
"""The same where a tensor has a value: TensorFlow then refuses to change it."""


def environment(tensor: Any, portable: bool = False, mode: str = "eager") -> tuple[object, ...]:
    """Return what else the bits of an answer depend on, as plain values.

    A graph, which has no tensor to show, is on the CPU.
    """
    threads = _threads() if tensor is None else _settled_threads()
    return (
        tf.__version__,
        mode,
        "" if tensor is None else tensor.device,
        platform.machine(),
        *(("", "") if portable else _machine()),
        os.environ.get("TF_ENABLE_ONEDNN_OPTS", ""),
        0 if portable else threads,
        framework_config.is_op_determinism_enabled(),
        tf.config.experimental.tensor_float_32_execution_enabled(),
    )


def runner(wrapper: Any) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """Return what runs the layer on a chunk."""

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with inference():
            return wrapper._run_inner(args, kwargs)

    return run
