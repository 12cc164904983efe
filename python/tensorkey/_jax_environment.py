"""What else the bits of an answer of JAX depend on, besides weights and inputs."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Any

import jax
import jaxlib.version

from tensorkey import _core

NAMES = (
    *("JAX", "jaxlib", "mode", "device", "platform version", "machine", "CPU model"),
    *("CPU capability", "threads", "XLA_FLAGS", "matmul precision", "x64", "promotion"),
    *("random bits", "partitionable random bits", "jit disabled", "optimization"),
)
"""Of the entries of environment(), for people."""


def environment(tensor: Any = None, portable: bool = False) -> tuple[object, ...]:
    """Return what the bits of an answer depend on, as plain values.

    The execution mode is "jit" for all calls: chunks run compiled, eager calls too.

    Parameters
    ----------
    tensor
        An input: its device counts, nothing else is asked of it. One without a device, as while a
        function is traced, and none at all stand for JAX's default.
    portable
        Leave out the capability and the model of the CPU and the number of threads.

    Examples
    --------
    >>> environment(portable=True)[2]
    'jit'
    """
    global _last
    config: Any = jax.config
    now = (
        device_of(tensor),
        portable,
        config.jax_default_matmul_precision,
        config.jax_enable_x64,
        str(getattr(config.jax_numpy_dtype_promotion, "value", config.jax_numpy_dtype_promotion)),
        str(config.jax_default_prng_impl),
        config.jax_threefry_partitionable,
        config.jax_disable_jit,
    )
    then, told = _last
    if now == then:  # each call asks
        return told
    device, _, precision, *switches = now
    told = (
        jax.__version__,
        jaxlib.version.__version__,
        "jit",
        device.device_kind,
        "" if device.platform == "cpu" else str(device.client.platform_version),
        platform.machine(),
        *(("", "", 0) if portable else _machine()),
        *_flags(),
        str(precision or ""),
        *switches,
        _optimization(),
    )
    _last = (now, told)
    return told


_last: tuple[tuple[Any, ...], tuple[object, ...]] = ((), ())


def device_of(tensor: Any) -> Any:
    """Return where a program with this argument runs: JAX's default, if nothing commits it."""
    traced = isinstance(tensor, jax.core.Tracer)
    if isinstance(tensor, jax.Array) and not traced and tensor.committed:
        return next(iter(tensor.devices()))
    config: Any = jax.config
    default = config.jax_default_device
    if default is None:
        return jax.local_devices()[0]
    return jax.local_devices(backend=default)[0] if isinstance(default, str) else default


@functools.cache
def _machine() -> tuple[str, str, int]:
    """Return the CPU's model, a digest of all that it can do, and the CPUs that we may use."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    wanted = ("flags", "Features", "CPU part")
    able = "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    model = next((line for line in lines if line.startswith("model name")), "").partition(":")[2]
    # The pool of threads was made of these, when the first array was.
    threads = int(os.environ.get("NPROC", "0") or 0) or len(os.sched_getaffinity(0))
    return model.strip(), _core.blake3(able.encode()).hex()[:16], threads


@functools.cache
def _flags() -> tuple[str]:
    """Return the flags of the compiler, which it reads once."""
    return (os.environ.get("XLA_FLAGS", ""),)


def _optimization() -> tuple[object, ...]:
    config: Any = jax.config
    return (
        str(getattr(config, "jax_optimization_level", "")),
        getattr(config, "jax_exec_time_optimization_effort", 0.0),
        bool(getattr(config, "jax_disable_most_optimizations", False)),
    )
