"""A Keras layer on JAX as a function of its variables' contents, and that function jitted.

Chunks always run jitted, in eager calls too: what a layer computes eagerly differs in bits from
what it computes under jit. The contents of variables are arguments; everything else is baked into
the compiled program, which is therefore looked up by all of that: the structure that a fingerprint
reads, arrays among the attributes, `state=`, settings of Keras, arguments that are no arrays.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import jax
import keras
from keras.src.backend.common import global_state
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.layers.layer import CallContext

from tensorkey import errors
from tensorkey._backend import Bypass, Unsuited
from tensorkey._fork import renew_after_fork
from tensorkey._jax_nest import Nest
from tensorkey._jax_programs import MARK, encoded, inside, taken_apart
from tensorkey._keras_layers import value_of
from tensorkey._keras_rows import settings
from tensorkey._nests import Unread

if TYPE_CHECKING:
    from tensorkey.keras import CachedLayer

_MOST = 64  # programs of one layer
# Names among Keras's globals.
_CONTEXT = "current_call_ctx"
_AUTOCAST = "autocast_scope"


@jax.tree_util.register_pytree_node_class
class LayerOutput:
    """What a run gave. To JAX it is its arrays: outputs, their masks, new values of variables."""

    def __init__(
        self, outputs: list[Any], masks: list[Any], values: list[Any], rest: tuple[Nest, list[int]]
    ) -> None:
        self.outputs = outputs
        self.masks = masks
        """One for each output, or None."""
        self.values = values
        self.nest, self.changed = rest
        """`changed` says which of the variables the values are for."""

    def tree_flatten(self) -> tuple[Any, Any]:
        """Take apart, as JAX asks."""
        return (self.outputs, self.masks, self.values), (self.nest, self.changed)

    @classmethod
    def tree_unflatten(cls, rest: Any, parts: Any) -> LayerOutput:
        """Put together, as JAX asks."""
        outputs, masks, values = parts
        return cls(outputs, masks, values, rest)

    def output(self) -> Any:
        """Return the layer's output with its masks."""
        for output, mask in zip(self.outputs, self.masks, strict=True):
            if mask is not None:
                set_keras_mask(output, mask)
        return self.nest.filled(self.outputs)


