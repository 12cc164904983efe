"""The gradient of an answer in a graph of TensorFlow: that of the layer, which runs for it.

Lookups have no gradient, or, worse, one of zero. The answer goes through one IdentityN together
with the inputs and the variables, whose gradient runs the layer on them, as they were, under a
tape. Nothing is run as long as nobody asks for the gradient of an input: when only a head trains,
say.

tf.custom_gradient would register a function for each call, and with it keep the graph, the layer
and its cache for as long as the process lives. One function is registered here, and an attribute of
the op names the call.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.eager import record
from tensorflow.python.framework import ops

from tensorkey._inputs import Arguments

if TYPE_CHECKING:
    from tensorkey.keras import CachedLayer

_NAME = "TensorKeyCachedLayer"
_CALL = "_tensorkey_call"
_numbers = itertools.count()
_gradients: weakref.WeakValueDictionary[bytes, Gradient] = weakref.WeakValueDictionary()


class Gradient:
    """Of one traced call.

    Parameters
    ----------
    wrapper
        The cached layer.
    arguments
        Of the call; its tensors are symbolic.
    """

    def __init__(self, wrapper: CachedLayer, arguments: Arguments) -> None:
        self._wrapper = wrapper
        self._arguments = arguments
        self._variables = list(wrapper.layer.variables)
        self._trains = [i for i, variable in enumerate(self._variables) if variable.trainable]
        self._name = str(next(_numbers)).encode()
        _gradients[self._name] = self

    def attach(self, answer: Sequence[Any]) -> list[Any]:
        """Return the leaves of the answer with this gradient."""
        graph = tf.compat.v1.get_default_graph()
        named = {_CALL: attr_value_pb2.AttrValue(s=self._name)}
        values = [variable._value.read_value() for variable in self._variables]
        with (
            record.stop_recording(),
            graph.gradient_override_map({"IdentityN": _NAME}),
            graph._attr_scope(named),
        ):
            outputs = tf.identity_n([*answer, *self._arguments.tensors, *values])
        return list(outputs[: len(answer)])

    def of(self, held: Sequence[Any], upstream: Sequence[Any]) -> list[Any]:
        """Return the gradients of inputs and variables, given those of all outputs of the op."""
        count = len(upstream) - len(self._arguments.tensors) - len(self._variables)
        held = [tf.identity(tensor) for tensor in held[count:]]
        rows = len(self._arguments.tensors)
        inputs, values = held[:rows], held[rows:]
        wanted = [*inputs, *(values[i] for i in self._trains)]
        with tf.GradientTape() as tape:
            tape.watch(wanted)
            outputs = self._run(inputs, values)
        pairs = [
            (leaf, gradient)
            for leaf, gradient in zip(outputs, upstream[:count], strict=True)
            if gradient is not None and (leaf.dtype.is_floating or leaf.dtype.is_complex)
        ]
        found = tape.gradient(
            [leaf for leaf, _ in pairs],
            wanted,
            output_gradients=[gradient for _, gradient in pairs],
        )
        found = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in found]
        result = [None] * count + found[: len(inputs)] + [None] * len(values)
        for i, gradient in zip(self._trains, found[len(inputs) :], strict=True):
            result[count + len(inputs) + i] = gradient
        return result

    def _run(self, inputs: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        """Run the layer with variables as they were; the tensors of its output."""
        wrapper = self._wrapper
        with keras.StatelessScope(zip(self._variables, values, strict=True)):
            output = self._arguments.call(
                lambda *args, **kwargs: wrapper._run_inner(args, kwargs), inputs
            )
        return [leaf for leaf in keras.tree.flatten(output) if isinstance(leaf, tf.Tensor)]


@ops.RegisterGradient(_NAME)  # type: ignore[untyped-decorator]
def _gradient(op: Any, *upstream: Any) -> list[Any]:
    gradient = _gradients.get(op.get_attr(_CALL))
    if gradient is None:
        raise RuntimeError("[CachedLayer] the graph is gone whose gradient is asked for")
    return gradient.of(op.inputs, upstream)
