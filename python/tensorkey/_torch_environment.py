"""What else the bits of an answer of PyTorch depend on, besides weights and inputs."""

from __future__ import annotations

import functools
import platform
import re
from typing import Any

import torch

_C: Any = torch._C
_MHA: Any = torch.backends.mha
_num_threads = torch.get_num_threads
_default_dtype = torch.get_default_dtype
_is_autocast: Any = torch.is_autocast_enabled
_autocast_dtype: Any = torch.get_autocast_dtype
_is_deterministic: Any = _C._get_deterministic_algorithms
_fp32: Any = _C._get_fp32_precision_getter
_mkldnn: Any = _C._get_mkldnn_enabled
_nnpack: Any = _C._get_nnpack_enabled
_flash: Any = _C._get_flash_sdp_enabled
_math: Any = _C._get_math_sdp_enabled

_VERSION = re.match(r"[0-9]+\.[0-9]+\.[0-9]+", torch.__version__)
_BASE = _VERSION[0] if _VERSION else str(torch.__version__)
_CPU = torch.device("cpu")
_MACHINE = platform.machine()
_PRECISE = {"none": "ieee"}  # the same to the kernels of a CPU: switched back is as never switched
_SMALLEST = 5e-324
_one = 1.0  # a variable: a product of constants is computed by the compiler, once


def environment(tensor: torch.Tensor, portable: bool = False) -> tuple[object, ...]:
    """Return what the bits of an answer depend on, as plain values.

    For a tensor on the CPU, and how a C++ program gets the same:

    ==  =====  ======================================  ============================================
    i   type   value                                   C++
    ==  =====  ======================================  ============================================
    0   str    "2.13.0": no suffix of the build        TORCH_VERSION_MAJOR, _MINOR, _PATCH
    1   str    "eager"                                 the same word
    2   str    "cpu"                                   the same word
    3   str    "x86_64", "aarch64"                     machine of uname(2)
    4   str    "AVX512", "AVX2", "DEFAULT", ...        at::get_cpu_capability()
    5   str    model of the CPU                        see cpu_model()
    6   int    threads                                 at::get_num_threads()
    7   str    oneDNN: "ieee", "tf32", "bf16"          float32Precision(MKLDNN, MATMUL); NONE is
               for matmul                              "ieee"
    8   str    for convolutions                        float32Precision(MKLDNN, CONV)
    9   str    for LSTM and the like                   float32Precision(MKLDNN, RNN)
    10  bool   deterministic algorithms only           deterministicAlgorithms()
    11  str    "torch.bfloat16" under autocast, or ""  at::autocast::is_autocast_enabled(at::kCPU),
                                                       get_autocast_dtype(at::kCPU)
    12  str    default dtype: "torch.float32"          c10::get_default_dtype_as_scalartype()
    13  bool   oneDNN                                  userEnabledMkldnn()
    14  bool   NNPACK                                  userEnabledNNPACK()
    15  bool   flash attention                         userEnabledFlashSDP()
    16  bool   plain attention                         userEnabledMathSDP()
    17  bool   fused encoder layers                    true: a flag of the Python package alone
    18  bool   denormals are flushed to zero           5e-324 times 1.0 is 0, in this thread
    ==  =====  ======================================  ============================================

    The functions of ATen without a namespace are at::globalContext()'s.

    Parameters
    ----------
    tensor
        An input: its device counts, nothing else is asked of it.
    portable
        Leave out the capability and the model of the CPU and the number of threads: "", "" and 0.
        Answers are then equal to rounding, not to the bit.

    Examples
    --------
    >>> environment(torch.ones(1), portable=True)[4:7]
    ('', '', 0)
    """
    global _last
    device = tensor.device
    if device != _CPU and device.type != "cpu":  # the first alone is quick
        return _accelerator(device, portable)
    now = (0 if portable else _num_threads(), *_switches("cpu", "mkldnn"))
    then, told = _last
    if now == then:  # each call asks
        return told
    told = (
        _BASE,
        "eager",
        "cpu",
        _MACHINE,
        "" if portable else _capability(),
        "" if portable else cpu_model(),
        now[0],
        *_described(now[1:]),
    )
    _last = (now, told)
    return told


_last: tuple[tuple[Any, ...], tuple[object, ...]] = ((), ())


@functools.cache
def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


@functools.cache
def cpu_model() -> str:
    """Return what /proc/cpuinfo calls the first CPU: libraries choose kernels by it.

    The value of the first line "model name"; where there is none (Arm), the values of the first
    "CPU implementer" and "CPU part", joined by a space; "" if the file cannot be read.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return _model_in(file.read())
    except OSError:
        return ""


def _model_in(text: str) -> str:
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        values.setdefault(key.strip(), value.strip())
    names = ("model name",) if "model name" in values else ("CPU implementer", "CPU part")
    return " ".join(values[name] for name in names if name in values)


@functools.cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def _described(switches: tuple[Any, ...]) -> tuple[object, ...]:
    *precisions, deterministic, autocast, dtype = switches[:6]
    precise = (_PRECISE.get(precision, precision) for precision in precisions)
    return (*precise, deterministic, str(autocast or ""), str(dtype), *switches[6:])


def _switches(kind: str, backend: str) -> tuple[Any, ...]:
    return (
        _fp32(backend, "matmul"),
        _fp32(backend, "conv"),
        _fp32(backend, "rnn"),
        _is_deterministic(),
        _autocast_dtype(kind) if _is_autocast(kind) else None,
        _default_dtype(),
        _mkldnn(),
        _nnpack(),
        _flash(),
        _math(),
        _MHA._is_fastpath_enabled,
        _SMALLEST * _one == 0.0,
    )


def _accelerator(device: torch.device, portable: bool) -> tuple[object, ...]:
    kind = device.type
    return (
        _BASE,
        "eager",
        kind,
        _MACHINE,
        f"{torch.version.cuda}",
        _device_name(device.index or 0),
        0 if portable else _num_threads(),
        *_described(_switches(kind, "cuda")),
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        _C._get_mem_efficient_sdp_enabled(),
        _C._get_cudnn_sdp_enabled(),
    )
