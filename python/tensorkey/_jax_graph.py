"""A call of a cached function under the transformations of JAX: one primitive.

    cached_p.bind(*weights, *members, call=call)      one array for each leaf of the output

As it has rules of its own, and no effects, JAX transforms it like any other operation:

    lowering       under jit: look up, run chunks, assemble (_lowered); the function itself where
                   that cannot be: export, several devices
    batching       rows are folded into one batch; batched weights run the function itself
    jvp            differentiates the function itself
    impl           an eager call of the engine: what is left after vmap and grad outside of jit

The callbacks are lowered as such, not through ``jax.pure_callback``, which calls JAX in the
callback.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, Protocol

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from tensorkey._graph import GraphCall
from tensorkey._jax_convolution import in_order
from tensorkey._jax_ffi import a_life, array_of, native_call, packed, register_lowering

_barrier: Any = lax.optimization_barrier

Leaves = list[Any]
Run = Callable[[Sequence[Any], Sequence[Any]], Leaves]
"""From weights and members to leaves."""


class Counted(Protocol):
    """What a call asks of the cached function."""

    def count(self, reason: str) -> None:
        """Count a bypass."""

    def eagerly(self, weights: Sequence[Any], members: Sequence[Any]) -> Leaves | None:
        """Answer a call whose arrays all have values; None: the function itself is to run."""


class _Number:
    """Of a call, for as long as anything holds it."""


Host = tuple[GraphCall, Counted]

# What jaxlib holds outlives the interpreter: it holds numbers of calls, and no engine.
_hosts: dict[int, Host] = {}
_retired: deque[tuple[float, Host]] = deque()
_MOST_RETIRED = 16


def _retire(number: int) -> None:
    """Let go of a call that no program is of any more, but for those that still run.

    JAX drops what a program holds when it is dropped itself, while it may be about to run: it then
    runs the function itself, uncounted, if it does not find its call.
    """
    host = _hosts.pop(number, None)
    if host is not None:
        _retired.append((monotonic(), host))
    let_go()


def let_go(patience: float = 10.0) -> None:
    """Let go of calls that were retired so many seconds ago, and of the oldest if they are many."""
    with suppress(IndexError):  # another thread was faster
        while len(_retired) > _MOST_RETIRED or _retired[0][0] <= monotonic() - patience:
            _retired.popleft()


class Call:
    """One traced call: the function as a function of arrays alone.

    Parameters
    ----------
    graph
        The host's part.
    rows
        The batch size.
    weights
        How many of the operands are weights.
    digests
        Whether their contents are looked at.
    whole
        The function on a batch of that size.
    chunk
        The function on a chunk.
    about
        Counts, and answers eagerly.
    platform
        What the environment in the keys is of.
    """

    def __init__(
        self,
        graph: GraphCall,
        rows: int,
        weights: int,
        digests: bool,
        whole: Run,
        chunk: Run,
        about: Counted,
        platform: str,
    ) -> None:
        self._number = number = _Number()
        _hosts[id(number)] = graph, about
        weakref.finalize(number, _retire, id(number)).atexit = False
        let_go()
        self.rows = rows
        self.weights = weights
        self.digests = digests
        self.whole = whole
        self.chunk = chunk
        self.platform = platform
        self._folded: dict[int, Call] = {}

    @property
    def graph(self) -> GraphCall:
        """The host's part."""
        return _hosts[id(self._number)][0]

    @property
    def about(self) -> Counted:
        """Counts, and answers eagerly."""
        return _hosts[id(self._number)][1]

    def run(self, *operands: Any) -> Leaves:
        """Run the function itself."""
        return self.whole(operands[: self.weights], operands[self.weights :])

    def folded(self, groups: int) -> Call:
        """Return the same call for so many batches in one."""
        call = self._folded.get(groups)
        if call is None:
            call = copy.copy(self)
            call.rows, call._folded = groups * self.rows, {}
            call.whole = _grouped(self.whole, groups, self.rows)
            call = self._folded.setdefault(groups, call)
        return call


def _grouped(whole: Run, groups: int, rows: int) -> Run:
    def run(weights: Sequence[Any], members: Sequence[Any]) -> Leaves:
        split = [member.reshape(groups, rows, *member.shape[1:]) for member in members]
        leaves = jax.vmap(whole, in_axes=(None, 0))(list(weights), split)
        return [leaf.reshape(groups * rows, *leaf.shape[2:]) for leaf in leaves]

    return run


