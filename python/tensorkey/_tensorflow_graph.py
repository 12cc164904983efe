"""Calls of a cached Keras layer inside graphs of TensorFlow: tf.function, fit, predict, tf.data.

What is traced, see _graph.py for the callbacks:

    numpy_function       looks up: the members and the weights as tensors -> what to run, hits
    cond, while          the traced layer on the chunks that are to run; numpy_function hands over
    gather               the answer of hits and of what was run

    identity             with a gradient of its own: see _tensorflow_gradient.py

TensorFlow keeps the function of a callback for as long as the process lives. So it refers to what
it does weakly; the graph holds that.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework import func_graph
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from tensorkey._backend import Bypass
from tensorkey._graph import GraphCall, TracedWeights
from tensorkey._inputs import Arguments
from tensorkey._keras_rows import settings
from tensorkey._tensorflow_gradient import Gradient
from tensorkey._tensorflow_trace import traced_layer

if TYPE_CHECKING:
    from tensorkey.keras import CachedLayer

# Who traces, by the names of modules.
_TRACERS = {
    "keras.src.export": "the model is exported: the exported one has the layer itself",
    "tensorflow.python.saved_model": "the model is saved: the saved one has the layer itself",
    "tensorflow.lite": "the model is converted: the converted one has the layer itself",
    "tensorflow.python.ops.parallel_for": "tf.vectorized_map, which cannot call back",
}


def unfit_graph() -> str | None:
    """Return why the graph that is being traced must run the layer itself."""
    graph = tf.compat.v1.get_default_graph()
    if not isinstance(graph, func_graph.FuncGraph):
        return "a graph of TensorFlow 1"
    if control_flow_util.GraphOrParentsInXlaContext(graph):
        return "XLA (jit_compile=True), which cannot call back"
    if save_context.in_save_context():
        return _TRACERS["tensorflow.python.saved_model"]
    if tf.distribute.has_strategy():
        return "a distribution strategy of TensorFlow"
    if tf.config.list_logical_devices("GPU"):
        return "a graph on a machine with GPUs"
    return _unfit_tracer()


def _unfit_tracer() -> str | None:
    """Return why what is being traced must run the layer itself, as far as only the stack tells."""
    frame: Any = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        for tracer, reason in _TRACERS.items():
            if name.startswith(tracer):
                return reason
        frame = frame.f_back
    return None


@functools.cache
def _unsaved() -> tf.Variable:
    """Return a variable that graphs with callbacks read.

    Nothing tracks it, so TensorFlow refuses to save such a graph, and its error names the variable.
    """
    with tf.init_scope():
        return tf.Variable(False, trainable=False, name="use_tensorkey_keras_strip_before_saving")


def traced_call(wrapper: CachedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the symbolic answer of a call; see _keras_below.py."""
    args, kwargs = keras.tree.map_structure(_known, (args, kwargs))
    if not wrapper.layer.built:
        _build(wrapper, args, kwargs)
    engine = wrapper._engine
    arguments = engine.signature.take(args, kwargs)
    if arguments.rows < 0 and arguments._plan.lengths:
        raise Bypass("a list among the arguments, which may have an item for each row")
    reason = engine.backend.unfit_inputs(arguments.tensors) or engine.backend.unfit_layer()
    if reason is not None:
        raise Bypass(reason)
    call = _Call(wrapper, arguments)
    gradient = Gradient(wrapper, arguments)
    _hold(call, gradient)
    return call.pack(gradient.attach(call.answer()))


def _known(value: Any) -> Any:
    """Return a constant of the graph as an eager tensor, whose value counts where it is no row."""
    if isinstance(value, tf.Tensor) and hasattr(value, "op") and value.op.type == "Const":
        with tf.init_scope():
            return tf.constant(tf.get_static_value(value), value.dtype)
    return value


