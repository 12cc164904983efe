"""The gradient of an answer in a graph of TensorFlow: that of the layer, which runs for it.

Lookups have no gradient, or, worse, one of zero. The answer goes through one IdentityN together
with the inputs, whose gradient runs the layer on them under a tape. Nothing is run as long as
nobody asks for the gradient of an input: when only a head trains, say.

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
        self._weights = [variable._value for variable in wrapper.layer.trainable_weights]
        self._name = str(next(_numbers)).encode()
        _gradients[self._name] = self

    def attach(self, answer: Sequence[Any]) -> list[Any]:
        """Return the leaves of the answer with this gradient."""
        graph = tf.compat.v1.get_default_graph()
        named = {_CALL: attr_value_pb2.AttrValue(s=self._name)}
        weights = [weight.read_value() for weight in self._weights]
        with (
            record.stop_recording(),
            graph.gradient_override_map({"IdentityN": _NAME}),
            graph._attr_scope(named),
        ):
            outputs = tf.identity_n([*answer, *self._arguments.tensors, *weights])
        return list(outputs[: len(answer)])

    def of(self, inputs: Sequence[Any], upstream: Sequence[Any]) -> list[Any]:
        """Return the gradients of inputs and weights, given those of the answer."""
        wrapper, weights = self._wrapper, self._weights
        inputs = [tf.identity(tensor) for tensor in inputs]
        with tf.GradientTape() as tape:
            tape.watch([*inputs, *weights])
            output = self._arguments.call(
                lambda *args, **kwargs: wrapper._run_inner(args, kwargs), inputs
            )
            outputs = [x for x in keras.tree.flatten(output) if isinstance(x, tf.Tensor)]
        pairs = [
            (leaf, gradient)
            for leaf, gradient in zip(outputs, upstream, strict=True)
            if gradient is not None and (leaf.dtype.is_floating or leaf.dtype.is_complex)
        ]
        found = tape.gradient(
            [leaf for leaf, _ in pairs],
            [*inputs, *weights],
            output_gradients=[gradient for _, gradient in pairs],
        )
        return [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in found]


@ops.RegisterGradient(_NAME)  # type: ignore[untyped-decorator]
def _gradient(op: Any, *upstream: Any) -> list[Any]:
    gradient = _gradients.get(op.get_attr(_CALL))
    if gradient is None:
        raise RuntimeError("[CachedLayer] the graph is gone whose gradient is asked for")
    count = len(upstream) - len(gradient._arguments.tensors) - len(gradient._weights)
    inputs = op.inputs[count : count + len(gradient._arguments.tensors)]
    return [None] * count + gradient.of(inputs, upstream[:count])
