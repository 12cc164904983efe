"""``trim=``: rows keyed and run by their unpadded part, whatever batch they came in.

A row's length is that of its mask up to the last entry that is not zero. Rows are grouped by
canonical length, the next of 16, 32, 48, 64, 96, 128, 192, 256, ...; each group is one call of the
engine on tensors that are cut or padded to it, everything behind a row's own length zero. So a text
has one key and runs in chunks of one shape, also if its batch is padded to another length.

What a hit returns is, bit for bit, what the layer computed for this row at its canonical length.
Padded positions of outputs by token come back as zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tensorkey._backend import Bypass
from tensorkey._inputs import Arguments
from tensorkey._layer_runner import Runner

if TYPE_CHECKING:
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


class Trimmed:
    """One call, its rows in groups of one canonical length."""

    def __init__(self, engine: Engine, arguments: Arguments) -> None:
        assert engine.options.trim is not None
        name, self.dim = engine.options.trim
        self._engine, self._arguments = engine, arguments
        if name not in arguments.paths:
            raise Bypass(f"trim: no tensor with rows is given as {name!r}")
        mask = arguments.tensors[arguments.paths.index(name)]
        if len(mask.shape) <= self.dim:
            raise Bypass(f"trim: the mask {name!r} has no dim {self.dim}")
        self.full = int(mask.shape[self.dim])
        self.lengths: list[int] = engine.backend.lengths(mask, self.dim)

    def groups(self) -> Iterator[tuple[int, list[int]]]:
        """Yield canonical lengths and the positions of their rows."""
        by_length: dict[int, list[int]] = {}
        for position, length in enumerate(self.lengths):
            by_length.setdefault(canonical(length), []).append(position)
        yield from sorted(by_length.items())

    def part(self, to: int, positions: list[int]) -> Arguments:
        """Return the arguments of some rows, cut or padded to a length."""
        backend, dim = self._engine.backend, self.dim
        lengths = [self.lengths[i] for i in positions]
        tensors = []
        for tensor in self._arguments.tensors:
            if len(tensor.shape) > dim and int(tensor.shape[dim]) == self.full:
                tensors.append(backend.trimmed(tensor, positions, lengths, dim, to))
            else:
                tensors += backend.take([tensor], positions)
        return self._arguments.replaced(tensors, len(positions))

    def by_token(self, to: int) -> list[bool]:
        """Return for each leaf whether it has a length: run one row at two lengths, and see."""
        shapes = []
        for length in (to, canonical(to + 1)):
            runner = Runner(self._engine, self.part(length, [0]))
            leaves, paths, _, _ = runner.run([0])
            shapes.append([tuple(leaf.shape) for leaf in leaves])
            follows = length, paths
        found = []
        for one, other, path in zip(*shapes, follows[1], strict=True):
            if one == other:
                found.append(False)
                continue
            lengths = [shape[self.dim] if len(shape) > self.dim else -1 for shape in (one, other)]
            if lengths != [to, follows[0]]:
                raise Bypass(
                    f"trim: output {path or 'leaf'} is {one} for {to} tokens and {other} for "
                    f"{follows[0]}: neither by token along dim {self.dim} nor free of it"
                )
            found.append(True)
        return found

    def call(self, start: float) -> Any:
        """Answer the call."""
        engine, backend = self._engine, self._engine.backend
        engine.assume(NOTE)
        gathered: list[Any] = []
        for to, positions in self.groups():
            part = self.part(to, positions)
            answer = engine.ask(part, None, Runner(engine, part), part.form)
            form = engine.form_of(answer)
            tokens = engine.by_token(form, lambda to=to: self.by_token(to))
            for i, (memory, leaf) in enumerate(zip(answer.memories, answer.leaves, strict=True)):
                dtype, shape, by_row = leaf
                if len(gathered) <= i:
                    wanted = (len(self.lengths), *shape[1:]) if by_row else shape
                    if tokens[i]:
                        wanted = (*wanted[: self.dim], self.full, *wanted[self.dim + 1 :])
                    gathered.append(backend.zeros(dtype, wanted) if by_row else memory)
                if by_row:
                    lengths = [self.lengths[p] for p in positions] if tokens[i] else None
                    backend.scatter(gathered[i], positions, memory, self.dim, lengths)
            engine.done(answer, part, start)
        return engine.together(form, answer, gathered, self._arguments)
