"""What the engine asks of a framework, and the layer as a probe and a miss run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tensorkey import _core, errors
from tensorkey._fingerprint import Fingerprint
from tensorkey._probe import Gap, Inputs
from tensorkey._reading import Reading


class Bypass(Exception):
    """The call runs without the cache; the text says why."""


class Unsuited(Bypass):
    """So will every other call: the outputs of this layer cannot be cached."""


class Backend(Protocol):
    """What the engine asks of a framework."""

    name: str
    """Of the frontend and what runs below it, such as "keras-tensorflow"."""

    def run(self, inputs: Inputs) -> Any:
        """Run the layer, no gradients recorded."""

    def rows(self, tensor: Any) -> int | None:
        """Return the batch size; None if this is not one plain tensor of rank 1 or more."""

    def take(self, inputs: Inputs, rows: Sequence[int]) -> Inputs:
        """Copy rows into fresh contiguous memory."""

    def assemble(self, batch: _core.MemoBatch, place: Any) -> Any:
        """Return the answer in a fresh tensor at `place`."""

    def place(self, output: Any) -> Any:
        """Return where an output lies: its device."""

    def finish(self, output: Any) -> None:
        """Wait until an output is computed: what a layer costs would show elsewhere otherwise."""

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""

    def gap(self, one: Any, other: Any) -> Gap:
        """Compare outputs row by row, bitwise."""

    def random_state(self) -> Any:
        """Return the framework's random state, comparable by ==."""

    def set_random_state(self, state: Any) -> None:
        """Put the framework's random state back."""

    def save(self, tensors: Sequence[Any]) -> Any:
        """Copy those tensors of a layer that its runs may write to."""

    def restore(self, saved: Any) -> None:
        """Write the copies back."""

    def out_of_memory(self, error: Exception) -> bool:
        """Whether an exception says that memory ran out."""


class CheckedLayer:
    """The layer, its output checked at every run."""

    def __init__(self, backend: Backend, batch: int) -> None:
        self._backend = backend
        self._batch = batch
        self.runs = 0
        self.place: Any = None
        self.take = backend.take
        self.gap = backend.gap
        self.random_state = backend.random_state
        self.set_random_state = backend.set_random_state

    def run(self, inputs: Inputs) -> Any:
        backend = self._backend
        expected = backend.rows(inputs[0]) or 0
        self.runs += 1
        try:
            output = backend.run(inputs)
        except Exception as error:
            if expected > self._batch and backend.out_of_memory(error):
                raise Bypass(
                    f"out of memory in a chunk of {expected} rows; chunk=1 needs less"
                ) from error
            raise
        rows = backend.rows(output)
        if rows is None:
            raise Unsuited(f"its output is no single tensor: {type(output).__name__}")
        if rows != expected:
            raise errors.InvalidArgument(
                f"[CachedLayer] the layer answers {expected} rows with {rows}; expected one output "
                "row for each input row"
            )
        self.place = backend.place(output)
        return output


class LayerState:
    """The layer's own state during a probe."""

    def __init__(self, backend: Backend, fingerprint: Fingerprint, reading: Reading) -> None:
        self._backend = backend
        self._fingerprint = fingerprint
        self._reading = reading
        self._tensors = reading.tensors
        self._saved = backend.save(reading.tensors)
        self._digests: dict[str, bytes] = {}
        self.changes()

    def changes(self) -> list[str]:
        old, new = self._reading, self._fingerprint.read()
        digests = {
            path: _core.change_digest([tensor])
            for path, tensor in zip(new.names, new.tensors, strict=True)
        }
        before = self._digests
        changed = [path for path in digests if digests[path] != before.get(path)]
        changed += [path for path in before if path not in digests]
        if new is not old and new.structure != old.structure:
            changed.append("attributes")
        self._reading, self._digests = new, digests
        return changed

    def restore(self) -> None:
        self._backend.restore(self._saved)