cached_p: Any = Primitive("tensorkey_cached")
cached_p.multiple_results = True


def bind(call: Call, *operands: Any, life: Any = None) -> Leaves:
    """Make a call a part of what JAX traces; `life` is that of an operation that it replaces."""
    life = a_life() if life is None else life
    leaves: Leaves = cached_p.bind(*operands, call=call, life=life)
    return leaves


@cached_p.def_abstract_eval  # type: ignore[untyped-decorator]
def _abstract(*_: Any, call: Call, life: Any) -> list[Any]:
    return [
        jax.core.ShapedArray((call.rows, *dims), jnp.dtype(name))
        for name, dims in call.graph.leaves
    ]


@cached_p.def_impl  # type: ignore[untyped-decorator]
def _eager(*operands: Any, call: Call, life: Any) -> Leaves:
    with jax.ensure_compile_time_eval():
        leaves = call.about.eagerly(operands[: call.weights], operands[call.weights :])
        return call.run(*operands) if leaves is None else leaves


def _jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, call: Call, life: Any
) -> tuple[Leaves, list[Any]]:
    call.about.count(
        "a gradient with respect to the inputs or the parameters: a head on top of the function "
        "can be trained without"
    )
    moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def run(*given: Any) -> Leaves:
        operands = list(primals)
        for i, value in zip(moving, given, strict=True):
            operands[i] = value
        return call.run(*operands)

    return jax.jvp(run, [primals[i] for i in moving], [tangents[i] for i in moving])


ad.primitive_jvps[cached_p] = _jvp


def _batch(
    operands: Sequence[Any], dims: Sequence[Any], *, call: Call, life: Any
) -> tuple[Leaves, list[int]]:
    mapped = [dim is not None for dim in dims]
    if any(mapped[: call.weights]):
        call.about.count("vmap over the parameters")
        axes = [dim if is_mapped else None for dim, is_mapped in zip(dims, mapped, strict=True)]
        leaves = jax.vmap(call.run, in_axes=axes)(*operands)
        return leaves, [0] * len(leaves)
    groups = next(
        x.shape[dim] for x, dim, is_mapped in zip(operands, dims, mapped, strict=True) if is_mapped
    )
    folded = list(operands[: call.weights])
    for member, dim in zip(operands[call.weights :], dims[call.weights :], strict=True):
        member = (
            jnp.broadcast_to(member, (groups, *member.shape))
            if dim is None
            else jnp.moveaxis(member, dim, 0)
        )
        folded.append(member.reshape(groups * call.rows, *member.shape[2:]))
    leaves = bind(call.folded(groups), *folded, life=life)
    split = [leaf.reshape(groups, call.rows, *leaf.shape[1:]) for leaf in leaves]
    return split, [0] * len(split)


batching.primitive_batchers[cached_p] = _batch


def _lowering(ctx: Any, *operands: Any, call: Call, life: Any) -> Any:
    names = [*(aval.dtype.name for aval in ctx.avals_in), *(name for name, _ in call.graph.leaves)]
    reason = _unfit(ctx.module_context, ctx.platforms, call.platform) or packed(names)
    if reason is not None:
        call.about.count(reason)
        return mlir.lower_fun(call.run)(ctx, *operands)
    return mlir.lower_fun(lambda *arrays: _lowered(call, arrays))(ctx, *operands)


register_lowering(cached_p, _lowering)


def _unfit(module: Any, platforms: Any, expected: str) -> str | None:
    """Return why a program must run the function itself."""
    if getattr(module.lowering_parameters, "for_export", False):
        return "jax.export: what is exported holds the function itself"
    if getattr(module.axis_context, "num_devices", 2) != 1:
        return "a program for several devices"
    platforms = platforms or module.platforms
    named = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu"}
    found = [named.get(platform, platform) for platform in platforms]
    if found != [expected] or expected not in ("cpu", "gpu"):
        return f"a program for {', '.join(found)}, while JAX's default device is {expected}"
    return None


