"""The engine of a cached layer, shared by the frontends: between a framework and the core.

A frontend owns a ``Backend`` (how to copy rows, run the layer, allocate an answer) and a
``Fingerprint``, asks its own guards whether a call may be cached at all, and hands the arguments
to ``Engine.call``:

    arguments apart -> guards of inputs and layer -> fingerprint -> the core's engine, which looks
    up, runs what is missing (_layer_runner.py) and stores -> output together

Rows are looked up under the scope of include/tensorkey/layer.h; its ``about`` is the BLAKE3 of the
canonical encoding (_encoding.py) of

    ("tensorkey about", 1, frontend, method, rows, trim, environment, the caller's scope,
     codec if it is lossy, digest of the structure, form of the arguments)

An exception of the layer passes through unchanged, to the threads that wait for its rows too, and
stores nothing. A failure of the cache is counted and the layer runs without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from tensorkey import _core, errors
from tensorkey._adapters import OutputAdapter
from tensorkey._backend import Backend, Bypass
from tensorkey._encoding import plain
from tensorkey._environments import Environments
from tensorkey._fingerprint import Fingerprint, State
from tensorkey._history import History, shape_of
from tensorkey._inputs import Arguments, Signature
from tensorkey._layer_runner import Batch, FetchingRunner, Nothing, Runner, StructureRunner
from tensorkey._options import Options
from tensorkey._outputs import OutputForm, output_form
from tensorkey._own_keys import Id
from tensorkey._padding import HINT, PaddingWatch
from tensorkey._sizes import format_bytes
from tensorkey._stats import LayerStats
from tensorkey._trim import Trimmed

_MAX_FORMS = 256
_CHECKED = 0.01  # of the hits by structure: the claim is checked now and then
_LOOKS = 3  # at other environments, when rows are missing
_MAX_ABOUTS = 256


class Engine:
    """One cached layer: its cache, its counters and what is known of its calls. Thread-safe."""

    def __init__(
        self,
        backend: Backend,
        fingerprint: Fingerprint,
        options: Options,
        method: Callable[..., Any],
        method_name: str = "forward",
    ) -> None:
        self.options = options
        self.cache = options.make_cache()
        self.backend = backend
        self.fingerprint = fingerprint
        self.whole = options.rows == "batch" or options.by == "structure"
        self.signature = Signature(method, backend, whole=self.whole)
        self.adapter = None if options.outputs is None else OutputAdapter(options.outputs)
        self._plain = self.adapter is None and not self.whole
        self._adapted, assumed = (b"", []) if self.adapter is None else self.adapter.about()
        self.core = _core.LayerEngine(
            self.cache,
            chunk=0 if options.chunk == "auto" else options.chunk,
            rows_are_batches=self.whole,
            probe=options.probe,
            accept_slot=options.bits == "slot",
            verify=max(options.verify, _CHECKED if options.by == "structure" else 0.0),
            tolerance=options.tolerance,
            codec=options.codec,
            bypass=options.bypass,
        )
        scope = options.scope
        codec = "" if options.codec in ("raw", "lossless") else options.codec
        rows = "structure" if options.by == "structure" else options.rows
        self._before = ("tensorkey about", 1, backend.name, method_name, rows, options.trim)
        self._after = (scope.encode() if isinstance(scope, str) else scope, codec)
        self._abouts: dict[tuple[bytes, tuple[object, ...], bytes], bytes] = {}
        self.forms: dict[bytes, OutputForm] = {}
        self.token_leaves: dict[tuple[bytes, bytes], list[bool]] = {}
        """With trim=: by forms of output and arguments, which leaves have a length."""
        self.unfit_lengths: set[int] = set()
        """Canonical ones that the layer does not take."""
        self.trim_runs = 0
        """Of single rows, to find out about leaves."""
        self.failures: dict[bytes, str] = {}
        """By what rows are looked up under: why the last call came to nothing."""
        self._last: tuple[bytes, bytes] = (b"", b"")
        self._portable = options.environment == "portable"
        self._known: tuple[bytes, tuple[object, ...], bytes] = (b"", (), b"")
        self._about = b""
        self._looks = 0
        self._environments: dict[tuple[bytes, bytes], Environments] | None = (
            {} if self.cache.has_store else None
        )
        self.history = History(backend.environment_names)
        self._padding = PaddingWatch()
        self._assumptions: dict[str, None] = dict.fromkeys(assumed)
        self.cache.settle_before_flush(self)

    def __del__(self) -> None:
        core = vars(self).get("core")  # none if __init__ failed
        if core is not None and core.pending:
            self.settle()

    # Calls.

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], start: float) -> Any:
        """Answer a call.

        Parameters
        ----------
        args, kwargs
            Of the layer's method.
        start
            perf_counter() when the call began.

        Raises
        ------
        Bypass
            The caller runs the layer itself and counts the text.
        tensorkey.errors.Unsupported
            The probe refuses the layer.
        tensorkey.errors.InvalidArgument
            An output has neither a row for each input row nor the same value for all of them.
        """
        arguments = self.signature.take(args, kwargs)
        if self.options.trim is not None:
            return Trimmed(self, arguments).call(start)
        if self.options.by == "structure":
            answer = self._ask_by_structure(arguments)
        else:
            answer = self.ask(arguments, None, Runner(self, arguments), arguments.form)
        output = self.output(answer, arguments)
        self.done(answer, arguments, start)
        return output

    def call_with_keys(
        self,
        ids: Sequence[Id],
        fetch: Callable[[list[int]], Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        start: float,
    ) -> Any:
        """Answer a call by the caller's own keys; `fetch` gives rows in place of arguments."""
        self.assume("the caller's own keys: an id is taken to mean one input")
        if fetch is not None:
            runner: Runner = FetchingRunner(self, fetch)
            form = b""
        else:
            arguments = self.signature.take(args, kwargs)
            if arguments.rows != len(ids):
                raise errors.InvalidArgument(
                    f"[with_keys] {len(ids)} keys for {arguments.rows} rows; expected one key a row"
                )
            runner = Runner(self, arguments)
            form = b"" if arguments.bare else arguments.form
        answer = self.ask(runner.arguments, ids, runner, form)
        output = self.output(answer, runner.arguments)
        self.done(answer, runner.arguments, start)
        return output

    def _ask_by_structure(self, arguments: Arguments) -> _core.LayerAnswer:
        self.assume("by='structure': outputs are taken to depend on shapes and dtypes alone")
        keys = [_core.structure_key(tensor) for tensor in arguments.tensors]
        one = plain(tuple(arguments.paths)) + b"".join(map(bytes, keys))
        return self.ask(arguments, [one], StructureRunner(self, arguments), arguments.form)

    def answer_stored(
        self,
        ids: Sequence[Id],
        runner: Runner,
        use: Callable[[OutputForm, _core.LayerAnswer, list[Any]], Any],
    ) -> Any:
        """Read rows by the caller's own keys; the runner has answers of its own, or none."""
        start = perf_counter()
        answer = self.ask(runner.arguments, ids, runner, b"", vouched=True)
        form = self.form_of(answer)
        leaves = self._delivered(form, answer, answer.memories, runner.arguments)
        result = use(form, answer, leaves)
        self.done(answer, runner.arguments, start)
        return result

    def ask(
        self,
        arguments: Batch,
        ids: Sequence[Id] | None,
        runner: Runner,
        form: bytes,
        vouched: bool = False,
    ) -> _core.LayerAnswer:
        """Look up the rows and run those that are missing."""
        epoch = self.core.epoch  # before the weights are looked at
        about, state = self.about(arguments, form)
        self.looked_up(about, state.weights)
        try:
            answer = self.core.answer(
                self.members(arguments) if ids is None else (),
                arguments.paths if ids is None else (),
                ids,
                about,
                state.weights,
                self.options.secret,
                epoch if state.pending else None,
                vouched,
                runner,
                self.backend.allocate,
            )
        except Bypass as bypass:
            self._fail(about, str(bypass))
            raise
        except Exception as error:
            ours = isinstance(error, errors.Error)
            if ours or runner.failed:  # else it is counted where the layer ran
                self.core.error(type(error).__name__)
            if ours:
                self._fail(about, str(error))
            raise
        if self.failures:
            self.failures.pop(about, None)
        return answer

    def looked_up(self, about: bytes, weights: bytes) -> None:
        """Note under what rows are looked up, for explain()."""
        if self._last != (about, weights):
            self._last = (about, weights)
            self.history.called(about, weights)

    def _fail(self, about: bytes, why: str) -> None:
        if len(self.failures) >= _MAX_ABOUTS:
            self.failures.clear()
        self.failures[about] = why

    def ran(self, arguments: Batch, positions: Sequence[int]) -> None:
        """Note rows that are run, for what explain() and the hints say."""
        self.history.shaped(shape_of(self.members(arguments)))
        tensors = arguments.tensors
        if self._padding.is_full or self.whole or self.options.trim is not None:
            return
        if tensors and len(tensors[0].shape) == 2:
            rows = self.backend.integers(tensors[0])
            if rows is not None:
                self._padding.observe(rows, positions)

    def members(self, arguments: Batch) -> list[Any]:
        """Return the tensors whose rows have keys."""
        if self.whole:
            return [self.backend.lift(tensor) for tensor in arguments.tensors]
        return arguments.tensors

    def form_of(self, answer: _core.LayerAnswer) -> OutputForm:
        """Return how the layer's output is made of its leaves."""
        encoded = answer.form
        form = self.forms.get(encoded)
        if form is None:
            if len(self.forms) >= _MAX_FORMS:
                self.forms.clear()
            self.forms[encoded] = form = output_form(encoded)
        return form

    def output(self, answer: _core.LayerAnswer, arguments: Batch) -> Any:
        """Make the layer's own output of an answer."""
        form = self.form_of(answer)
        memories = answer.memories
        if form.is_bare and self._plain and self.backend.is_home(arguments.tensors):
            return memories[0]
        return self.together(form, answer, memories, arguments)

    def together(
        self, form: OutputForm, answer: _core.LayerAnswer, memories: list[Any], arguments: Batch
    ) -> Any:
        """Make the layer's own output of its leaves, which lie on the host."""
        output = form.unpack(self._delivered(form, answer, memories, arguments))
        return output if self.adapter is None else self.adapter.from_tensors(output)

    def _delivered(
        self, form: OutputForm, answer: _core.LayerAnswer, memories: list[Any], arguments: Batch
    ) -> list[Any]:
        deliver, whole = self.backend.deliver, self.whole
        like = arguments.tensors[0] if arguments.tensors else None
        return [
            deliver(memory, dtype, shape[1:] if whole and by_row else shape, noted[1], like)
            for memory, (dtype, shape, by_row), noted in zip(
                memories, answer.leaves, form.leaves, strict=True
            )
        ]

    def done(self, answer: _core.LayerAnswer, arguments: Batch, start: float) -> None:
        """Count a call."""
        copied = 0
        for tensor in arguments.tensors:
            copied += self.backend.device_bytes(tensor)
        if copied:
            self.core.host_copy(answer.rows, copied)
        self.history.clock = now = perf_counter()
        if answer.finish(now - start):
            self.fingerprint.observe(answer.seconds_layer)
            if self.core.pending_full:
                self.fingerprint.demand()
            if self._looks < _LOOKS and self._environments is not None:
                self._look_elsewhere(arguments, self._environments)
            if answer.deviation[0]:
                self.look_at(answer.deviation)

    def about(self, arguments: Batch, form: bytes) -> tuple[bytes, State]:
        """Return what the answer depends on besides rows and weights, and the layer's state.

        Raises
        ------
        Bypass
            The layer must run itself.
        """
        backend, fingerprint = self.backend, self.fingerprint
        if self._adapted:
            form += self._adapted
        if arguments.tensors:
            reason = backend.unfit_inputs(arguments.tensors)
            if reason is not None:
                raise Bypass(reason)
        try:
            state = fingerprint.check()
        except errors.Error as error:
            self.core.error(type(error).__name__)
            raise Bypass(f"a weight has no key: {error}") from None
        except Exception as error:  # anything that attributes of other people's classes may raise
            raise Bypass(f"the layer cannot be read: {type(error).__name__}: {error}") from error
        if state.strict:
            self._settle(state)
        reason = backend.unfit_layer()
        if reason is not None:
            raise Bypass(reason)
        example = arguments.tensors[0] if arguments.tensors else None
        known = (state.structure, backend.environment(example, self._portable), form)
        if known == self._known:
            return self._about, state
        about = self._abouts.get(known)
        if about is None:
            about = self._describe(*known)
        self._about, self._known = about, known
        return about, state

    def traced(self, form: bytes, environment: tuple[object, ...]) -> bytes:
        """Return what about() does for a call in a graph, of the layer as it is while traced.

        Raises
        ------
        Bypass
            The graph is to run the layer itself.
        """
        try:
            structure = self.fingerprint.structure()
        except Exception as error:  # anything that attributes of other people's classes may raise
            raise Bypass(f"the layer cannot be read: {type(error).__name__}: {error}") from error
        known = (structure, environment, form + self._adapted)
        return self._abouts.get(known) or self._describe(*known)

    def _describe(self, structure: bytes, environment: tuple[object, ...], form: bytes) -> bytes:
        about = self._digest(structure, environment, form)
        if len(self._abouts) >= _MAX_ABOUTS:
            self._abouts.clear()
        self._abouts[structure, environment, form] = about
        self.history.describe(about, structure, environment, form)
        for text in self.fingerprint.assumptions():
            self.assume(text)
        return about

    def _digest(self, structure: bytes, environment: tuple[object, ...], form: bytes) -> bytes:
        return _core.blake3(plain((*self._before, environment, *self._after, structure, form)))

    def _settle(self, state: State) -> None:
        """Deal with rows computed since the last strict check."""
        if state.changed:
            self.core.drop_pending()
        else:
            self.core.confirm()

    def settle(self) -> None:
        """Look at all weights now, and store the rows that waited for it."""
        if self.fingerprint.settle():
            self.core.confirm()
        else:
            self.core.drop_pending()

    def look_at(self, deviation: tuple[int, float, str]) -> None:
        """Deal with hits that are not what the layer computes now."""
        rows, largest, where = deviation
        self.fingerprint.demand()
        action = self.options.on_error
        if action == "count" and self.options.by == "structure":
            action = "warn"
        text = (
            f"[CachedLayer] verify: {rows} hits of this call differ from what the layer computes "
            f"now, by up to {largest:.3g}{f' in {where}' if where else ''}: the layer depends on "
            "something that its fingerprint does not see; name it by scope= or state="
        )
        if action == "raise":
            raise errors.CorruptEntry(text)
        if action == "warn":
            warnings.warn(text, RuntimeWarning, stacklevel=5)
        if action == "drop":
            self.core.clear()

    def _look_elsewhere(
        self, arguments: Batch, environments: dict[tuple[bytes, bytes], Environments]
    ) -> None:
        """See whether the rows of a call that ran some are stored from another environment."""
        self._looks += 1
        if self._portable or not arguments.tensors or self.whole:
            return
        weights = self._last[1]
        structure, environment, form = self._known
        known = environments.get((structure, form))
        if known is None:
            about = (*self._before, *self._after, structure, form)
            known = environments[structure, form] = Environments(self.cache, about)
        members, paths = self.members(arguments), arguments.paths

        def is_there(other: tuple[object, ...]) -> bool:
            there = self._digest(structure, other, form)
            missing = self.core.missing(members, paths, None, there, weights, self.options.secret)
            return len(missing) < arguments.rows

        known.look(environment, is_there)
        known.note(environment)

    def assume(self, text: str) -> None:
        """Name in stats what answers rest on."""
        self._assumptions[text] = None

    # The rest.

    def missing(self, ids: Sequence[Id]) -> list[int]:
        """Return positions of ids whose rows would have to be run."""
        about, state = self.about(Nothing(), b"")
        return list(self.core.missing([], [], ids, about, state.weights, self.options.secret))

    def describe(self) -> list[str]:
        """Return what answers are known to depend on besides the rows, in words."""
        told = [f"method {self._before[3]}, rows={self._before[4]!r}"]
        if self.fingerprint.mode == "manual":
            return [*told, "the scope, by the caller's word"]
        reading = self.fingerprint.reading()
        size = sum(int(getattr(tensor, "nbytes", 0)) for tensor in reading.tensors)
        told.append(f"{len(reading.tensors)} tensors of weights and buffers, {format_bytes(size)}")
        classes = sorted({type(module).__qualname__ for module in reading.modules})
        shown = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
        told.append(f"code and attributes of {len(reading.modules)} modules: {shown}")
        if self._after[0]:
            told.append(f"scope {self._after[0]!r}")
        environments = {environment for _, environment, _ in self._abouts}
        told += [f"environment {', '.join(map(str, one))}" for one in sorted(environments, key=str)]
        return told

    def clear(self) -> None:
        """Drop this layer's entries; the counters stay."""
        if self.options.cache is None and self.options.disk is None:
            self.cache.clear()  # a directory has entries of others
        self.core.clear()

    def reset_stats(self) -> None:
        """Set the counters to zero, those of a cache of its own too."""
        self.core.reset()
        self.trim_runs = 0
        self._padding = PaddingWatch()
        if self.options.cache is None:
            self.cache.reset_stats()

    def stats(self) -> LayerStats:
        """Return a snapshot."""
        counts: dict[str, Any] = self.core.stats()
        counts["probe_runs"] += self.trim_runs
        if self._padding.rows:
            counts["hints"].append(HINT)
        for known in (self._environments or {}).values():
            counts["hints"] += [known.hint] if known.hint else []
        return LayerStats(
            **counts,
            codec=self.options.codec,
            fingerprint=self.fingerprint.mode,
            strict_interval=self.fingerprint.interval,
            assumptions=list(self._assumptions),
            cache=self.cache.stats,
        )
