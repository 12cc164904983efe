"""Rows, answers and random states in PyTorch: what the engine asks, but how a layer is run.

Shared by the PyTorch frontend and by Keras on PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import Parameter

from tensorkey._history import Shape

_cuda: Any = torch.cuda
_EXAMPLES: dict[str, torch.Tensor] = {}  # their new_empty() knows dtype and device, fast


class Rows:
    """Everything that the engine asks of PyTorch, but how the layer is run."""

    name = "torch"
    device: torch.device | None = None
    """Where rows are run, if not where they are."""

    def is_tensor(self, value: Any) -> bool:
        """Whether this is a tensor."""
        return isinstance(value, torch.Tensor)

    def rows(self, tensor: torch.Tensor) -> int | None:
        """Return the first dim; None for rank 0."""
        return tensor.shape[0] if tensor.dim() else None

    def take(self, tensors: Sequence[torch.Tensor], rows: Sequence[int]) -> list[torch.Tensor]:
        """Copy rows into fresh contiguous memory: never views, whose alignment changes bits."""
        indices: dict[torch.device, torch.Tensor] = {}
        taken = []
        for tensor in tensors:
            index = indices.get(tensor.device)
            if index is None:
                index = torch.tensor(rows, dtype=torch.int64, device=tensor.device)
                indices[tensor.device] = index
            taken.append(self._moved(tensor.detach().index_select(0, index).contiguous()))
        return taken

    def copy(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy whole tensors, in the order of their elements."""
        return [self._moved(tensor.detach().clone()) for tensor in tensors]

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.device is None else tensor.to(self.device)

    def lift(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a view with one more dim in front, of size 1."""
        return tensor.detach().unsqueeze(0)

    def finish(self, tensors: Sequence[Any]) -> None:
        """Wait until outputs are computed."""
        for device in {tensor.device for tensor in tensors if tensor.device.type == "cuda"}:
            _cuda.current_stream(device).synchronize()

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor on the host."""
        example = _EXAMPLES.get(dtype)
        if example is None:
            example = torch.empty(0, dtype=getattr(torch, dtype), device="cpu")
            _EXAMPLES[dtype] = example
        return example.new_empty(shape)

    def deliver(
        self,
        memory: torch.Tensor,
        dtype: str,
        shape: tuple[int, ...],
        device: str,
        like: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the tensor on a device: that of `like` or of the layer, if it is not named."""
        if memory.dim() != len(shape):
            memory = memory.reshape(shape)
        if device:
            return memory if device == "cpu" else memory.to(device)
        if like is not None and self.device is None:
            return memory if like.is_cpu else memory.to(like.device)
        return memory.to(self.device or self.home())

    def is_home(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether the answer is to lie on the host."""
        return self.device is None and bool(tensors) and tensors[0].is_cpu

    def home(self) -> torch.device:
        """Return where the layer is."""
        return torch.device("cpu")

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""
        if not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu":
            return 0
        return tensor.numel() * tensor.element_size()

    # For trim=.

    def ends(self, mask: torch.Tensor, dim: int) -> list[int] | None:
        """Return for each row one more than the place of its last entry that is not zero.

        0 for a row that begins with zero: it is padded on the left, or empty. None for a mask of
        zeros and large negative numbers.
        """
        mask = mask.detach()
        if not mask.numel():
            return [0] * mask.shape[0]
        if mask.is_floating_point() and bool((mask < 0).any()):
            return None
        there = (mask.movedim(dim, 1).flatten(2) if mask.dim() > 2 else mask[..., None]) != 0
        there = there.any(2)
        places = torch.arange(1, there.shape[1] + 1, device=mask.device)
        found: list[int] = ((there * places).amax(1) * there[:, 0]).tolist()
        return found

    def picked(self, tensor: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Copy rows, where the tensor is."""
        index = torch.tensor(rows, dtype=torch.int64, device=tensor.device)
        return tensor.detach().index_select(0, index)

    def trimmed(
        self, tensor: torch.Tensor, rows: Sequence[int], lengths: Sequence[int], dim: int, to: int
    ) -> torch.Tensor:
        """Copy rows, cut or padded to a length, zeros behind each row's own."""
        part = self.picked(tensor, rows)
        full = part.shape[dim]
        if full > to:
            part = part.narrow(dim, 0, to)
        elif full < to:
            whole = part.new_zeros((*part.shape[:dim], to, *part.shape[dim + 1 :]))
            whole.narrow(dim, 0, full).copy_(part)
            part = whole
        return part.masked_fill(self._behind(part, lengths, dim), 0).contiguous()

    def scatter(
        self,
        into: torch.Tensor,
        rows: Sequence[int],
        part: torch.Tensor,
        dim: int,
        lengths: Sequence[int] | None,
    ) -> None:
        """Write rows of a part; with lengths, zeros behind each row's own."""
        if lengths is not None:
            width = min(into.shape[dim], part.shape[dim])
            into, part = into.narrow(dim, 0, width), part.narrow(dim, 0, width)
            part = part.masked_fill(self._behind(part, lengths, dim), 0)
        into.index_copy_(0, torch.tensor(rows), part)

    def _behind(self, part: torch.Tensor, lengths: Sequence[int], dim: int) -> torch.Tensor:
        ends = torch.tensor(lengths, device=part.device).unsqueeze(1)
        places = torch.arange(part.shape[dim], device=part.device).unsqueeze(0)
        shape = [1] * part.dim()
        shape[0], shape[dim] = part.shape[0], part.shape[dim]
        return (places >= ends).reshape(shape)

    def zeros(self, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return memory on the host as allocate() does, all zero."""
        return self.allocate(dtype, shape).zero_()

    # For files, hints and explanations.

    environment_names: tuple[str, ...] = (
        *("PyTorch", "mode", "device", "machine", "CPU capability or CUDA", "CPU or GPU model"),
        *("threads", "matmul precision", "convolution precision", "RNN precision"),
        *("deterministic algorithms", "autocast", "default dtype", "oneDNN", "NNPACK"),
        *("flash attention", "plain attention", "fused encoder layers", "denormals flushed"),
    )
    """Of the entries of environment(), for people."""

    def integers(self, tensor: torch.Tensor) -> Any:
        """Return integers on the host as an array; None for other tensors, or without NumPy."""
        if tensor.device.type != "cpu" or tensor.is_floating_point() or tensor.is_complex():
            return None
        try:
            return tensor.detach().numpy()
        except (RuntimeError, TypeError):
            return None

    files = "torch"
    """Whose tensors safetensors reads and writes: NumPy has no bfloat16."""

    def from_numpy(self, array: Any) -> torch.Tensor:
        """Return a copy as a tensor on the host; TypeError for a dtype that is not PyTorch's."""
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C", copy=True))

    def stack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return tensors of one dtype and shape as the rows of one."""
        return torch.stack([*tensors])

    def host_rows(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return a copy of each row, on the host."""
        return [row.clone() for row in tensor.detach().cpu().unbind()]

    def variants(
        self, tensors: Sequence[torch.Tensor], shapes: Iterable[Shape]
    ) -> Iterator[tuple[list[torch.Tensor], str]]:
        """Yield the same rows as they would be with dtypes or lengths that were seen, in words."""
        own = tuple((str(tensor.dtype)[6:], tuple(tensor.shape[1:])) for tensor in tensors)
        for shape in shapes:
            if shape == own or len(shape) != len(own):
                continue
            pairs = zip(tensors, shape, strict=True)
            if [dims for _, dims in shape] == [dims for _, dims in own]:
                names = ", ".join(
                    f"{a[0]} then, {b[0]} now" for a, b in zip(shape, own, strict=True)
                )
                yield (
                    [tensor.detach().to(getattr(torch, name)) for tensor, (name, _) in pairs],
                    f"seen with another dtype: {names}",
                )
            elif all(
                name == mine[0] and len(dims) == len(mine[1]) == 1
                for (name, dims), mine in zip(shape, own, strict=True)
            ):
                then, now = shape[0][1][0], own[0][1][0]
                yield (
                    [_resized(tensor.detach(), dims[0]) for tensor, (_, dims) in pairs],
                    f"seen at another length: {then} then, {now} now; trim= would make it a hit",
                )

    # For the probe.

    def random_state(self) -> tuple[bytes, ...]:
        """Return the states of PyTorch's generators."""
        states = [torch.get_rng_state()]
        if _cuda.is_initialized():
            states += torch.cuda.get_rng_state_all()
        return tuple(bytes(state.tolist()) for state in states)

    def set_random_state(self, state: tuple[bytes, ...]) -> None:
        """Put the states back."""
        first, *devices = (torch.tensor(list(part), dtype=torch.uint8) for part in state)
        torch.set_rng_state(first)
        if devices:
            torch.cuda.set_rng_state_all(devices)

    def save(self, tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Copy what is no Parameter: buffers."""
        return [
            (tensor, tensor.detach().clone())
            for tensor in tensors
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, Parameter)
        ]

    def restore(self, saved: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Write the copies back."""
        with torch.no_grad():
            for tensor, copy in saved:
                tensor.copy_(copy)

    def out_of_memory(self, error: Exception) -> bool:
        """Whether an exception says that memory ran out."""
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _resized(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Cut rows, or continue them with their last value: as padding does."""
    now = tensor.shape[1]
    if now >= length:
        return tensor[:, :length]
    return torch.cat([tensor, tensor[:, -1:].expand(-1, length - now)], 1)
