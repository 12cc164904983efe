"""The layer for one call: what the engine in the core calls back (python/src/layer_runner.h)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, Protocol

from tensorkey import _core, errors
from tensorkey._adapters import OutputAdapter
from tensorkey._backend import Backend, Bypass
from tensorkey._fingerprint import Fingerprint
from tensorkey._inputs import Signature
from tensorkey._outputs import pack
from tensorkey._random_state import RandomState

Output = tuple[Sequence[Any], Sequence[str], bytes, float]


class Batch(Protocol):
    """The arguments of a call, see _inputs.py."""

    @property
    def rows(self) -> int:
        """The batch size."""

    @property
    def tensors(self) -> list[Any]:
        """Those with a row for each of the batch."""

    @property
    def paths(self) -> list[str]:
        """Where they are."""

    def call(self, run: Callable[..., Any], tensors: Sequence[Any]) -> Any:
        """Call a function with other tensors in their places."""


class Nothing:
    """The arguments of a call by keys alone."""

    rows = 0
    tensors: list[Any] = []
    paths: list[str] = []

    def call(self, run: Callable[..., Any], tensors: Sequence[Any]) -> Any:
        """There is nothing to run: a function asked for rows that it did not fetch."""
        raise errors.InternalError("[CachedLayer] a layer was to be run without its inputs")


class Layer(Protocol):
    """What the runners of one layer share."""

    backend: Backend
    fingerprint: Fingerprint
    signature: Signature
    adapter: OutputAdapter | None
    whole: bool
    """Whether the whole input is one row."""

    def ran(self, arguments: Batch, positions: Sequence[int]) -> None:
        """Note rows that are run."""


class Runner:
    """Runs a layer on rows of the caller's arguments."""

    def __init__(self, layer: Layer, arguments: Batch) -> None:
        self._layer = layer
        self.arguments = arguments
        self.failed = False
        """An exception came from here, not from another call that ran the same rows."""
        self._saved: Any = None
        self._watched: tuple[dict[str, bytes], bytes] | None = None
        self._states: dict[bytes, RandomState] = {}

    def prepare(self, positions: list[int]) -> None:
        """Look at what will be run: nothing to do here."""

    def run(self, positions: list[int]) -> Output:
        """Run the layer on copies of these rows."""
        self._layer.ran(self.arguments, positions)
        return self._run(self.arguments, positions)

    def _run(self, arguments: Batch, positions: list[int]) -> Output:
        try:
            return self._output(arguments, positions)
        except Exception:
            self.failed = True
            raise

    def _output(self, arguments: Batch, positions: list[int]) -> Output:
        layer, rows = self._layer, len(positions)
        backend = layer.backend
        tensors = arguments.tensors
        taken = backend.copy(tensors) if layer.whole else backend.take(tensors, positions)
        start = perf_counter()
        try:
            output = arguments.call(backend.run, taken)
        except Exception as error:
            if rows > arguments.rows and backend.out_of_memory(error):
                raise Bypass(
                    f"out of memory in a chunk of {rows} rows; chunk=1 needs less"
                ) from error
            raise
        if layer.adapter is not None:
            output = layer.adapter.to_tensors(output)
        like = taken[0] if taken else None
        leaves, paths, form = pack(output, backend, rows=None if layer.whole else rows, like=like)
        backend.finish(leaves)
        seconds = perf_counter() - start - getattr(backend, "seconds_once", _nothing)()
        if layer.whole:
            leaves = [backend.lift(leaf) for leaf in leaves]
        return leaves, paths, form, seconds

    def input_keys(self, positions: list[int]) -> list[_core.Key]:
        """Return content keys of rows, for entries under the caller's own keys."""
        arguments = self.arguments
        backend = self._layer.backend
        if self._layer.whole:
            tensors = [backend.lift(tensor) for tensor in arguments.tensors]
        else:
            tensors = backend.take(arguments.tensors, positions)
        keys = _core.tuple_row_keys(dict(zip(arguments.paths, tensors, strict=True)))
        return [keys[i] for i in range(len(positions))]

    # The probe.

    def changes(self) -> list[str]:
        """Return what changed in the layer since the last call, by name."""
        fingerprint = self._layer.fingerprint
        reading = fingerprint.read()
        digests = {
            path: _core.change_digest([tensor])
            for path, tensor in zip(reading.names, reading.tensors, strict=True)
        }
        watched, self._watched = self._watched, (digests, reading.structure)
        if watched is None:
            self._saved = self._layer.backend.save(reading.tensors)
            return []
        before, structure = watched
        changed = [path for path in digests if digests[path] != before.get(path)]
        changed += [path for path in before if path not in digests]
        if structure != reading.structure:
            changed.append("attributes")
        return changed

    def restore(self) -> None:
        """Put buffers back as they were when changes() was first asked."""
        self._layer.backend.restore(self._saved)

    def random_state(self) -> bytes:
        """Return the random states, comparable."""
        state = RandomState(self._layer.backend)
        self._states[state.encoded] = state
        return state.encoded

    def set_random_state(self, encoded: bytes) -> None:
        """Put back what random_state() returned."""
        self._states[encoded].restore()


def _nothing() -> float:
    """Return what a run took that the next does not: frameworks that compile say more."""
    return 0.0


class StructureRunner(Runner):
    """Runs a layer whose answers are said to depend on the structure of its inputs alone."""

    def input_keys(self, positions: list[int]) -> list[_core.Key]:
        """Return nothing: the contents are not to count."""
        return []


class FetchingRunner(Runner):
    """Asks the caller for the rows that must be run, when they must be."""

    def __init__(self, layer: Layer, fetch: Callable[[list[int]], Any]) -> None:
        super().__init__(layer, Nothing())
        self._fetch = fetch
        self._places: dict[int, int] = {}

    def prepare(self, positions: list[int]) -> None:
        """Fetch the inputs of these rows."""
        try:
            args, kwargs = arguments_of(self._fetch(positions))
        except Exception:
            self.failed = True
            raise
        fetched = self._layer.signature.take(args, kwargs)
        if fetched.rows != len(positions):
            raise errors.InvalidArgument(
                f"[with_keys] the function gave {fetched.rows} rows for {len(positions)} positions;"
                " expected one row for each position that is missing"
            )
        reason = self._layer.backend.unfit_inputs(fetched.tensors)
        if reason is not None:
            raise Bypass(reason)
        if not fetched.bare:
            raise errors.InvalidArgument(
                "[with_keys] the function gave more than tensors with a row for each position; "
                "expected nothing that all rows share: bind it to the layer, or pass the batch"
            )
        self.arguments = fetched
        self._places = {position: place for place, position in enumerate(positions)}

    def run(self, positions: list[int]) -> Output:
        """Run the layer on copies of these rows."""
        return self._run(self.arguments, [self._places[position] for position in positions])

    def input_keys(self, positions: list[int]) -> list[_core.Key]:
        """Return content keys of rows."""
        return super().input_keys([self._places[position] for position in positions])


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return one batch of inputs as arguments: a tuple by position, a mapping by name.

    Examples
    --------
    >>> arguments_of("x"), arguments_of(("x", "y")), arguments_of({"x": 1})
    ((('x',), {}), (('x', 'y'), {}), ((), {'x': 1}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if type(inputs) is tuple:
        return inputs, {}
    return (inputs,), {}
