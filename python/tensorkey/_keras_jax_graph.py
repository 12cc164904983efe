"""A call of a cached Keras layer while JAX traces: in fit, evaluate and predict, under jit, grad...

The contents of the layer's variables are operands of the call, so that gradients with respect to
them are those of the layer, and so that every run of a compiled program looks at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import jax
import keras
import numpy as np
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from tensorkey import errors
from tensorkey._backend import Bypass, Unsuited
from tensorkey._graph import GraphCall, RowShape, TracedWeights, WeightGroup
from tensorkey._jax_environment import device_of, environment
from tensorkey._jax_graph import Call, Leaves, Run, bind
from tensorkey._jax_nest import Nest
from tensorkey._jax_programs import is_inside
from tensorkey._jax_rows import put, unfit_inputs
from tensorkey._jax_tracing import has_named_axes, is_tracer
from tensorkey._keras_jax import Function, LayerOutput, Scope
from tensorkey._keras_rows import settings
from tensorkey._outputs import pack

if TYPE_CHECKING:
    from tensorkey._inputs import Arguments
    from tensorkey.keras import CachedLayer


def traced_call(wrapper: CachedLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the answer of a call while something is traced, symbolic if its inputs are.

    Raises
    ------
    tensorkey._backend.Bypass
        The layer itself is to run.
    """
    if in_symbolic_scope() or is_inside():  # shapes are asked for; another cached layer is run
        return wrapper._run_inner(args, kwargs)
    if not wrapper.layer.built:
        raise Bypass("the first call builds the layer")
    if has_named_axes():
        raise Bypass("a named axis: pmap, shard_map or vmap with axis_name")
    try:
        function = Function(wrapper)
        values = function.values()
    except errors.Error as error:
        raise Bypass(f"a weight has no key: {error}") from None
    if not any(map(is_tracer, [*keras.tree.flatten((args, kwargs)), *values])):
        with jax.ensure_compile_time_eval():
            return wrapper._engine.call(args, kwargs, perf_counter())
    try:
        return _TracedLayer(wrapper, function, values, args, kwargs).answer()
    except Unsuited as reason:
        raise Bypass(str(reason)) from None