class Scope(keras.StatelessScope):  # type: ignore[misc]
    """Holds the contents of some variables, and notes whether others are read that it must hold."""

    def __init__(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        pairs = list(zip(variables, values, strict=True))
        with _global(_AUTOCAST, None):  # it would cast them, for all layers alike
            super().__init__(pairs, collect_losses=True, initialize_variables=False)
        self._around = get_stateless_scope()
        self.given = dict(self.state_mapping)
        self.missed = False

    def get_current_value(self, variable: Any) -> Any:
        """Return what a variable holds; None: what it held before."""
        value = super().get_current_value(variable)
        if value is None:
            around = self._around
            held = around is not None and around.get_current_value(variable) is not None
            self.missed = self.missed or held or variable._value is None
        return value

    def unsuited(self) -> str | None:
        """Return what a layer did that a hit or a compiled program would not do."""
        if self.losses:
            return "it adds losses, which a hit would leave out"
        if self.missed or len(self.state_mapping) != len(self.given):
            return "it uses a variable that neither it nor one of its layers holds"
        return None


class Function:
    """A layer in inference as a function of its variables' contents and of arguments.

    It is pure: it may be traced at any time, in any scope of Keras.

    Parameters
    ----------
    wrapper
        Of a layer that is built.
    """

    def __init__(self, wrapper: CachedLayer) -> None:
        found = wrapper.layer.variables + wrapper._fingerprint.read().variables
        self.variables = [*{id(variable): variable for variable in found}.values()]
        self.context = _context()
        self._wrapper = wrapper

    def values(self) -> list[Any]:
        """Return what the variables hold now."""
        return [value_of(variable) for variable in self.variables]

    def __call__(
        self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> LayerOutput:
        """Run the layer.

        Raises
        ------
        tensorkey._backend.Unsuited
            For a layer whose outputs cannot be kept.
        """
        wrapper, variables = self._wrapper, self.variables
        scope = Scope(variables, values)
        with inside(), _calling(wrapper, self.context), scope:
            output = wrapper._run_inner(args, kwargs)
            adapter = wrapper._engine.adapter
            if adapter is not None:
                output = adapter.to_tensors(output)
        if scope.losses:
            wrapper.layer._clear_losses()  # it holds tracers now
        reason = scope.unsuited()
        if reason is not None:
            raise Unsuited(reason)
        mapping, given = scope.state_mapping, scope.given
        changed = [i for i, v in enumerate(variables) if mapping[id(v)] is not given[id(v)]]
        try:
            nest, outputs = Nest.of(output)
        except Unread as unread:
            raise Unsuited(f"its output cannot be kept: {unread} cannot be read") from None
        masks = [get_keras_mask(array) for array in outputs]
        new = [mapping[id(variables[i])] for i in changed]
        return LayerOutput(outputs, masks, new, (nest, changed))


def _context() -> dict[str, Any]:
    """Return the arguments that sublayers take from the calls around them."""
    context = global_state.get_global_attribute(_CONTEXT)
    told = {} if context is None else dict(vars(context))
    told.pop("entry_layer", None)
    return told


def _calling(wrapper: CachedLayer, context: dict[str, Any]) -> AbstractContextManager[None]:
    """Have sublayers find these arguments of calls around them."""
    around = CallContext(entry_layer=wrapper)
    vars(around).update(context)
    return _global(_CONTEXT, around)


@contextmanager
def _global(name: str, value: Any) -> Iterator[None]:
    """Set one of Keras's globals, which are those of a thread."""
    before = global_state.get_global_attribute(name)
    global_state.set_global_attribute(name, value)
    try:
        yield
    finally:
        global_state.set_global_attribute(name, before)


class Programs:
    """A layer's compiled programs for chunks. Thread-safe."""

    def __init__(self, wrapper: CachedLayer) -> None:
        self._wrapper = wrapper
        self._programs: OrderedDict[tuple[Any, ...], _Program] = OrderedDict()
        self._lock = threading.Lock()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Have all be compiled anew: what no fingerprint sees may be another by now."""
        with self._lock:
            self._programs.clear()

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layer on a chunk.

        Raises
        ------
        tensorkey._backend.Bypass
            The layer must run itself.
        """
        wrapper = self._wrapper
        framework = wrapper._engine.backend
        function = Function(wrapper)
        values = function.values()
        nest, arrays = taken_apart((args, kwargs))
        key = (
            wrapper._fingerprint.baked(frozenset(map(id, values))),
            settings(),
            tuple(map(id, function.variables)),
            encoded(framework, function.context),
            encoded(framework, nest.filled([MARK] * len(arrays))),
        )
        program = self._program(key, function, nest)
        try:
            result = program.run(values, arrays)
        except Exception as error:
            ours = isinstance(error, (Bypass, Unsuited, errors.Error))
            if program.stopped_tracing() and not ours:
                self._check_alone(args, kwargs)
            raise
        for i, value in zip(result.changed, result.values, strict=True):
            function.variables[i].assign(value)  # which the probe sees
        output = result.output()
        adapter = wrapper._engine.adapter
        return output if adapter is None else adapter.from_tensors(output)

    def _program(self, key: tuple[Any, ...], function: Function, nest: Nest) -> _Program:
        with self._lock:
            program = self._programs.get(key)
            if program is None:
                program = self._programs[key] = _Program(function, nest)
                if len(self._programs) > _MOST:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(key)
            return program

    def _check_alone(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell a layer that JAX cannot trace from one that raises an exception of its own."""
        wrapper, backend = self._wrapper, self._wrapper._engine.backend
        state, saved = backend.random_state(), backend.save(())
        try:
            wrapper._run_inner(args, kwargs)
        finally:
            backend.restore(saved)
            backend.set_random_state(state)
        raise Unsuited("jax.jit cannot trace it, as chunks are run")


class _Program:
    """A function of contents of variables and arrays, compiled for each of their shapes."""

    def __init__(self, function: Function, nest: Nest) -> None:
        self._tracing: set[int] = set()

        def traced(values: list[Any], arrays: list[Any]) -> LayerOutput:
            self._tracing.add(threading.get_ident())
            args, kwargs = nest.filled(arrays)
            output = function(values, args, kwargs)
            self._tracing.discard(threading.get_ident())
            return output

        self.run: Callable[[list[Any], list[Any]], LayerOutput] = jax.jit(traced)

    def stopped_tracing(self) -> bool:
        """Whether the last run of this thread ended with an exception while it was traced."""
        thread = threading.get_ident()
        stopped = thread in self._tracing
        self._tracing.discard(thread)
        return stopped
