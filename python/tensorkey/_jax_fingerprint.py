"""The fingerprint of a function of JAX, with the parameters that a call passes."""

from __future__ import annotations

import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from tensorkey._fingerprint import Fingerprint, State, _Known
from tensorkey._graph import TracedWeights, WeightGroup
from tensorkey._jax_functions import JaxFunctions, Root
from tensorkey._jax_parameters import Digests, Parameters, joined
from tensorkey._jax_tracing import forget_traces, is_tracer
from tensorkey._options import Options
from tensorkey._reading import Reading

if TYPE_CHECKING:
    from tensorkey._frontend import Engine


class JaxFingerprint(Fingerprint):
    """What a function is, call by call.

    Arrays cannot be written to, so a guard sees all but writes to arrays of NumPy that JAX took
    over as they were. Parameters that are arguments are read by every call.
    """

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        self.root = Root(function)
        state = options.state
        if isinstance(state, (types.FunctionType, types.MethodType)):
            state = functools.partial(state)  # called, not read
        super().__init__(
            JaxFunctions(self.root),
            lambda: self.root,
            options.fingerprint,
            options.ignore,
            state,
        )
        self._digests = Digests()
        self._last: tuple[bytes, bytes] | None = None
        self._call = threading.local()

    @property
    def given(self) -> Parameters | None:
        """The parameters of this thread's call."""
        return getattr(self._call, "given", None)

    @given.setter
    def given(self, given: Parameters | None) -> None:
        self._call.given = given

    @property
    def function(self) -> tuple[bytes, bytes]:
        """The state of the function as this thread's call found it, its parameters left out."""
        return self._call.function  # type: ignore[no-any-return]

    def assumptions(self) -> list[str]:
        """Return what the function is assumed not to depend on, in words."""
        trace = self._trace
        if trace is not None:
            return trace.assumptions
        given = self.given
        return super().assumptions() + ([] if given is None else given.unread)

    def structure(self) -> bytes:
        """Return what State.structure is now."""
        trace = self._trace
        return super().structure() if trace is None else trace.structure

    @property
    def _trace(self) -> _Trace | None:
        return getattr(self._call, "trace", None)

    def look(self, engine: Engine) -> Look:
        """Look at the function while a call of it is traced."""
        if self.mode == "manual":
            return Look(bytes(32), bytes(32), [], [])
        reading = Reading(JaxFunctions(self.root), self.root, ignore=self._ignore)
        pairs = [*_pairs(reading)]
        if not any(is_tracer(x) for _, x in pairs):
            engine.settle()  # constants of a graph are not looked at again
            state = self._checked()
            return Look(state.structure, state.weights, pairs, reading.assumptions)
        extra = self._read_extra()
        structure = _Known(reading, extra, b"").structure()
        pairs += [] if extra is None else _pairs(extra)
        return Look(structure, None, pairs, reading.assumptions)

    @contextmanager
    def traced(
        self,
        look: Look,
        given: Parameters | None,
        passed: Sequence[Any],
        hoisted: Sequence[Any],
    ) -> Iterator[bytes | TracedWeights]:
        """Have structure() and assumptions() be those of a call that is traced, in a block.

        Parameters
        ----------
        look
            At the function.
        given
            The parameters of the call.
        passed
            The arrays among them that are traced.
        hoisted
            What the function encloses that is traced.

        Yields
        ------
        bytes or TracedWeights
            The weights, as they are constants of the graph or passed to it.
        """
        if self.mode == "manual":
            yield bytes(32)
            return
        structure, assumptions = look.structure, look.assumptions
        own: TracedWeights | None = None
        at: list[int] = []
        if given is not None:
            structure = joined(structure, given.structure)
            assumptions = assumptions + given.unread
            pairs = list(zip(given.names, given.tensors, strict=True))
            places = {id(x): i for i, x in enumerate(passed)}
            own = TracedWeights(
                [name for name, x in pairs if is_tracer(x)],
                [(name, x) for name, x in pairs if not is_tracer(x)],
            )
            at = [places[id(x)] for _, x in pairs if is_tracer(x)]
        function = look.weights_with(hoisted)
        weights = _Weights(function, list(range(len(passed), len(passed) + len(hoisted))), own, at)
        self._call.trace = _Trace(structure, assumptions)
        try:
            yield weights if passed or hoisted else weights.digest([])
        finally:
            self._call.trace = None

    def _checked(self) -> State:
        state = super().check()
        now = (state.structure, state.weights)
        if now != self._last:
            if self._last is not None:
                forget_traces()
            self._last = now
        return state

    def check(self) -> State:
        """Look at the function and at the parameters, once a call."""
        state = self._checked()
        self._call.function = (state.structure, state.weights)
        given = self.given
        if given is None or self.mode == "manual":
            return state
        return dataclasses.replace(
            state,
            structure=joined(state.structure, given.structure),
            weights=joined(state.weights, self._digests.digest(given.names, given.tensors)),
        )


class Look(NamedTuple):
    """A function as it is while a call of it is traced."""

    structure: bytes
    weights: bytes | None
    """None: some of them are traced themselves."""
    pairs: list[tuple[str, Any]]
    """Names and tensors."""
    assumptions: list[str]

    def weights_with(self, hoisted: Sequence[Any]) -> bytes | TracedWeights:
        """Return the weights, where the function encloses these tracers."""
        if self.weights is not None and not hoisted:
            return self.weights
        names = {id(x): name for name, x in self.pairs if is_tracer(x)}
        return TracedWeights(
            [names.get(id(x), f"traced[{i}]") for i, x in enumerate(hoisted)],
            [(name, x) for name, x in self.pairs if not is_tracer(x)],
        )

    @property
    def state(self) -> Any:
        """What traces of it may be kept for."""
        return (self.structure, self.weights) if self.weights is not None else object()


class _Trace(NamedTuple):
    """A function as it is while a call is traced."""

    structure: bytes
    assumptions: list[str]


class _Weights(TracedWeights):
    """The weights that a graph passes: of the function, and its parameters."""

    def __init__(
        self,
        function: bytes | TracedWeights,
        function_at: Sequence[int],
        given: TracedWeights | None,
        given_at: Sequence[int],
    ) -> None:
        super().__init__(())
        self._function, self._function_at = function, function_at
        self._given, self._given_at = given, given_at

    def groups(self) -> list[WeightGroup]:
        """Return what the core makes the digest of."""
        function = self._function
        if isinstance(function, bytes):
            groups: list[WeightGroup] = [(function, [], [], [])]
        else:
            groups = _placed(function.groups(), self._function_at)
        if self._given is not None:
            groups += _placed(self._given.groups(), self._given_at)
        return groups

    def digest(self, arrays: Sequence[Any]) -> bytes:
        """Return what ``State.weights`` is for arrays with these contents."""
        function = self._function
        if isinstance(function, TracedWeights):
            function = function.digest([arrays[i] for i in self._function_at])
        if self._given is None:
            return function
        return joined(function, self._given.digest([arrays[i] for i in self._given_at]))


def _placed(groups: Sequence[WeightGroup], at: Sequence[int]) -> list[WeightGroup]:
    return [(known, names, [at[i] for i in places], held) for known, names, places, held in groups]


def _pairs(reading: Reading) -> Iterator[tuple[str, Any]]:
    return zip(reading.names, reading.tensors, strict=True)
