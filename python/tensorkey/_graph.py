"""Calls inside graphs: what a traced call does on the host, for every framework that traces.

A graph cannot be called back by the engine. It looks its rows up by one callback, runs the layer in
chunks of the rows that it is told to run, and hands over what came out by another:

    call = GraphCall(engine, arguments, environment, leaves, weights)      while tracing
    found = call.look_up(members, arrays)                                  callback
    table = found.hits                                                     in the graph, from here:
    for each of found.chunks chunks c:
        out = layer(rows at found.positions[c])
        table[found.targets[c]] = out          a target of n is no row
        call.deliver(found.ticket, c, out)                                 callback
    answer = table[found.sources]

If ``found.whole`` is 1, the answer is that of the layer on the whole batch, and there is no chunk;
if it is 2, the layer runs on the whole batch too and its output is delivered, as chunk -1, first.

Callbacks get and give arrays of NumPy, raise nothing but the refusal of a layer, and call no
framework.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tensorkey import _core, errors
from tensorkey._backend import Bypass
from tensorkey._fingerprint import content_of, weights_digest
from tensorkey._fork import renew_after_fork

if TYPE_CHECKING:
    import numpy as np

    from tensorkey._frontend import Engine
    from tensorkey._inputs import Arguments

RowShape = tuple[str, tuple[int, ...]]
"""Name of a dtype and the dims of a row."""

WeightGroup = tuple[bytes | None, list[bytes], list[int], list[tuple[bytes, bytes]]]
"""The digest of weights that are all constants; or names of those that are passed, as which arrays
of a call, and names and content keys of those that are not. Names are UTF-8."""

_MOST_OPEN = 256
"""Calls that looked up and have not delivered; one that was stopped between the two never does."""
_MOST_WEIGHTS = 16


@dataclasses.dataclass(frozen=True)
class LookedUp:
    """What a graph is to do."""

    ticket: int
    whole: int
    chunks: int
    positions: np.ndarray
    """int32, ``chunks * chunk`` rows to run."""
    targets: np.ndarray
    """int32, for each of them the row of the table that it is the answer of, or the batch size."""
    sources: np.ndarray
    """int32, for each row of the batch the row of the table that holds its answer."""
    hits: list[np.ndarray]
    """The table, one array for each leaf; only the rows that were found are written."""


class TracedWeights:
    """The weights of a layer as a graph passes them: known by their contents, call by call.

    Parameters
    ----------
    names
        Of the tensors, as a reading names them, in the order in which they are passed.
    fixed
        Name and tensor of those that are constants of the graph.
    """

    def __init__(self, names: Sequence[str], fixed: Iterable[tuple[str, Any]] = ()) -> None:
        self.names = list(names)
        self._fixed = [(name, content_of(tensor)) for name, tensor in fixed]
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self.renew_locks()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Make the lock anew."""
        self._lock = threading.Lock()

    def groups(self) -> list[WeightGroup]:
        """Return what the core makes the digest of: that of the first, joined with each other."""
        places = list(range(len(self.names)))
        return [
            (None, [*map(_encoded, self.names)], places, [(_encoded(n), k) for n, k in self._fixed])
        ]

    def digest(self, arrays: Sequence[Any]) -> bytes:
        """Return what ``State.weights`` is for tensors with these contents."""
        change = _core.change_digest(list(arrays))
        with self._lock:
            known = self._known.get(change)
        if known is not None:
            return known
        passed = zip(self.names, map(content_of, arrays), strict=True)
        digest = weights_digest([*passed, *self._fixed])
        with self._lock:
            self._known[change] = digest
            if len(self._known) > _MOST_WEIGHTS:
                self._known.popitem(last=False)
        return digest


