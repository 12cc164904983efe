"""Programs of XLA on the CPU that look up and deliver without Python: by XLA's typed FFI.

In place of callbacks (_jax_graph.py) a program calls functions of the core, which read its arrays
where they are, take no GIL and run on as many threads as XLA likes (python/src/xla_ffi.cc):

    tensorkey_weights    weights -> 32 bytes
    tensorkey_look_up    members, those bytes -> ticket, whole, chunks, positions, targets,
                         sources, tables
    tensorkey_deliver    ticket, number of a chunk, outputs -> 0

Their one attribute is the handle of a ``_core.XlaCall``, which the program keeps alive. What they
do is what GraphCall (_graph.py) does, and is counted in the same place.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir

from tensorkey import _core
from tensorkey._graph import GraphCall, TracedWeights

_WHOLE_BYTES = frozenset(
    {
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "bfloat16", "complex64", "complex128"),
        *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
        *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    }
)
"""XLA packs elements of other dtypes."""


def register_lowering(primitive: Any, rule: Any, platform: str | None = None) -> None:
    """Register a rule that is asked for each operation: not one result for all that look alike."""
    takes = inspect.signature(mlir.register_lowering).parameters  # JAX 0.6 has no cache
    mlir.register_lowering(
        primitive, rule, platform=platform, **({"cacheable": False} if "cacheable" in takes else {})
    )


@functools.cache
def refusal() -> str | None:
    """Return why this JAX cannot call the core; None if it can."""
    try:
        jax.local_devices(backend="cpu")  # before it, registering only takes note
        for name, capsule in _core.xla_handlers().items():
            jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    version = _core.xla_version()
    if version is not None and version[0] != 0:  # which it should have refused itself
        return f"version {version[0]} of XLA's FFI; expected 0"
    return None


def array_of(dtype: str, *dims: int) -> Any:
    """Return what stands for an array in a program."""
    return jax.core.ShapedArray(dims, jnp.dtype(dtype))


def a_life() -> Any:
    """Return a jaxpr that nothing else holds, to be a parameter of one operation.

    JAX keeps what it knows of operations by their parameters for good, but for jaxprs: when one of
    them is gone, so is what was known.
    """
    return jax.make_jaxpr(lambda: ())()


class NativeCall:
    """What a program calls for one traced call of a layer.

    Parameters
    ----------
    graph
        The call.
    handle
        Of its twin in the core.
    held
        What the program holds, so that the call lives as long.
    """

    def __init__(self, graph: GraphCall, handle: int, held: Any) -> None:
        self._graph = graph
        self._handle = handle
        self._held = held

    def look_up(self, weights: Sequence[Any], members: Sequence[Any], rows: int) -> list[Any]:
        """Return ticket, whole, chunks, positions, targets, sources and tables.

        Parameters
        ----------
        weights
            Those that are passed to the program; they count only if there is no digest of them.
        members
            The tensors with rows.
        rows
            Their number.
        """
        graph = self._graph
        places = array_of("int32", graph.capacity(rows) * graph.chunk)
        tables = [array_of(name, rows, *dims) for name, dims in graph.leaves]
        digest = []
        if isinstance(graph._weights, TracedWeights):
            digest = self._call("tensorkey_weights", weights, [array_of("uint8", 32)])
        numbers = [array_of("int32")] * 3
        results = [*numbers, places, places, array_of("int32", rows), *tables]
        return self._call("tensorkey_look_up", [*members, *digest], results)

    def deliver(self, ticket: Any, number: Any, leaves: Sequence[Any]) -> Any:
        """Return 0 when a chunk is stored, -1 being the whole batch. Ticket 0 is nobody's."""
        [done] = self._call("tensorkey_deliver", [ticket, number, *leaves], [array_of("int32")])
        return done

    def _call(self, target: str, operands: Sequence[Any], results: Sequence[Any]) -> list[Any]:
        return list(
            _call_p.bind(
                *operands,
                target=target,
                handle=self._handle,
                held=self._held,
                results=tuple(results),
                life=a_life(),
            )
        )


def packed(dtypes: Iterable[str]) -> str | None:
    """Return why no program can hand over arrays of these dtypes; None if it can."""
    for name in dtypes:
        if name not in _WHOLE_BYTES:
            return f"an array of {name}, which XLA packs, inside a graph"
    return None


def native_call(graph: GraphCall, held: Any) -> NativeCall | None:
    """Return what a program for the CPU calls; None if it needs callbacks.

    Parameters
    ----------
    graph
        The call. REQUIRES: none of its arrays is packed().
    held
        What keeps the call alive, and may itself be alive when the interpreter is not.
    """
    if refusal() is not None:
        return None
    core = _cores.get(graph)
    if core is None:
        core = _cores.setdefault(graph, graph.in_core())
    return NativeCall(graph, core.handle, held)


_cores: weakref.WeakKeyDictionary[GraphCall, _core.XlaCall] = weakref.WeakKeyDictionary()

_call_p: Any = Primitive("tensorkey_call")
_call_p.multiple_results = True
_call_p.def_abstract_eval(lambda *_, results, **__: list(results))


def _lowering(
    ctx: Any,
    *operands: Any,
    target: str,
    handle: int,
    held: Any,
    results: Sequence[Any],
    life: Any,
) -> Any:
    ctx.module_context.add_keepalive(held)
    # Digests alone may be computed once for all that ask, or moved out of a loop.
    rule = jax.ffi.ffi_lowering(target, has_side_effect=target != "tensorkey_weights")
    return rule(ctx, *operands, handle=np.int64(handle))


register_lowering(_call_p, _lowering, "cpu")
