"""A function as it is run on chunks: jitted, eager calls too.

What a function computes eagerly differs in bits from what it computes under jit. Arrays among the
arguments, and of parameters that are passed as arguments, are arguments of the compiled program;
everything else is baked into it, as ``jax.jit`` does. So a program is looked up by all of that: the
state of the function that its fingerprint reads, the structure of the parameters, the arguments
that are no arrays.
"""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import jax

from tensorkey._backend import Bypass, Unsuited
from tensorkey._calls import NoKey
from tensorkey._fork import renew_after_fork
from tensorkey._input_encoder import InputEncoder
from tensorkey._jax_nest import Nest
from tensorkey._jax_tracing import traced_for
from tensorkey._nests import Unread

if TYPE_CHECKING:
    from tensorkey._jax_parameters import Parameters

_MOST = 64  # programs for one state of the function
_STATES = 2  # of the function: earlier weights are baked into earlier programs
_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)

_wait: Any = jax.block_until_ready

State = tuple[bytes, bytes]
_inside = threading.local()


class _Mark(enum.Enum):
    """Stands for any array where arguments are encoded."""

    ARRAY = 1


MARK = _Mark.ARRAY


@contextmanager
def inside() -> Iterator[None]:
    """Have cached functions that are called meanwhile run themselves: one caches for all."""
    before = is_inside()
    _inside.value = True
    try:
        yield
    finally:
        _inside.value = before


def is_inside() -> bool:
    """Whether another cached function is being traced."""
    return bool(getattr(_inside, "value", False))


class Programs:
    """A function's compiled programs for chunks. Thread-safe.

    Parameters
    ----------
    function
        It takes what the cached function takes.
    framework
        Encodes arguments that are no arrays.
    """

    def __init__(self, function: Callable[..., Any], framework: Any) -> None:
        self._function = function
        self._framework = framework
        self._states: OrderedDict[State, OrderedDict[Any, Callable[..., Any]]] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = threading.local()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Have all be compiled anew: what no fingerprint sees may be another by now."""
        with self._lock:
            self._states.clear()

    def run(
        self,
        state: State,
        given: Parameters | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the function on a chunk.

        Raises
        ------
        tensorkey._backend.Bypass
            The layer must run itself.
        """
        nest, arrays = taken_apart((args, kwargs))
        key = (
            None if given is None else (given.structure, tuple(given.places)),
            encoded(self._framework, nest.filled([MARK] * len(arrays))),
        )
        program = self._program(state, key, given, nest)
        try:
            with traced_for(state):
                return self._run(program, [] if given is None else given.arrays, arrays)
        except _UNTRACEABLE as error:
            first = str(error).partition("\n")[0]
            raise Unsuited(f"jax.jit cannot trace it, as chunks are run: {first}") from error

    def _run(self, program: Any, weights: Sequence[Any], arrays: Sequence[Any]) -> Any:
        compiled = program._cache_size()
        start = perf_counter()
        output = program(weights, arrays)
        if program._cache_size() != compiled:
            _wait(output)
            self._thread.seconds_once = perf_counter() - start
            output = program(weights, arrays)  # what a run takes
        return output

    def seconds_once(self) -> float:
        """Return what the last run of this thread took to compile; forget it."""
        seconds: float = getattr(self._thread, "seconds_once", 0.0)
        self._thread.seconds_once = 0.0
        return seconds

    def _program(
        self, state: State, key: Any, given: Parameters | None, nest: Nest
    ) -> Callable[..., Any]:
        with self._lock:
            programs = self._states.setdefault(state, OrderedDict())
            self._states.move_to_end(state)
            if len(self._states) > _STATES:
                self._states.popitem(last=False)
            program = programs.get(key)
            if program is None:
                program = programs[key] = self._compiled(given, nest)
                if len(programs) > _MOST:
                    programs.popitem(last=False)
            programs.move_to_end(key)
            return program

    def _compiled(self, given: Parameters | None, nest: Nest) -> Callable[..., Any]:
        function = self._function

        def program(weights: Sequence[Any], arrays: Sequence[Any]) -> Any:
            args, kwargs = nest.filled(arrays)
            if given is not None:
                args, kwargs = given.put_back(weights, args, kwargs)
            with inside():
                return function(*args, **kwargs)

        return jax.jit(program)


def taken_apart(value: Any) -> tuple[Nest, list[Any]]:
    """Take arrays out of arguments."""
    try:
        return Nest.of(value)
    except Unread as reason:
        raise Bypass(f"an argument has no key: {reason} cannot be read") from None


def encoded(framework: Any, value: Any) -> bytes:
    """Encode arguments without their arrays."""
    try:
        return InputEncoder(framework).encode(value, "arguments")
    except NoKey as reason:
        raise Bypass(str(reason)) from None
