"""A layer traced as a function of TensorFlow: for chunks of any size and for whole batches.

One trace serves all, in each graph that calls a frozen layer alike: what runs a row is the same
function, never inlined, so that the bits of a row depend on no graph around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import op_def_registry

from tensorkey._backend import Bypass
from tensorkey._graph import RowShape
from tensorkey._inputs import Arguments
from tensorkey._keras_rows import mask_of

if TYPE_CHECKING:
    from tensorkey.keras import CachedLayer

_PLAIN = (type(None), bool, int, float, str)
# Stateful ops that write nothing, or whose functions are looked into.
_HARMLESS = frozenset(
    {
        *("VarHandleOp", "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"),
        *("VarIsInitializedOp", "HashTableV2", "LookupTableFindV2", "LookupTableSizeV2"),
        *("StatefulPartitionedCall", "While", "If", "Case", "Assert", "PrintV2"),
        *("PyFunc", "EagerPyFunc", "Placeholder"),
    }
)


class TracedLayer:
    """The layer of one kind of call.

    Parameters
    ----------
    wrapper
        The cached layer.
    arguments
        Of the call; its tensors are symbolic.

    Raises
    ------
    tensorkey._backend.Bypass
        For a layer whose answers in a graph cannot be cached.
    """

    def __init__(self, wrapper: CachedLayer, arguments: Arguments) -> None:
        self._pack: Callable[[Sequence[Any]], Any] = list
        layer = wrapper.layer
        parts = layer._flatten_layers()
        losses = [(part, len(part._losses)) for part in parts]

        def run(*rows: Any) -> list[Any]:
            output = arguments.call(lambda *args, **kwargs: wrapper._run_inner(args, kwargs), rows)
            leaves, self._pack = _apart(output)
            if any(mask_of(leaf) is not None for leaf in leaves) and layer._layers:
                raise Bypass("its output has a mask that follows from a run alone")
            return leaves

        rows = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in arguments.tensors]
        try:
            self._run = _traced(run, rows)
            self.leaves = list(_row_shapes(self._run.structured_outputs))
            self._check_rows(run, rows)
        finally:
            added = False
            for part, count in losses:
                added |= len(part._losses) > count
                del part._losses[count:]
        if added:
            raise Bypass("it adds losses, which a hit would leave out")
        effect = _effect(self._run.graph)
        if effect is not None:
            raise Bypass(f"a run in a graph changes state, by {effect}")

    def _check_rows(self, run: Callable[..., Any], rows: list[tf.TensorSpec]) -> None:
        """Refuse a layer with another number of rows in its output than in its input."""
        three = _traced(run, [tf.TensorSpec([3, *spec.shape[1:]], spec.dtype) for spec in rows])
        for leaf in three.structured_outputs:
            if leaf.shape[0] not in (None, 3):
                raise Bypass(f"its output has {leaf.shape[0]} rows for 3")

    def run(self, rows: Sequence[Any]) -> list[Any]:
        """Return the leaves of the layer's output for a batch of any size, without gradients."""
        with record.stop_recording():
            return list(self._run(*rows))

    def pack(self, leaves: Sequence[Any]) -> Any:
        """Make the layer's own output of its leaves."""
        return self._pack(leaves)


_MOST_KEPT = 8


def traced_layer(
    wrapper: CachedLayer, arguments: Arguments, depends: Sequence[bytes], variables: Sequence[Any]
) -> TracedLayer:
    """Return the layer of one kind of call, traced before if it can be.

    Parameters
    ----------
    wrapper, arguments
        As for TracedLayer.
    depends
        Digests of all that the trace depends on beside its variables.
    variables
        Those of the layer.
    """
    manual = wrapper._engine.fingerprint.mode == "manual"
    if manual or wrapper.layer.trainable_weights:  # what it is, or how it runs, is not known
        return TracedLayer(wrapper, arguments)
    shapes = [(tensor.dtype, tuple(tensor.shape[1:])) for tensor in arguments.tensors]
    key = (*depends, *shapes, *map(id, variables))
    kept = vars(wrapper._engine.backend).setdefault("_traced_layers", {})
    found = kept.get(key)
    if found is None:
        if len(kept) >= _MOST_KEPT:
            kept.clear()
        # With the variables, so that their ids stay theirs.
        found = kept[key] = (TracedLayer(wrapper, arguments), variables)
    traced: TracedLayer = found[0]
    return traced


def _traced(run: Callable[..., Any], signature: list[tf.TensorSpec]) -> Any:
    function = tf.function(
        run,
        input_signature=signature,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    try:
        with tf.init_scope(), record.stop_recording():
            return function.get_concrete_function()
    except Bypass:
        raise
    except Exception as error:  # whatever a layer raises that is made for one batch size, say
        text = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise Bypass(f"it cannot be traced by itself, for a batch of any size: {text}") from error


def _apart(output: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """Take an output apart into tensors and what packs others like them."""
    flat = keras.tree.flatten(output)
    places = [i for i, value in enumerate(flat) if isinstance(value, tf.Tensor)]
    for i, value in enumerate(flat):
        if i not in places and not isinstance(value, _PLAIN):
            raise Bypass(f"its output holds a {type(value).__name__}, in a graph")
    if not places:
        raise Bypass("its output holds no tensor")

    def pack(leaves: Sequence[Any]) -> Any:
        values = list(flat)
        for i, leaf in zip(places, leaves, strict=True):
            values[i] = leaf
        return keras.tree.pack_sequence_as(output, values)

    return [flat[i] for i in places], pack


def _row_shapes(leaves: Sequence[Any]) -> Iterator[RowShape]:
    for leaf in leaves:
        shape = leaf.shape
        if shape.rank is None or not shape[1:].is_fully_defined():
            raise Bypass(f"the shape of its output is not known while traced: {shape}")
        if not shape.rank or shape[0] is not None:
            raise Bypass(f"its output of shape {shape} has no row for each of its input")
        dtype = leaf.dtype
        if not (dtype.is_bool or dtype.is_integer or dtype.is_floating or dtype.is_complex):
            raise Bypass(f"its output is of dtype {dtype.name}")
        yield leaf.dtype.name, tuple(shape[1:])


def _effect(graph: Any) -> str | None:
    """Return the name of an op that writes to something, in the graph or in functions of it."""
    definition = graph.as_graph_def()
    functions = (function.node_def for function in definition.library.function)
    for node in chain(definition.node, *functions):
        known = op_def_registry.get(node.op)  # none for a call of a function by its name
        if known is not None and known.is_stateful and node.op not in _HARMLESS:
            return str(node.op)
    return None