class GraphCall:
    """One traced call of a cached layer. Thread-safe.

    Parameters
    ----------
    engine
        Of the layer. It lives as long as this.
    arguments
        What the signature made of the call's arguments; its tensors are symbolic.
    environment
        The backend's, with its execution mode.
    members
        What the tensors with rows look like.
    leaves
        What the tensors of the output look like, all with a row for each row of the batch.
    weights
        Digest of the layer's weights if they are constants of the graph. Not asked of a layer
        whose fingerprint is "manual".
    rows
        The batch size, 0 if that is not known while tracing.

    Raises
    ------
    Bypass
        The graph is to run the layer itself; the caller counts the text.
    """

    def __init__(
        self,
        engine: Engine,
        arguments: Arguments,
        environment: tuple[object, ...],
        members: Sequence[RowShape],
        leaves: Sequence[RowShape],
        weights: bytes | TracedWeights,
        rows: int = 0,
    ) -> None:
        options = engine.options
        for given, name in (
            (engine.whole, "rows='batch' or by='structure'"),
            (options.trim is not None, "trim="),
            (engine.adapter is not None, "outputs="),
            (options.codec not in ("raw", "lossless"), f"codec={options.codec!r}"),
        ):
            if given:
                raise Bypass(f"{name} inside a graph")
        self._engine = engine
        self._core = engine.core
        self._paths = list(arguments.paths)
        self._about = engine.traced(arguments.form, environment)
        self._secret = options.secret
        self._members = list(members)
        self.leaves = [(name, tuple(dims)) for name, dims in leaves]
        manual = engine.fingerprint.mode == "manual"
        self._weights = bytes(32) if manual else weights
        self._verifies = options.verify > 0
        self.chunk = self._core.task_chunk(self._about, self._members, self._secret, rows)
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._tickets = itertools.count(1)
        self.renew_locks()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Make the lock anew."""
        self._lock = threading.Lock()

    def capacity(self, rows: int) -> int:
        """Return the number of chunks that a batch of so many rows can need at most."""
        return _core.LayerTask.capacity(rows, self.chunk, self._verifies)

    def chunk_of(self, members: Sequence[np.ndarray]) -> int:
        """Return in chunks of how many rows a batch is to run now, for graphs that take any."""
        try:
            shapes = [(array.dtype.name, array.shape[1:]) for array in members]
            return self._core.task_chunk(self._about, shapes, self._secret, len(members[0]))
        except Exception:  # look_up() meets it again, and counts it
            return self.chunk

    def look_up(
        self,
        members: Sequence[np.ndarray],
        weights: Sequence[np.ndarray] = (),
        capacity: int | None = None,
        chunk: int | None = None,
    ) -> LookedUp:
        """Look rows up.

        Parameters
        ----------
        members
            The tensors with rows, in the order of ``arguments.paths``.
        weights
            Those that are arguments of the graph, in the order of ``TracedWeights.names``.
        capacity
            Pad positions and targets to so many chunks.
        chunk
            What chunk_of() gave, if it is not ``chunk`` of every call.
        """
        import numpy as np

        rows = len(members[0])
        chunk = chunk or self.chunk
        task = self._begin(members, weights, rows, chunk)
        count = task.chunks * chunk
        room = count if capacity is None else capacity * chunk
        positions = np.zeros(room, np.int32)
        targets = np.full(room, rows, np.int32)
        sources = np.empty(rows, np.int32)
        hits = [np.zeros((rows, *dims), _dtype(name)) for name, dims in self.leaves]
        try:
            task.positions(positions[:count])
            task.targets(targets[:count])
            task.sources(sources)
            task.read([_bytes(array) for array in hits])
        except Exception as error:  # an entry that is not what the others are
            self._core.error(type(error).__name__)
            task = _core.LayerTask.aside(rows, chunk)
            sources = np.arange(rows, dtype=np.int32)
        ticket = self._keep(task) if task.chunks or task.whole == 2 else 0
        return LookedUp(ticket, task.whole, task.chunks, positions, targets, sources, hits)

    def deliver(
        self,
        ticket: int,
        chunk: int,
        outputs: Sequence[np.ndarray],
        seconds: float | None = None,
    ) -> None:
        """Store what a chunk gave; chunks come in order.

        Parameters
        ----------
        ticket
            Of look_up.
        chunk
            Its number; -1 for the whole batch.
        outputs
            One array for each leaf.
        seconds
            What the layer took; None: the time since the last callback of this call.

        Raises
        ------
        tensorkey.errors.Unsupported
            At the first call of a layer that the probe refuses.
        """
        with self._lock:
            call = self._open.get(int(ticket))
        if call is None:  # too many calls were begun since
            self._core.error("LostTicket")
            return
        now = perf_counter()
        task = call.task
        try:
            task.deliver(int(chunk), list(outputs), now - call.last if seconds is None else seconds)
        except errors.Unsupported:
            self._drop(ticket)
            raise
        except Exception as error:
            self._core.error(type(error).__name__)
            self._drop(ticket)
            return
        call.last = perf_counter()
        if chunk == task.chunks - 1:
            self._drop(ticket)
            if task.deviation[0]:
                self._engine.look_at(task.deviation)

    def deliver_all(self, ticket: int, outputs: Sequence[np.ndarray]) -> None:
        """Store what all chunks gave, one array of chunks for each leaf; see deliver().

        The time since the look-up is shared out evenly.
        """
        with self._lock:
            call = self._open.get(int(ticket))
        chunks = len(outputs[0])
        seconds = 0.0 if call is None else (perf_counter() - call.last) / max(chunks, 1)
        for chunk in range(chunks):
            self.deliver(ticket, chunk, [leaf[chunk] for leaf in outputs], seconds)

    def in_core(self) -> _core.XlaCall:
        """Return the same call for programs that make it without Python. Does not hold this one."""
        owner, about = weakref.ref(self._engine), self._about

        def looked_up(weights: bytes) -> None:
            engine = owner()
            if engine is not None:
                engine.looked_up(about, weights)

        def deviated(found: tuple[int, float, str]) -> None:
            engine = owner()
            if engine is not None:
                engine.look_at(found)

        weights = self._weights
        groups: list[WeightGroup]
        groups = weights.groups() if isinstance(weights, TracedWeights) else [(weights, [], [], [])]
        return _core.XlaCall(
            self._core,
            paths=self._paths,
            about=about,
            secret=self._secret,
            chunk=self.chunk,
            leaves=self.leaves,
            weights=groups,
            passed=isinstance(weights, TracedWeights),
            looked_up=looked_up,
            deviated=deviated,
        )

    def _begin(
        self, members: Sequence[Any], weights: Sequence[Any], rows: int, chunk: int
    ) -> _core.LayerTask:
        try:
            digest = self._weights
            if isinstance(digest, TracedWeights):
                digest = digest.digest(weights)
            self._engine.looked_up(self._about, digest)
            return self._core.begin(
                list(members),
                self._paths,
                self._about,
                digest,
                self._secret,
                chunk,
                self.leaves,
            )
        except Bypass as reason:
            self._core.bypass(str(reason))
        except Exception as error:
            self._core.error(type(error).__name__)
        return _core.LayerTask.aside(rows, chunk)

    def _keep(self, task: _core.LayerTask) -> int:
        ticket = next(self._tickets)
        with self._lock:
            self._open[ticket] = _Open(task, perf_counter())
            while len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return ticket

    def _drop(self, ticket: int) -> None:
        with self._lock:
            self._open.pop(int(ticket), None)


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


@dataclasses.dataclass
class _Open:
    task: _core.LayerTask
    last: float


def _dtype(name: str) -> Any:
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))


def _bytes(array: Any) -> Any:
    import numpy as np

    return array.reshape(-1).view(np.uint8)