class _TracedLayer:
    """One call."""

    def __init__(
        self,
        wrapper: CachedLayer,
        function: Function,
        values: list[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._wrapper = wrapper
        self._function = function
        self._values = values
        self._arguments: Arguments = wrapper._engine.signature.take(args, kwargs)
        self._members = self._arguments.tensors
        reason = unfit_inputs([x for x in self._members if not is_tracer(x)])
        if reason is None and any(x.weak_type for x in self._members):
            reason = "a weakly typed input: give it a dtype"
        if reason is not None:
            raise Bypass(reason)

    def answer(self) -> Any:
        """Make the call a part of what JAX traces."""
        wrapper, values, rows = self._wrapper, self._values, self._arguments.rows
        whole = self._traced(rows)
        leaves = whole.rows(rows)
        weights = self._weights()
        graph = GraphCall(
            wrapper._engine,
            self._arguments,
            self._environment(),
            [(x.dtype.name, tuple(x.shape[1:])) for x in self._members],
            leaves,
            weights,
            rows,
        )
        chunk = self._traced(graph.chunk)
        # A dim that is as large as the batch may be another one.
        others = [(chunk, graph.chunk)]
        others += [(self._traced(rows + 1), rows + 1)] if graph.chunk == rows else []
        if any(other.rows(count) != leaves for other, count in others):
            raise Bypass("its output is another one for another batch size")
        call = Call(
            graph,
            rows,
            weights=len(values),
            digests=isinstance(weights, TracedWeights),
            whole=whole.run,
            chunk=chunk.run,
            about=_Counted(wrapper, self._function, self._arguments, whole.order),
            platform=device_of(None).platform,
        )
        return whole.output(bind(call, *values, *self._members))

    def _traced(self, rows: int) -> _Traced:
        arguments, function = self._arguments, self._function

        def pure(values: list[Any], members: list[Any]) -> LayerOutput:
            args, kwargs = arguments.call(_keep, members)
            return function(values, args, kwargs)

        values = [_like(x, x.shape) for x in self._values]
        members = [_like(x, (rows, *x.shape[1:])) for x in self._members]
        try:
            jaxpr, shape = jax.make_jaxpr(pure, return_shape=True)(values, members)
        except Unsuited:
            raise
        except Exception as error:  # whatever the layer says; alone it says it again
            first = str(error).partition("\n")[0]
            raise Bypass(f"it cannot be traced for {rows} rows: {first}") from error
        return _Traced(jaxpr, shape, self._wrapper)

    def _weights(self) -> bytes | TracedWeights:
        fingerprint, values = self._wrapper._fingerprint, self._values
        if fingerprint.mode == "manual":
            return bytes(32)
        try:
            if not any(map(is_tracer, values)):
                return fingerprint.check().weights
            return _Weights(fingerprint.tensors(), values)
        except errors.Error as error:
            raise Bypass(f"a weight has no key: {error}") from None

    def _environment(self) -> tuple[object, ...]:
        portable = self._wrapper._options.environment == "portable"
        version, library, mode, *rest = environment(None, portable)
        fixed = sum(not is_tracer(value) for value in self._values)
        if fixed:  # the compiler computes with constants, which changes bits
            mode = f"{mode}, {fixed} of {len(self._values)} weights are constants"
        return (*settings(), version, library, mode, *rest)


class _Weights(TracedWeights):
    """The weights of a layer, some of which are operands.

    Parameters
    ----------
    tensors
        Names and tensors, as a reading has them.
    operands
        Contents of variables, more than one of which may be the same array.
    """

    def __init__(self, tensors: Sequence[tuple[str, Any]], operands: Sequence[Any]) -> None:
        places = {id(operand): i for i, operand in enumerate(operands)}
        passed = [(name, places[id(x)]) for name, x in tensors if id(x) in places]
        super().__init__(
            [name for name, _ in passed],
            [(name, x) for name, x in tensors if id(x) not in places],
        )
        self._places = [place for _, place in passed]

    def groups(self) -> list[WeightGroup]:
        """Return what the core makes the digest of."""
        return [(known, names, self._places, held) for known, names, _, held in super().groups()]

    def digest(self, arrays: Sequence[Any]) -> bytes:
        """Return what ``State.weights`` is for operands with these contents."""
        return super().digest([arrays[place] for place in self._places])


class _Traced:
    """A layer that was traced for one batch size, as a function of weights and members.

    Raises
    ------
    Bypass
        For a layer or an output that no graph can answer from a cache.
    """

    def __init__(self, jaxpr: Any, output: LayerOutput, wrapper: CachedLayer) -> None:
        if output.changed:
            raise Bypass("it changes its own state when it runs")
        if any(mask is not None for mask in output.masks):
            raise Bypass("its output has a mask, inside a graph")
        if any(map(is_tracer, jaxpr.consts)):
            raise Bypass("it uses values that are traced and are none of its variables")
        self._jaxpr = jaxpr
        self._shapes = output.outputs
        self._nest: Nest = output.nest
        fakes = [put(np.zeros(1, shape.dtype)) for shape in self._shapes]
        number = {id(fake): i for i, fake in enumerate(fakes)}
        if any(getattr(shape, "weak_type", False) for shape in self._shapes):
            raise Bypass("its output holds a weakly typed array: give it a dtype")
        packed = pack(self._nest.filled(fakes), wrapper._engine.backend)
        self.order = [number[id(leaf)] for leaf in packed.leaves]
        """Which of the arrays of an output is which leaf of an entry."""

    def rows(self, rows: int) -> list[RowShape]:
        """Return what a row of each leaf looks like."""
        found = []
        for i in self.order:
            shape = self._shapes[i]
            if not shape.shape or shape.shape[0] != rows:
                raise Bypass("its output has an array without a row for each row of the input")
            found.append((shape.dtype.name, tuple(shape.shape[1:])))
        return found

    @property
    def run(self) -> Run:
        """The layer as a function of weights and members."""
        jaxpr, order = self._jaxpr, self.order

        def run(weights: Sequence[Any], members: Sequence[Any]) -> Leaves:
            outputs = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *weights, *members)
            return [outputs[i] for i in order]

        return run

    def output(self, leaves: Leaves) -> Any:
        """Put an output together."""
        outputs = list(self._shapes)
        for i, leaf in zip(self.order, leaves, strict=True):
            outputs[i] = leaf
        return self._nest.filled(outputs)


class _Counted:
    """What a call asks of its layer."""

    def __init__(
        self, wrapper: CachedLayer, function: Function, arguments: Arguments, order: Sequence[int]
    ) -> None:
        self._wrapper = wrapper
        self._function = function
        self._arguments = arguments
        self._order = order

    def count(self, reason: str) -> None:
        """Count a bypass."""
        self._wrapper._engine.core.bypass(reason)

    def eagerly(self, weights: Sequence[Any], members: Sequence[Any]) -> Leaves | None:
        """Answer a call whose arrays all have values."""
        args, kwargs = self._arguments.call(_keep, members)
        try:
            with Scope(self._function.variables, weights):
                output = self._wrapper._engine.call(args, kwargs, perf_counter())
        except Bypass as reason:
            self.count(str(reason))
            return None
        _, outputs = Nest.of(output)
        return [outputs[i] for i in self._order]


def _keep(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def _like(array: Any, shape: tuple[int, ...]) -> Any:
    struct: Any = jax.ShapeDtypeStruct
    return struct(shape, array.dtype, weak_type=bool(array.weak_type))
