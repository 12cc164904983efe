"""What JAX is doing right now.

Asked of modules of JAX that are not public; the tests pin what each must say.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax._src import core

_core: Any = core
_jax: Any = jax
_context: Any = _jax.make_user_context(None) if hasattr(jax, "make_user_context") else None


def traced_for(state: Any) -> AbstractContextManager[Any]:
    """Return a context in which JAX uses traces of functions that were made in the same state.

    ``jax.jit``, ``checkpoint``, ``scan`` and the like keep traces by the function alone, and in
    them what it enclosed at first.
    """
    return nullcontext() if _context is None else _context(state)


def forget_traces() -> None:
    """Have JAX trace all functions anew, where it knows of no state."""
    if _context is None:
        _jax.clear_caches()


def is_tracer(value: Any) -> bool:
    """Whether this stands for an array while a function is traced."""
    return isinstance(value, jax.core.Tracer)


def is_tracing() -> bool:
    """Whether this runs under jit, grad, vmap and the like."""
    return not _core.trace_state_clean()


def is_staging() -> bool:
    """Whether whatever is computed becomes a part of a program: under jit, scan, checkpoint."""
    return bool(_core.unsafe_am_i_under_a_jit())


def has_named_axes() -> bool:
    """Whether this runs under pmap, shard_map or vmap with axis_name."""
    return bool(_core.get_axis_env().axis_sizes)
