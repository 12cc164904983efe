"""``trim=``: rows keyed and run by their unpadded part, whatever batch they came in.

A row's length is that of its mask up to the last entry that is not zero. Rows are grouped by
canonical length, the next of 16, 32, 48, 64, 96, 128, 192, 256, ...; each group is one call of the
engine on tensors that are cut or padded to it, everything behind a row's own length zero. So a text
has one key and runs in chunks of one shape, also if its batch is padded to another length. Every
tensor with rows that has as many entries along the dim as the mask is cut with it.

What a hit returns is, bit for bit, what the layer computed for this row at its canonical length in
a chunk. Against the layer on the whole batch it is equal to rounding, if the layer looks at nothing
behind the mask. Padded positions of outputs by token come back as zeros.

A row whose mask begins with zero (padded on the left, or empty) keeps its place: it is keyed and
run as it is, at the length of its batch. So is a row that the layer takes at no canonical length,
but at that of its batch: one of 70 tokens where 77 are the most.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tensorkey._backend import Bypass
from tensorkey._inputs import Arguments
from tensorkey._layer_runner import Output, Runner

if TYPE_CHECKING:
    from tensorkey import _core
    from tensorkey._frontend import Engine

NOTE = "trim: rows run at canonical lengths, and padded positions of outputs by token are zeros"


def canonical(length: int) -> int:
    """Return the length at which rows of this length run.

    Examples
    --------
    >>> [canonical(n) for n in (0, 1, 16, 17, 33, 49, 65, 97, 129)]
    [16, 16, 16, 32, 48, 64, 96, 128, 192]
    """
    step = 16
    while True:
        for candidate in (step, step + step // 2):
            if candidate >= max(length, 1) and candidate % 16 == 0:
                return candidate
        step *= 2


class _Resized(Runner):
    """Remembers that the layer failed, which it may do for the length alone."""

    refusal: Exception | None = None

    def run(self, positions: list[int]) -> Output:
        """Run the layer on copies of these rows."""
        try:
            return super().run(positions)
        except Bypass:
            raise
        except Exception as error:
            self.refusal = error
            raise Bypass(f"trim: the layer fails at another length: {error}") from error


class Trimmed:
    """One call, its rows in groups of one canonical length.

    Raises
    ------
    tensorkey._backend.Bypass
        For arguments that cannot be cut by the mask.
    """

    def __init__(self, engine: Engine, arguments: Arguments) -> None:
        assert engine.options.trim is not None
        name, self.dim = engine.options.trim
        self._engine, self._arguments = engine, arguments
        backend = engine.backend
        # Of the tensors that the caller gave: parts of them have no gradients and are plain.
        reason = backend.unfit_inputs(arguments.tensors)
        if reason is not None:
            raise Bypass(reason)
        if name not in arguments.paths:
            raise Bypass(f"trim: no tensor with rows is given as {name!r}")
        mask = arguments.tensors[arguments.paths.index(name)]
        if len(mask.shape) <= self.dim:
            raise Bypass(f"trim: the mask {name!r} has no dim {self.dim}")
        self.full = int(mask.shape[self.dim])
        self._check_layout(name)
        ends = backend.ends(mask, self.dim)
        if ends is None:
            raise Bypass(f"trim: the mask {name!r} is one to be added; expected zeros for padding")
        self._kept = [end == 0 for end in ends]
        self.lengths = [end or self.full for end in ends]

    def _check_layout(self, mask: str) -> None:
        beside = 0
        for path, tensor in zip(self._arguments.paths, self._arguments.tensors, strict=True):
            if not self._has_tokens(tensor):
                continue
            shape = tuple(map(int, tensor.shape))
            if self.full in shape[self.dim + 1 :]:
                raise Bypass(f"trim: {path} {shape} may have tokens along more than one dim")
            beside += path != mask
        if not beside:
            raise Bypass(f"trim: nothing but the mask has {self.full} entries along dim {self.dim}")

    def _has_tokens(self, tensor: Any) -> bool:
        return len(tensor.shape) > self.dim and int(tensor.shape[self.dim]) == self.full

    def groups(self) -> list[tuple[int, list[int]]]:
        """Return lengths to run at, ascending, and the positions of their rows."""
        by_length: dict[int, list[int]] = {}
        for position, length in enumerate(self.lengths):
            to = self.full if self._kept[position] else canonical(length)
            if to in self._engine.unfit_lengths:
                to = self.full
            by_length.setdefault(to, []).append(position)
        return sorted(by_length.items())

    def parts(self) -> Iterator[tuple[list[int], Arguments]]:
        """Yield positions of rows and their arguments, as they are looked up."""
        for to, positions in self.groups():
            yield positions, self.part(to, positions)

    def part(self, to: int, positions: list[int]) -> Arguments:
        """Return the arguments of some rows, cut or padded to a length."""
        backend, dim = self._engine.backend, self.dim
        lengths = [self.lengths[i] for i in positions]
        tensors = []
        for tensor in self._arguments.tensors:
            if self._has_tokens(tensor):
                tensors.append(backend.trimmed(tensor, positions, lengths, dim, to))
            else:
                tensors.append(backend.picked(tensor, positions))
        return self._arguments.replaced(tensors, len(positions))

    def call(self, start: float) -> Any:
        """Answer the call, which began at perf_counter() == start."""
        engine = self._engine
        engine.assume(NOTE)
        gathered = _Gathered(self)
        groups = [(to, positions, to) for to, positions in self.groups()]
        while groups:
            to, positions, wanted = groups.pop(0)
            part = self.part(to, positions)
            runner = Runner(engine, part) if to == self.full else _Resized(engine, part)
            try:
                answer = engine.ask(part, None, runner, part.form)
            except Bypass:
                if not isinstance(runner, _Resized) or runner.refusal is None:
                    raise
                groups.insert(0, (self.full, positions, wanted))  # what fails there too, passes
                continue
            if to != wanted:
                engine.unfit_lengths.add(wanted)
            gathered.add(answer, positions, self.by_token(answer, to, part))
            engine.done(answer, part, start)
            start = perf_counter()
        return engine.together(gathered.form, gathered.answer, gathered.memories, self._arguments)

    def by_token(self, answer: _core.LayerAnswer, to: int, part: Arguments) -> list[bool]:
        """Return for each leaf whether it has a length.

        Found out once, by a run of one row at half of it, which counts as one of the probe.
        """
        if to == self.full and all(length == self.full for length in self.lengths):
            return [False] * len(answer.leaves)  # the output as it is
        engine, dim = self._engine, self.dim
        place = (answer.form, part.form)
        known = engine.token_leaves.get(place)
        if known is not None:
            return known
        other = to // 2 or 2
        leaves, paths, _, _ = _Resized(engine, self.part(other, [0])).run([0])
        engine.trim_runs += 1
        found = []
        for (_, long, by_row), leaf, path in zip(answer.leaves, leaves, paths, strict=True):
            short = tuple(map(int, leaf.shape))
            if long[by_row:] == short[by_row:]:
                found.append(False)
                continue
            elsewhere = long[by_row:dim] + long[dim + 1 :] != short[by_row:dim] + short[dim + 1 :]
            if elsewhere or not by_row or (long[dim], short[dim]) != (to, other):
                raise Bypass(
                    f"trim: {path} has the shape {long[by_row:]} for {to} tokens and "
                    f"{short[by_row:]} for {other}: neither by token along dim {dim} nor free of "
                    "them"
                )
            found.append(True)
        engine.token_leaves[place] = found
        return found


class _Gathered:
    """The leaves of the output, as rows come in."""

    form: Any
    answer: Any

    def __init__(self, call: Trimmed) -> None:
        self._call = call
        self.memories: list[Any] = []

    def add(self, answer: _core.LayerAnswer, positions: list[int], tokens: list[bool]) -> None:
        """Take the rows of a group."""
        call = self._call
        backend, dim, lengths = call._engine.backend, call.dim, call.lengths
        form = call._engine.form_of(answer)
        leaves = answer.leaves
        wanted = []
        for (dtype, shape, by_row), by_token in zip(leaves, tokens, strict=True):
            dims = (len(lengths), *shape[1:]) if by_row else shape
            wanted.append((dtype, (*dims[:dim], call.full, *dims[dim + 1 :]) if by_token else dims))
        if not self.memories:
            self.form, self.answer, self._wanted = form, answer, wanted
            self.memories = [
                backend.zeros(*like) if leaf[2] else memory
                for like, leaf, memory in zip(wanted, leaves, answer.memories, strict=True)
            ]
        elif form is not self.form or wanted != self._wanted:
            raise Bypass("trim: its output is another one at another length")
        for into, leaf, memory, by_token in zip(
            self.memories, leaves, answer.memories, tokens, strict=True
        ):
            if leaf[2]:
                own = [lengths[i] for i in positions] if by_token else None
                backend.scatter(into, positions, memory, dim, own)
