"""PyTorch below a cached layer: guards, environment, rows, random state.

Shared by the PyTorch frontend and by Keras on PyTorch. Some of the guards ask functions of PyTorch
that have no public name; the tests pin what each must detect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx import _symbolic_trace
from torch.nn import Parameter
from torch.utils._device import DeviceContext

from tensorkey import _core
from tensorkey._probe import Gap, Inputs
from tensorkey._torch_environment import environment

__all__ = [
    "Rows",
    "differentiated",
    "environment",
    "inference",
    "recording",
    "transform",
    "unfit_inputs",
    "unfit_layer",
]

_C: Any = torch._C
_functorch: Any = _C._functorch
_any_global_hook: Any = nn.modules.module._has_any_global_hook
_cuda: Any = torch.cuda
_TENSOR_TYPES = (torch.Tensor, Parameter)

# The guard is asked before every call: no attribute of a module is looked up twice.
_is_exporting = torch.compiler.is_exporting
_is_compiling = torch.compiler.is_compiling
_tracing_state: Any = _C._get_tracing_state
_transform_stack: Any = _functorch.peek_interpreter_stack
_dispatch_modes: Any = _C._len_torch_dispatch_stack
_function_modes: Any = _C._len_torch_function_stack
_is_grad_enabled = torch.is_grad_enabled


def transform() -> str | None:
    """Return the transformation of PyTorch that the call is under, if any; in about 0.5 us."""
    if _is_exporting():
        return "torch.export"
    if _is_compiling():
        return "torch.compile"
    if _tracing_state() is not None:
        return "torch.jit.trace"
    if _transform_stack() is not None:
        return "a torch.func transform"
    if _dispatch_modes():
        return "a dispatch mode"
    if _function_modes() and not _only_device_contexts():
        return "a function mode"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if _symbolic_trace._is_fx_tracing_flag:
        return "torch.fx.symbolic_trace"
    return None


def _only_device_contexts() -> bool:
    count = _function_modes()
    return all(isinstance(_C._get_function_stack_at(i), DeviceContext) for i in range(count))


def unfit_inputs(inputs: Sequence[Any]) -> str | None:
    """Return why these inputs have no rows to look up."""
    if not inputs:
        return "no tensor among the inputs"
    rows = -1
    recording = _is_grad_enabled()
    for tensor in inputs:
        if type(tensor) not in _TENSOR_TYPES:
            if isinstance(tensor, torch.Tensor):
                return f"a tensor subclass: {type(tensor).__name__}"
            return f"an input that is no tensor: {type(tensor).__name__}"
        if not (tensor.is_cpu or tensor.is_cuda):
            return f"a tensor on the device {tensor.device.type}"
        if not tensor.dim():
            return "an input of rank 0 has no rows"
        if recording and tensor.requires_grad:
            return "an input requires grad: wrap the call in torch.no_grad() or detach the input"
        if rows < 0:
            rows = tensor.shape[0]
        elif rows != tensor.shape[0]:
            return "inputs with different batch sizes"
    return None if rows else "a batch of 0 rows"


def recording() -> bool:
    """Whether gradients are recorded."""
    return _is_grad_enabled()


def differentiated(inputs: Sequence[torch.Tensor]) -> bool:
    """Whether gradients of these inputs are recorded: unfit_inputs() has said so."""
    return False


def unfit_layer(modules: Sequence[nn.Module]) -> str | None:
    """Return why a layer with these submodules must run: forward hooks."""
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            return "forward hooks inside the layer, which do not run on a hit: remove them"
    if _any_global_hook():
        return "global module hooks"
    return None


inference = torch.no_grad
"""A context in which no gradients are recorded."""


class Rows:
    """Everything that the engine asks of PyTorch, but how the layer is run."""

    name = "torch"

    def rows(self, tensor: Any) -> int | None:
        """Return the batch size; None if this is not one plain tensor of rank 1 or more."""
        if type(tensor) in _TENSOR_TYPES and tensor.dim() and tensor.layout is torch.strided:
            return int(tensor.shape[0])
        return None

    def take(self, inputs: Inputs, rows: Sequence[int]) -> Inputs:
        """Copy rows into fresh contiguous memory: never views, whose alignment changes bits."""
        indices: dict[torch.device, torch.Tensor] = {}
        taken = []
        for tensor in inputs:
            index = indices.get(tensor.device)
            if index is None:
                index = torch.tensor(rows, dtype=torch.int64, device=tensor.device)
                indices[tensor.device] = index
            taken.append(tensor.detach().index_select(0, index).contiguous())
        return type(inputs)(taken)  # type: ignore[call-arg]

    def assemble(self, batch: _core.MemoBatch, place: Any) -> torch.Tensor:
        """Return the answer in a fresh tensor on the device `place`."""
        example = batch.example
        assert example is not None
        dtype, shape = example
        output = torch.empty((batch.rows, *shape), dtype=getattr(torch, dtype), device="cpu")
        batch.assemble(output)
        return output if place.type == "cpu" else output.to(place)

    def place(self, output: torch.Tensor) -> torch.device:
        """Return the device of an output."""
        return output.device

    def finish(self, output: torch.Tensor) -> None:
        """Wait until an output is computed."""
        if output.device.type == "cuda":
            _cuda.current_stream(output.device).synchronize()

    def device_bytes(self, tensor: Any) -> int:
        """Return the bytes that reading a tensor copies from a device; 0 on the CPU."""
        if not isinstance(tensor, torch.Tensor) or tensor.device.type == "cpu":
            return 0
        return tensor.numel() * tensor.element_size()

    def gap(self, one: torch.Tensor, other: torch.Tensor) -> Gap:
        """Compare outputs row by row, bitwise."""
        if one.dtype != other.dtype or one.shape != other.shape:
            return Gap(max(len(one), len(other)), math.inf)
        rows = len(one)
        if not one.numel() or not rows:
            return Gap()
        left, right = (_bytes_of_rows(tensor) for tensor in (one, other))
        differing = int((left != right).any(dim=1).sum())
        if not differing:
            return Gap()
        if one.is_complex():
            one, other = torch.view_as_real(one), torch.view_as_real(other)
        if not one.is_floating_point():
            return Gap(differing, math.inf)
        limit = 64.0 if one.element_size() >= 4 else 4.0
        unit = torch.finfo(one.dtype).eps
        one, other = one.double(), other.double()
        largest = float(torch.nan_to_num(one, posinf=0.0, neginf=0.0).abs().max())
        unequal = ~((one == other) | (one.isnan() & other.isnan()))
        apart = float((one - other)[unequal].abs().max()) if bool(unequal.any()) else 0.0
        if not math.isfinite(apart) or not largest:
            return Gap(differing, math.inf if apart else 0.0, limit)
        return Gap(differing, apart / (unit * 2.0 ** math.floor(math.log2(largest))), limit)

    def random_state(self) -> list[bytes]:
        """Return the states of PyTorch's generators."""
        states = [torch.get_rng_state()]
        if _cuda.is_initialized():
            states += torch.cuda.get_rng_state_all()
        return [bytes(state.tolist()) for state in states]

    def set_random_state(self, state: list[bytes]) -> None:
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


def _bytes_of_rows(tensor: torch.Tensor) -> torch.Tensor:
    rows = tensor.shape[0]
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).reshape(rows, -1)
