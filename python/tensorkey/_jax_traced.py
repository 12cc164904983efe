"""A call of a cached function while JAX traces: from arguments to the primitive, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import numpy as jnp

from tensorkey._backend import Bypass, Unsuited
from tensorkey._graph import GraphCall
from tensorkey._inputs import Arguments
from tensorkey._jax_environment import device_of
from tensorkey._jax_graph import Call, Leaves, Run, bind
from tensorkey._jax_parameters import Parameters
from tensorkey._jax_programs import inside
from tensorkey._jax_rows import put, unfit_inputs
from tensorkey._jax_tracing import has_named_axes, is_tracer, traced_for
from tensorkey._nests import rebuilt
from tensorkey._outputs import pack

if TYPE_CHECKING:
    from tensorkey._jax_function import CachedFunction

Rebuild = Callable[[Sequence[Any], Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
"""From parameters that were traced, and members, to arguments."""

_WIDE = frozenset({"float64", "int64", "uint64", "complex128"})


def traced_call(cached: CachedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the answer of a call while something is traced.

    Raises
    ------
    tensorkey._backend.Bypass
        The function itself is to run.
    """
    if has_named_axes():
        raise Bypass("a named axis: pmap, shard_map or vmap with axis_name")
    try:
        return _answer(cached, args, kwargs)
    finally:
        cached._fingerprint.given = None  # tracers


