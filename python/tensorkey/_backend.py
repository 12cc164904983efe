"""What the engine asks of a framework."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tensorkey import _core
from tensorkey._history import Shape

Bypass = _core.Bypassed
"""The call runs without the cache; the text says why."""
Unsuited = _core.Unsuited
"""So do all calls like it: outputs of this layer cannot be cached."""


class Backend(Protocol):
    """What the engine asks of a framework, and of the layer that runs in it."""

    name: str
    """Of the frontend and what runs below it, such as "keras-tensorflow"."""

    # Inputs and outputs apart, see _inputs.py and _outputs.py.

    def is_tensor(self, value: Any) -> bool:
        """Whether this is a tensor of the framework."""

    def rows(self, tensor: Any) -> int | None:
        """Return the first dim; None for rank 0."""

    # The call.

    def unfit_inputs(self, tensors: Sequence[Any]) -> str | None:
        """Return why a batch of these tensors cannot be looked up."""

    def unfit_layer(self) -> str | None:
        """Return why the layer must run itself, as it is now."""

    def environment(self, tensor: Any, portable: bool) -> tuple[object, ...]:
        """Return what else the bits of an answer depend on, as plain values."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer as in inference, no gradients recorded."""

    def take(self, tensors: Sequence[Any], rows: Sequence[int]) -> list[Any]:
        """Copy rows into fresh contiguous memory: never views, whose alignment changes bits."""

    def copy(self, tensors: Sequence[Any]) -> list[Any]:
        """Copy whole tensors likewise."""

    def lift(self, tensor: Any) -> Any:
        """Return a view with one more dim in front, of size 1."""

    def finish(self, tensors: Sequence[Any]) -> None:
        """Wait until outputs are computed: what a layer costs would show elsewhere otherwise."""

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return memory on the host for an answer: a C-contiguous tensor or writable buffer."""

    def deliver(
        self, memory: Any, dtype: str, shape: tuple[int, ...], device: str, like: Any
    ) -> Any:
        """Make the memory of allocate(), filled, a tensor on a device.

        An empty one is that of the input `like`; of the layer, if that is None.
        """

    def is_home(self, tensors: Sequence[Any]) -> bool:
        """Whether what allocate() gave is what deliver() would make of it, without a device."""

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""

    def out_of_memory(self, error: Exception) -> bool:
        """Whether an exception says that memory ran out."""

    # For trim=: tensors of the framework, but `into` and `part` are memory of allocate().

    def ends(self, mask: Any, dim: int) -> list[int] | None:
        """Return for each row one more than the place of its last entry that is not zero.

        0 for a row that begins with zero: it is padded on the left, or empty. None for a mask of
        zeros and large negative numbers.
        """

    def picked(self, tensor: Any, rows: Sequence[int]) -> Any:
        """Copy rows, where the tensor is."""

    def trimmed(
        self, tensor: Any, rows: Sequence[int], lengths: Sequence[int], dim: int, to: int
    ) -> Any:
        """Copy rows, cut or padded to a length, zeros behind each row's own."""

    def zeros(self, dtype: str, shape: tuple[int, ...]) -> Any:
        """Return memory on the host as allocate() does, all zero."""

    def scatter(
        self, into: Any, rows: Sequence[int], part: Any, dim: int, lengths: Sequence[int] | None
    ) -> None:
        """Write rows of a part; with lengths, zeros behind each row's own."""

    # For files, hints and explanations.

    environment_names: tuple[str, ...]
    """Of the entries of environment(), for people."""
    files: str
    """Whose tensors safetensors reads and writes: "torch" or "tensorflow"."""

    def integers(self, tensor: Any) -> Any:
        """Return integers on the host as an array; None for other tensors."""

    def from_numpy(self, array: Any) -> Any:
        """Return a copy as a tensor on the host; TypeError for a dtype that is not there."""

    def stack(self, tensors: Sequence[Any]) -> Any:
        """Return tensors of one dtype and shape as the rows of one."""

    def host_rows(self, tensor: Any) -> list[Any]:
        """Return a copy of each row, on the host."""

    def variants(
        self, tensors: Sequence[Any], shapes: Iterable[Shape]
    ) -> Iterable[tuple[list[Any], str]]:
        """Yield the same rows as they would be with dtypes or lengths that were seen, in words."""

    # The probe.

    def random_state(self) -> Any:
        """Return the framework's random state: plain values, or a nest of them."""

    def set_random_state(self, state: Any) -> None:
        """Put the framework's random state back."""

    def save(self, tensors: Sequence[Any]) -> Any:
        """Copy those tensors of a layer that its runs may write to."""

    def restore(self, saved: Any) -> None:
        """Write the copies back."""
