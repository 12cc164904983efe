"""Convolutions of a chunk that runs in a loop, as XLA would have them on a CPU.

XLA brings a convolution into the order that its library knows (batch, space, features), but in the
outermost computation of a program alone: in a loop one of another order is computed by other code,
with other bits, and a hundred times slower. So what is traced for a loop is rewritten as
XLA would have done it. Convolutions inside the function's own loops stay: they are no better off in
a chunk that runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

_NAME = "conv_general_dilated"
_INLINED = frozenset(
    {
        *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
        *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
    }
)
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def in_order(run: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Return a function of nests of arrays with its convolutions brought into order."""

    def call(*nests: Any) -> list[Any]:
        closed = rewritten(jax.make_jaxpr(run)(*nests))
        leaves: list[Any] = jax.core.eval_jaxpr(
            closed.jaxpr, closed.consts, *jax.tree.leaves(nests)
        )
        return leaves

    return call


def rewritten(closed: Any) -> Any:
    """Return a closed jaxpr with its convolutions brought into order; itself if they are.

    Examples
    --------
    >>> import numpy as np
    >>> x, kernel = np.ones((1, 2, 5, 5), "f"), np.ones((3, 2, 3, 3), "f")
    >>> closed = jax.make_jaxpr(lambda x: lax.conv(x, kernel, (1, 1), "SAME"))(x)
    >>> rewritten(closed) is closed, rewritten(rewritten(closed)) is rewritten(closed)
    (False, False)
    """
    if not _has_any(closed.jaxpr):
        return closed

    def run(*arrays: Any) -> list[Any]:
        return _evaluated(closed.jaxpr, arrays[: len(closed.consts)], arrays[len(closed.consts) :])

    consts = closed.consts
    return jax.make_jaxpr(lambda *arrays: run(*consts, *arrays))(*closed.in_avals)


def _has_any(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == _NAME and not _in_order(eqn.params["dimension_numbers"]):
            return True
        body = _body(eqn)
        if body is not None and _has_any(body[0]):
            return True
    return False


def _body(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """Return the jaxpr and the constants of a call that XLA inlines."""
    if eqn.primitive.name not in _INLINED:
        return None
    for name in _BODIES:
        body = eqn.params.get(name)
        if body is not None:
            return (body.jaxpr, body.consts) if hasattr(body, "consts") else (body, ())
    return None


def _evaluated(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values: dict[Any, Any] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True)
    )

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        body = _body(eqn)
        if eqn.primitive.name == _NAME:
            outputs = [_convolution(*inputs, **eqn.params)]
        elif body is not None and _has_any(body[0]):
            outputs = _evaluated(*body, inputs)
        else:
            names = [atom for atom in eqn.invars if not hasattr(atom, "val")]
            alone = jaxpr.replace(constvars=[], invars=names, outvars=eqn.outvars, eqns=[eqn])
            outputs = jax.core.eval_jaxpr(alone, (), *(values[name] for name in names))
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _ordered(rank: int) -> Any:
    space = tuple(range(1, rank - 1))
    last = rank - 1
    return lax.ConvDimensionNumbers(
        (0, last, *space), (last, last - 1, *range(rank - 2)), (0, last, *space)
    )


def _in_order(numbers: Any) -> bool:
    return bool(numbers == _ordered(len(numbers.lhs_spec)))


def _convolution(x: Any, kernel: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    numbers = dimension_numbers
    batch, features, *space = numbers.lhs_spec
    outgoing, incoming, *window = numbers.rhs_spec
    result = lax.conv_general_dilated(
        lax.transpose(x, (batch, *space, features)),
        lax.transpose(kernel, (*window, incoming, outgoing)),
        dimension_numbers=_ordered(len(numbers.lhs_spec)),
        **{name: params[name] for name in _PARAMS},
    )
    first, last, *rest = numbers.out_spec
    order = (first, *rest, last)
    return lax.transpose(result, [order.index(dim) for dim in range(len(order))])


_PARAMS = (
    *("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count"),
    *("batch_group_count", "precision", "preferred_element_type"),
)