def _answer(cached: CachedFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    fingerprint, engine = cached._fingerprint, cached._engine
    arguments = cached._signature.take(args, kwargs, keep=False)
    look = fingerprint.look(engine)
    function = _Function(cached.__wrapped__, arguments, look.state)
    rows = function.rows
    whole = function.traced(rows)
    output = _Output(whole.shape, cached)
    leaves = output.rows(rows)
    with fingerprint.traced(look, function.given, function.passed, whole.hoisted) as weights:
        graph = GraphCall(
            engine,
            function.arguments,
            cached.environment_of(function.members[0], bool(function.passed or whole.hoisted)),
            [(x.dtype.name, tuple(x.shape[1:])) for x in function.members],
            leaves,
            weights,
            rows,
        )
    chunk = function.traced_again(graph.chunk, whole)
    output.check(chunk.shape, graph.chunk, leaves)
    if graph.chunk == rows:  # a dim of that size may be another one
        output.check(function.traced(rows + 1).shape, rows + 1, leaves)
    operands = [*function.passed, *whole.hoisted]
    call = Call(
        graph,
        rows,
        weights=len(operands),
        digests=not isinstance(weights, bytes),
        whole=whole.run(output.order),
        chunk=chunk.run(output.order),
        about=_About(cached, function.call_with_values(), output.order, bool(whole.hoisted)),
        platform=device_of(None).platform,
    )
    answer = bind(call, *operands, *function.members)
    return output.filled(answer)


class _Slot:
    """Stands for a member."""


class _Function:
    """The function as one of arrays: of parameters that are traced, and of members."""

    def __init__(self, function: Callable[..., Any], arguments: Arguments, state: Any) -> None:
        self.arguments = arguments
        self.members = arguments.tensors
        self.rows = arguments.rows
        self.given: Parameters | None = getattr(arguments, "given", None)
        self._arrays = [] if self.given is None else self.given.arrays
        self._places = [i for i, array in enumerate(self._arrays) if is_tracer(array)]
        self.passed = [self._arrays[i] for i in self._places]
        self._function = function
        self._state = state
        reason = unfit_inputs([x for x in self.members if not is_tracer(x)])
        if reason is None:
            reason = next(filter(None, map(_unfit_member, self.members)), None)
        if reason is None and any(map(_is_extended, self.passed)):
            reason = "random keys among the parameters: pass jax.random.key_data(key)"
        if reason is not None:
            raise Bypass(reason)

    def call_with_values(self) -> Rebuild:
        """Return what makes the arguments of a call of other arrays; it holds no tracer."""
        slots = [_Slot() for _ in self.members]
        template = self.arguments.call(_keep, slots)
        ids = frozenset(map(id, slots))
        given = None if self.given is None else self.given.bare()
        constants = [None if is_tracer(array) else array for array in self._arrays]
        places = self._places

        def rebuild(
            passed: Sequence[Any], members: Sequence[Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            args, kwargs = rebuilt(template, ids, iter(members))
            if given is None:
                return args, kwargs
            arrays = list(constants)
            for place, array in zip(places, passed, strict=True):
                arrays[place] = array
            return given.put_back(arrays, args, kwargs)

        return rebuild

    def traced(self, rows: int) -> _Traced:
        """Trace the function for batches of a size."""
        rebuild = self.call_with_values()

        def pure(passed: list[Any], members: list[Any]) -> Any:
            args, kwargs = rebuild(passed, members)
            with inside(), traced_for(self._state):
                return self._function(*args, **kwargs)

        passed = [_like(x, x.shape) for x in self.passed]
        members = [_like(x, (rows, *x.shape[1:])) for x in self.members]
        jaxpr, shape = jax.make_jaxpr(pure, return_shape=True)(passed, members)
        return _Traced(jaxpr, shape, len(passed))

    def traced_again(self, rows: int, before: _Traced) -> _Traced:
        """Trace the function for chunks."""
        try:
            traced = self.traced(rows)
        except Exception as error:  # whatever the function says of a batch of another size
            first = str(error).partition("\n")[0]
            raise Bypass(f"it cannot be traced for chunks of {rows} rows: {first}") from error
        known = set(map(id, before.hoisted))
        if any(id(x) not in known for x in traced.hoisted):
            raise Bypass("it uses other values of a transformation for other batch sizes")
        traced.hoisted = before.hoisted
        return traced


class _Traced:
    """A function that was traced for one batch size."""

    def __init__(self, jaxpr: Any, shape: Any, passed: int) -> None:
        self.shape = shape
        self._jaxpr = jaxpr
        self._passed = passed
        self.hoisted = [*{id(x): x for x in jaxpr.consts if is_tracer(x)}.values()]
        """What it encloses that other transformations trace."""

    def run(self, order: Sequence[int]) -> Run:
        """Return it as a function of weights and members."""
        jaxpr, passed = self._jaxpr, self._passed
        at = {id(x): passed + i for i, x in enumerate(self.hoisted)}
        # Tracers are not kept: they are dead when the outermost trace has ended.
        consts = [(at.get(id(x), -1), None if is_tracer(x) else x) for x in jaxpr.consts]
        body = jaxpr.jaxpr

        def run(weights: Sequence[Any], members: Sequence[Any]) -> Leaves:
            held = [x if place < 0 else weights[place] for place, x in consts]
            leaves = jax.core.eval_jaxpr(body, held, *weights[:passed], *members)
            return [leaves[i] for i in order]

        return run


class _Output:
    """The output of a function: which array of it is which leaf of an entry."""

    def __init__(self, shape: Any, cached: CachedFunction) -> None:
        self._shapes, self._structure = jax.tree.flatten(shape)
        for leaf in self._shapes:
            if _is_extended(leaf):
                raise Bypass(f"its output holds an array of dtype {leaf.dtype}")
            if leaf.weak_type:
                raise Bypass("its output holds a weakly typed array: give it a dtype")
            if leaf.dtype.name in _WIDE and not jax.config.values["jax_enable_x64"]:
                raise Bypass(
                    "64 bits inside a graph where a context alone enables them: use "
                    'jax.config.update("jax_enable_x64", True)'
                )
        fakes = [put(np.zeros(1, leaf.dtype)) for leaf in self._shapes]
        number = {id(fake): i for i, fake in enumerate(fakes)}
        try:
            packed = pack(self.filled(fakes, range(len(fakes))), cached._engine.backend)
        except Unsuited as reason:
            raise Bypass(str(reason)) from None
        self.order = [number[id(leaf)] for leaf in packed.leaves]

    def rows(self, rows: int) -> list[tuple[str, tuple[int, ...]]]:
        """Return what a row of each leaf looks like."""
        return [_row(self._shapes[i], rows) for i in self.order]

    def check(self, shape: Any, rows: int, leaves: Sequence[Any]) -> None:
        """Compare with what comes out for another batch size."""
        found, structure = jax.tree.flatten(shape)
        if (
            not _same(structure, self._structure)
            or [_row(found[i], rows) for i in self.order] != leaves
        ):
            raise Bypass("its output is another one for another batch size")

    def filled(self, leaves: Sequence[Any], order: Sequence[int] | None = None) -> Any:
        """Put an output together."""
        order = self.order if order is None else order
        flat = [leaf for _, leaf in sorted(zip(order, leaves, strict=True), key=lambda x: x[0])]
        return jax.tree.unflatten(self._structure, flat)


class _About:
    """What a call asks of its function."""

    def __init__(
        self, cached: CachedFunction, rebuild: Rebuild, order: Sequence[int], hoisted: bool
    ) -> None:
        self._cached = cached
        self._rebuild = rebuild
        self._order = order
        self._hoisted = hoisted

    def count(self, reason: str) -> None:
        """Count a bypass."""
        self._cached._engine.core.bypass(reason)

    def eagerly(self, weights: Sequence[Any], members: Sequence[Any]) -> Leaves | None:
        """Answer a call whose arrays all have values."""
        if self._hoisted:
            self.count("values that another transformation traced")
            return None
        args, kwargs = self._rebuild(weights, members)
        leaves = jax.tree.leaves(self._cached.eagerly(args, kwargs))
        return [leaves[i] for i in self._order]


def _same(one: Any, other: Any) -> bool:
    return bool(one == other)


def _keep(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def _like(array: Any, shape: tuple[int, ...]) -> Any:
    struct: Any = jax.ShapeDtypeStruct
    return struct(shape, array.dtype, weak_type=bool(getattr(array, "weak_type", 0)))


def _is_extended(array: Any) -> bool:
    return bool(jnp.issubdtype(array.dtype, jax.dtypes.extended))


def _unfit_member(array: Any) -> str | None:
    sharding = getattr(getattr(array, "aval", None), "sharding", None)
    if getattr(getattr(sharding, "mesh", None), "explicit_axes", ()):
        return "an input on several devices: its sharding is a part of its type"
    if _is_extended(array):
        return f"an input of dtype {array.dtype}: pass jax.random.key_data(key)"
    return "a weakly typed input: give it a dtype" if array.weak_type else None


def _row(leaf: Any, rows: int) -> tuple[str, tuple[int, ...]]:
    if not leaf.shape or leaf.shape[0] != rows:
        raise Bypass("its output has an array without a row for each row of the input")
    return leaf.dtype.name, tuple(leaf.shape[1:])
