"""The engine of a cached layer, shared by the frontends: what thinks, and knows no framework.

A frontend owns a ``Backend`` (how to copy rows, run the layer, allocate an answer), asks its own
guards whether a call may be cached at all, and hands the rest to ``Engine.call``:

    fingerprint -> plan (chunk and probe, once for each structure) -> lookup -> run the missing rows
    in chunks -> insert -> wait for rows that other threads run -> assemble

The scope under which rows are looked up is the BLAKE3 of the canonical encoding (_encoding.py) of

    ("tensorkey layer", 1, frontend, method, "each", chunk, environment, the caller's scope,
     codec if it is lossy, digest of the fingerprint)

An exception of the layer passes through unchanged, to the threads that wait for its rows too, and
stores nothing. A failure of the cache is counted and the layer runs without it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from tensorkey import _core, errors
from tensorkey._backend import Backend, Bypass, CheckedLayer, LayerState, Unsuited
from tensorkey._chunks import chunks, first_chunk
from tensorkey._encoding import plain
from tensorkey._fingerprint import Fingerprint, State
from tensorkey._fork import renew_after_fork
from tensorkey._options import Options
from tensorkey._plan import Plan, Run
from tensorkey._probe import MAX_ROWS, Inputs, Verdict, probe
from tensorkey._reading import Reading
from tensorkey._stats import LayerStats

UNPROVEN = "unproven: probe=False"
MAX_PLANS = 64
MAX_SCOPES = 1 << 16


class Engine:
    """Memo, plans and counters of one cached layer. Thread-safe as its memo is."""

    def __init__(self, backend: Backend, fingerprint: Fingerprint, options: Options) -> None:
        self.options = options
        self.cache = options.make_cache()
        self.monitor = _core.Monitor(options.bypass)
        self._backend = backend
        self._fingerprint = fingerprint
        self._memo = _core.Memo(self.cache, options.codec)
        scope = options.scope
        codec = "" if options.codec in ("raw", "lossless") else options.codec
        self._user_scope = (scope.encode() if isinstance(scope, str) else scope, codec)
        self._scope: tuple[object, bytes] = (None, b"")
        self._scopes: dict[bytes, None] = {}  # where others have theirs too: this layer's
        self._plans: dict[tuple[bytes, object], Plan] = {}
        self._last: Plan | None = None
        self._accepted = False
        self._chunk: int | None = None
        self._assumptions: dict[str, None] = {}
        self._probe_runs = 0
        self._settling = threading.RLock()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._settling = threading.RLock()

    def reading(self) -> Reading:
        """Return the layer as it is now: what the frontend's own guards look at.

        Raises
        ------
        Bypass
            It cannot be read.
        """
        try:
            return self._fingerprint.read()
        except Exception as error:  # anything that attributes of other people's classes may raise
            raise Bypass(f"the layer cannot be read: {type(error).__name__}: {error}") from error

    def clear(self) -> None:
        """Drop this layer's entries; the counters stay."""
        if self.options.cache is None and self.options.disk is None:
            self.cache.clear()  # a directory has entries of others
        for scope in list(self._scopes):
            self.cache.purge(scope)
            self._scopes.pop(scope, None)

    def reset_stats(self) -> None:
        """Set the counters to zero, those of a cache of its own too."""
        self.monitor.reset(self._memo)
        self._probe_runs = 0
        if self.options.cache is None:
            self.cache.reset_stats()

    def call(
        self, inputs: Inputs, reading: Reading, environment: tuple[object, ...], start: float
    ) -> Any:
        """Answer a batch.

        Parameters
        ----------
        inputs
            Tensors that share their first dimension, of at least one row.
        reading
            From reading(), in this call.
        environment
            Plain values: what else the bits of an answer depend on.
        start
            perf_counter() when the call began.

        Raises
        ------
        Bypass
            The caller runs the layer on the whole batch and counts the text.
        tensorkey.errors.Unsupported
            The probe refuses the layer.
        tensorkey.errors.InvalidArgument
            The output of the layer has another batch size than its input.
        """
        state = self._state(reading)
        plan = self._plans.get((state.structure, environment))
        if plan is None or not plan.verdict.complete:
            settling = perf_counter()
            plan, state = self._settle(plan, inputs, reading, state, environment)
            start += perf_counter() - settling  # once, so no cost of a call
        self._last = plan
        if plan.unsuited is not None:
            raise Bypass(plan.unsuited)
        if plan.verdict.refused:
            self._refuse(plan.verdict)
        with self._lookup(inputs, plan.verdict.chunk, environment, state) as batch:
            run = Run(batch.rows)
            self._answer(plan, batch, inputs, run)
            try:
                output = self._backend.assemble(batch, plan.place)
            except errors.Error as error:
                self._count(error)
                raise Bypass(f"the rows of its output differ in shape: {error}") from None
        self._count_host_copies(inputs, reading, run)
        seconds = perf_counter() - start - run.waited
        layer = int.from_bytes(state.digest[:8], "little")
        hits = run.rows - run.misses
        self.monitor.observe(self._memo, run.rows, hits, run.run, run.seconds, seconds, layer)
        return output

    def _answer(self, plan: Plan, batch: _core.MemoBatch, inputs: Inputs, run: Run) -> None:
        """Run what is missing, until all rows are known."""
        while True:
            if missing := batch.missing:
                try:
                    self._compute(plan, batch, missing, inputs, run)
                except Bypass:
                    raise  # who waits for these rows runs them
                except Exception as error:
                    self._count(error)
                    batch.fail(error)
                    raise
            waiting = perf_counter()
            done = batch.wait()
            run.waited += perf_counter() - waiting
            if done:
                return

    def _count(self, error: Exception) -> None:
        self.monitor.error(type(error).__name__)

    def _count_host_copies(self, inputs: Inputs, reading: Reading, run: Run) -> None:
        copied = sum(self._backend.device_bytes(tensor) for tensor in inputs)
        if copied or run.device_bytes:
            weights = sum(self._backend.device_bytes(tensor) for tensor in reading.tensors)
            self.monitor.host_copy(run.rows + run.run, copied + run.device_bytes + weights)

    def _state(self, reading: Reading) -> State:
        try:
            return self._fingerprint.check()
        except errors.Error as error:
            self._count(error)
            raise Bypass(f"a weight has no key: {error}") from None

    def _lookup(
        self, inputs: Inputs, chunk: int, environment: tuple[object, ...], state: State
    ) -> _core.MemoBatch:
        about = (chunk, environment, state.digest)
        known, scope = self._scope
        if known != about:
            parts = ("tensorkey layer", 1, self._backend.name, "forward", "each")
            scope = _core.blake3(
                plain((*parts, chunk, environment, *self._user_scope, state.digest))
            )
            self._scope = (about, scope)
            self._remember(scope)
        paths = [str(i) for i in range(len(inputs))]
        try:
            return self._memo.lookup(inputs, paths, scope, self.options.secret)
        except errors.Error as error:
            self._count(error)
            raise Bypass(f"an input has no key: {error}") from None

    def _remember(self, scope: bytes) -> None:
        """Note a scope under which a shared cache or directory holds entries of this layer."""
        if self.options.cache is not None or self.options.disk is not None:
            self._scopes[scope] = None
            if len(self._scopes) > MAX_SCOPES:
                self._scopes.pop(next(iter(self._scopes)), None)

    def _compute(
        self,
        plan: Plan,
        batch: _core.MemoBatch,
        missing: Sequence[int],
        inputs: Inputs,
        run: Run,
    ) -> None:
        """Run the missing rows; all of them before any is stored."""
        chunk = plan.verdict.chunk
        subject = CheckedLayer(self._backend, batch.rows)
        done = []
        run.misses += len(missing)
        try:
            for first, count, rows in chunks(missing, chunk):
                part = subject.take(inputs, rows)
                start = perf_counter()
                output = subject.run(part)
                self._backend.finish(output)
                seconds = perf_counter() - start
                run.seconds += seconds
                run.run += len(rows)
                done.append((first, count, output, seconds))
            for first, count, output, seconds in done:
                self._insert(batch, first, count, output, seconds)
                run.device_bytes += self._backend.device_bytes(output)
        except Unsuited as reason:
            plan.unsuited = str(reason)
            raise

    def _insert(
        self, batch: _core.MemoBatch, first: int, count: int, output: Any, seconds: float
    ) -> None:
        try:
            batch.insert(first, count, output, seconds)
        except errors.Unsupported as error:
            self._count(error)
            raise Unsuited(f"its output cannot be stored: {error}") from None
        except errors.Error as error:
            self._count(error)
            raise Bypass(f"the rows of its output differ in shape: {error}") from None

    def _settle(
        self,
        plan: Plan | None,
        inputs: Inputs,
        reading: Reading,
        state: State,
        environment: tuple[object, ...],
    ) -> tuple[Plan, State]:
        """Resolve chunk and probe for a structure seen for the first time."""
        with self._settling:
            settled = self._plans.get((state.structure, environment))
            if settled is not plan and settled is not None:
                return settled, state  # by another thread
            self._assumptions |= dict.fromkeys(reading.unread)
            rows = self._backend.rows(inputs[0]) or 0
            if self._chunk is None:
                self._chunk = first_chunk(self.options.chunk, rows)
            distinct = self._distinct(inputs)
            if plan is not None and len(distinct) < 2:
                return plan, state  # still too few rows to measure more
            subject = CheckedLayer(self._backend, rows)
            try:
                verdict = self._judge(subject, reading, inputs, distinct)
                plan = Plan(verdict, place=subject.place)
                self._accepted |= verdict.complete and not verdict.refused
            except Unsuited as reason:
                plan = Plan(Verdict(self._chunk, f"not run: {reason}"), unsuited=str(reason))
            finally:
                self._probe_runs += subject.runs
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[state.structure, environment] = plan
            # The first runs may have built caches of the layer's own: go on from what is now.
            state = self._state(self.reading())
            self._plans[state.structure, environment] = plan
            return plan, state

    def _judge(
        self, subject: CheckedLayer, reading: Reading, inputs: Inputs, distinct: Sequence[int]
    ) -> Verdict:
        chunk = self._chunk or 1
        if self.options.probe:
            watched = LayerState(self._backend, self._fingerprint, reading)
            return probe(subject, watched, inputs, distinct, chunk)
        subject.run(subject.take(inputs, [0] * max(2, chunk)))  # looks at its output
        return Verdict(chunk, UNPROVEN)

    def _distinct(self, inputs: Inputs) -> list[int]:
        """Return the positions of the first different rows, as many as the probe can use."""
        members = {str(i): tensor for i, tensor in enumerate(inputs)}
        try:
            keys = _core.tuple_row_keys(members)
        except errors.Error as error:
            raise Bypass(f"an input has no key: {error}") from None
        first: dict[_core.Key, int] = {}
        for position in range(len(keys)):
            first.setdefault(keys[position], position)
            if len(first) == MAX_ROWS:
                break
        return list(first.values())

    def _refuse(self, verdict: Verdict) -> None:
        """Refuse loudly at first; a layer that was accepted runs uncached where it is not."""
        if self._accepted:
            raise Bypass(f"refused by the probe: {verdict.text}")
        raise errors.Unsupported(
            f"[CachedLayer] the rows of this layer cannot be cached one by one: {verdict.text}"
        )

    def stats(self) -> LayerStats:
        """Return a snapshot."""
        counts: dict[str, Any] = self.monitor.stats(self._memo)
        plan = self._last
        return LayerStats(
            **counts,
            probe_runs=self._probe_runs,
            chunk=plan.verdict.chunk if plan else None,
            probe=plan.verdict.text if plan else "not yet run",
            codec=self.options.codec,
            assumptions=list(self._assumptions),
            cache=self.cache.stats,
        )
