"""Rows, answers and random states in PyTorch: what the engine asks, but how a layer is run.

Shared by the PyTorch frontend and by Keras on PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter

_cuda: Any = torch.cuda
_DTYPES: dict[str, torch.dtype] = {}


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
        kind = _DTYPES.get(dtype)
        if kind is None:
            kind = _DTYPES[dtype] = getattr(torch, dtype)
        return torch.empty(shape, dtype=kind, device="cpu")

    def deliver(
        self, memory: torch.Tensor, dtype: str, shape: tuple[int, ...], device: str
    ) -> torch.Tensor:
        """Return the tensor on its device."""
        return memory if device == "cpu" else memory.to(device)

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""
        if not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu":
            return 0
        return tensor.numel() * tensor.element_size()

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