def _build(wrapper: CachedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Build the layer by a symbolic call of Keras."""

    def symbolic(value: Any) -> Any:
        return keras.KerasTensor(value.shape, value.dtype.name) if tf.is_tensor(value) else value

    args, kwargs = keras.tree.map_structure(symbolic, (args, kwargs))
    wrapper.layer(*args, **kwargs)


def _hold(*held: object) -> None:
    """Have the outermost graph hold objects for as long as it lives itself."""
    graph = tf.compat.v1.get_default_graph()
    while isinstance(graph.outer_graph, func_graph.FuncGraph):
        graph = graph.outer_graph
    graph._tensorkey_calls = [*getattr(graph, "_tensorkey_calls", ()), *held]


class _Call:
    """What the graph of one traced call does."""

    def __init__(self, wrapper: CachedLayer, arguments: Arguments) -> None:
        engine = wrapper._engine
        portable = engine.options.environment == "portable"
        environment = (*settings(), *_environment(portable))
        about = engine.traced(arguments.form, environment)
        tensors = engine.fingerprint.tensors()
        passed = [pair for pair in tensors if isinstance(pair[1], tf.Variable)]
        fixed = [pair for pair in tensors if not isinstance(pair[1], tf.Variable)]
        try:
            weights = TracedWeights([name for name, _ in passed], fixed)
            depends = (about, TracedWeights((), fixed).digest(()))
        except Exception as error:  # a tensor of another graph, for one
            raise Bypass(f"a weight has no key: {error}") from error
        self._weights = [variable for _, variable in passed]
        self._layer = traced_layer(wrapper, arguments, depends, self._weights)
        self.pack = self._layer.pack
        self._tensors = [tf.convert_to_tensor(tensor) for tensor in arguments.tensors]
        self._host = GraphCall(
            engine,
            arguments,
            environment,
            [_row_shape(tensor) for tensor in self._tensors],
            self._layer.leaves,
            weights,
            max(arguments.rows, 0),
        )

    # On the host.

    def look_up(self, _: Any, *arrays: Any) -> tuple[Any, ...]:
        """Return ticket, whole, positions by chunk, where the answers are, and the hits.

        The hits are the answer if there is no chunk; else row i of the answer is in row ``where``
        of the hits and what the chunks give, in this order.
        """
        count = len(self._weights)
        weights, members = arrays[:count], arrays[count:]
        chunk = self._host.chunk_of(members)
        found = self._host.look_up(members, weights, chunk=chunk)
        rows = len(members[0])
        where = np.arange(rows, dtype=np.int32)
        if found.chunks:
            [run] = np.nonzero(found.targets < rows)
            where[found.targets[run]] = rows + run
        where = where[found.sources]
        hits = found.hits
        if not found.chunks and not found.whole:
            hits = [leaf[found.sources] for leaf in hits]
        positions = found.positions.reshape(found.chunks, chunk)
        return (np.int64(found.ticket), np.int32(found.whole), positions, where, *hits)

    def deliver(self, ticket: Any, chunk: Any, *outputs: Any) -> Any:
        """Hand over what a chunk gave; return the number of the next one."""
        self._host.deliver(int(ticket), int(chunk), outputs)
        return np.int32(chunk + 1)

    # In the graph.

    def answer(self) -> list[Any]:
        """Return the leaves of the answer."""
        leaves = self._layer.leaves
        look_up = _callback(
            self.look_up,
            [_unsaved(), *self._weights, *self._tensors],
            [tf.int64, tf.int32, tf.int32, tf.int32, *(tf.as_dtype(name) for name, _ in leaves)],
        )
        ticket, whole, positions, where, *hits = look_up
        for tensor, shape in (
            (ticket, []),
            (whole, []),
            (positions, [None, None]),
            (where, [None]),
        ):
            tensor.set_shape(shape)
        for hit, (_, dims) in zip(hits, leaves, strict=True):
            hit.set_shape([None, *dims])

        def run() -> list[Any]:
            first = tf.cond(tf.equal(whole, 2), lambda: self._compare(ticket), lambda: 0)
            first.set_shape([])
            outputs = self._run_chunks(ticket, positions, first)
            both = [tf.concat(pair, 0) for pair in zip(hits, outputs, strict=True)]
            return [tf.gather(leaf, where) for leaf in both]

        def answered() -> list[Any]:
            return tf.cond(tf.shape(positions)[0] > 0, run, lambda: hits)  # type: ignore[no-any-return]

        answer = tf.cond(tf.equal(whole, 1), lambda: self._layer.run(self._tensors), answered)
        rows = self._tensors[0].shape[0]
        for leaf, (_, dims) in zip(answer, leaves, strict=True):
            leaf.set_shape([rows, *dims])
        return list(answer)

    def _compare(self, ticket: Any) -> Any:
        """Hand over what the layer gives for the whole batch; 0 when that is done."""
        outputs = self._layer.run(self._tensors)
        return _callback(self.deliver, [ticket, -1, *outputs], [tf.int32])[0]

    def _run_chunks(self, ticket: Any, positions: Any, first: Any) -> list[Any]:
        """Run all chunks and hand them over; the rows that they gave."""
        chunks, size = tf.unstack(tf.shape(positions))
        leaves = self._layer.leaves
        arrays = [
            tf.TensorArray(name, chunks, element_shape=[None, *dims]) for name, dims in leaves
        ]

        def body(chunk: Any, arrays: Any) -> Any:
            outputs = self._layer.run([tf.gather(x, positions[chunk]) for x in self._tensors])
            checks = [tf.debugging.assert_equal(tf.shape(leaf)[0], size, _ROWS) for leaf in outputs]
            with tf.control_dependencies(checks):
                [following] = _callback(self.deliver, [ticket, chunk, *outputs], [tf.int32])
            following.set_shape([])
            written = [a.write(chunk, leaf) for a, leaf in zip(arrays, outputs, strict=True)]
            return following, written

        _, arrays = tf.while_loop(
            lambda chunk, _: chunk < chunks, body, (first, arrays), parallel_iterations=1
        )
        outputs = [array.stack() for array in arrays]
        return [
            tf.reshape(output, [chunks * size, *dims])
            for output, (_, dims) in zip(outputs, leaves, strict=True)
        ]


_ROWS = (
    "[CachedLayer] the layer gives another number of rows than it takes, so its rows cannot be "
    "cached one by one: set bypass='always', or rows='batch'"
)


def _callback(method: Callable[..., Any], inputs: Sequence[Any], dtypes: Sequence[Any]) -> Any:
    """Call a method of an object from the graph, without keeping it alive."""
    weak = weakref.WeakMethod(method)

    def callback(*arrays: Any) -> Any:
        method = weak()
        if method is None:
            raise RuntimeError("[CachedLayer] the graph is gone that this callback was traced for")
        return method(*arrays)

    return tf.numpy_function(callback, inputs, dtypes)


def _row_shape(tensor: Any) -> tuple[str, tuple[int, ...]]:
    """Return what a row looks like; dims that are not known while tracing are looked up later."""
    return tensor.dtype.name, tuple(dim or 1 for dim in tensor.shape[1:])


def _environment(portable: bool) -> tuple[object, ...]:
    from tensorkey import _tensorflow_backend

    optimizer = tf.config.optimizer
    mode = ["graph", optimizer.get_jit(), *map(str, optimizer.get_experimental_options().items())]
    return _tensorflow_backend.environment(None, portable, " ".join(filter(None, mode)))