def _lowered(call: Call, operands: Sequence[Any]) -> Leaves:
    """Look up, run what is to be run, assemble."""
    graph, rows, size = call.graph, call.rows, call.graph.chunk
    weights, members = list(operands[: call.weights]), list(operands[call.weights :])
    run_rows, run_all = call.chunk, call.whole
    if call.platform == "cpu":
        run_rows, run_all = in_order(run_rows), in_order(run_all)
    native = native_call(graph, call) if call.platform == "cpu" else None
    host = native or _Callbacks(call)
    ticket, whole, chunks, positions, targets, sources, *hits = host.look_up(
        weights if call.digests else (), members, rows
    )

    def run_whole() -> tuple[Any, ...]:
        leaves = run_all(weights, members)
        return host.deliver(ticket, jnp.int32(-1), leaves), *leaves

    first, *all_leaves = lax.cond(whole > 0, run_whole, lambda: (jnp.int32(0), *hits))

    def run_chunk(number: Any, carry: tuple[Any, ...]) -> tuple[Any, ...]:
        before, *parts = carry
        start = number * size
        at = lax.dynamic_slice(positions, (start,), (size,))
        to = lax.dynamic_slice(targets, (start,), (size,))
        taken = [jnp.take(member, at, axis=0, mode="clip") for member in members]
        # What is around a chunk must not be fused with it: its bits are those of a chunk alone.
        taken = _barrier(taken)
        leaves = _barrier(run_rows(weights, taken))
        parts = [
            part.at[to].set(leaf, mode="drop") for part, leaf in zip(parts, leaves, strict=True)
        ]
        done = host.deliver(ticket, number, leaves)
        return before + done, *parts  # chunks are handed over in order

    last, *parts = lax.fori_loop(0, chunks, run_chunk, (first, *hits))
    sources = sources + last  # zero, which XLA cannot know: what is delivered keeps its order
    return [
        jnp.where(whole == 1, every, jnp.take(part, sources, axis=0, mode="clip"))
        for every, part in zip(all_leaves, parts, strict=True)
    ]


class _Callbacks:
    """What a program calls for one traced call, in Python. NativeCall has the same methods.

    Parameters
    ----------
    call
        The traced call, which alone is held.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def look_up(self, weights: Sequence[Any], members: Sequence[Any], rows: int) -> list[Any]:
        """Return ticket, whole, chunks, positions, targets, sources and tables."""
        call, graph, passed = self._call, self._call.graph, len(weights)
        room = graph.capacity(rows)

        def look_up(*arrays: Any) -> list[Any]:
            found = call.graph.look_up(arrays[passed:], arrays[:passed], room)
            told = [np.int32(found.ticket), np.int32(found.whole), np.int32(found.chunks)]
            return [*told, found.positions, found.targets, found.sources, *found.hits]

        places = array_of("int32", room * graph.chunk)
        tables = [array_of(name, rows, *dims) for name, dims in graph.leaves]
        numbers = [array_of("int32")] * 3
        results = [*numbers, places, places, array_of("int32", rows), *tables]
        return _on_host(look_up, results)(*weights, *members)

    def deliver(self, ticket: Any, number: Any, leaves: Sequence[Any]) -> Any:
        """Return 0 when a chunk is stored, -1 being the whole batch. Ticket 0 is nobody's."""
        call = self._call

        def deliver(ticket: Any, number: Any, *leaves: Any) -> list[Any]:
            if ticket:
                call.graph.deliver(int(ticket), int(number), leaves)
            return [np.int32(0)]

        [done] = _on_host(deliver, [array_of("int32")])(ticket, number, *leaves)
        return done


_host_p: Any = Primitive("tensorkey_host")
_host_p.multiple_results = True
_host_p.def_abstract_eval(lambda *_, avals, **__: list(avals))


def _on_host(function: Callable[..., list[Any]], avals: Sequence[Any]) -> Callable[..., list[Any]]:
    """Return a function of arrays in a graph that calls another with arrays of NumPy."""

    def call(*arrays: Any) -> list[Any]:
        return list(_host_p.bind(*arrays, function=function, avals=tuple(avals), life=a_life()))

    return call


# JAX 0.6 asks whether there is a token by the token alone.
_NO_TOKEN: dict[str, Any] = (
    {"returns_token": False}
    if "returns_token" in inspect.signature(mlir.emit_python_callback).parameters
    else {}
)


def _lower_host(ctx: Any, *arrays: Any, function: Any, avals: Any, life: Any) -> Any:
    emitted: Any = mlir.emit_python_callback(
        ctx,
        function,
        None,
        list(arrays),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=True,
        **_NO_TOKEN,
    )
    return emitted[0]


register_lowering(_host_p, _lower_host)
