"""What the bits of a result depend on besides inputs and code: versions, devices, switches."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import platform
import sys
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from tensorkey._encoding import plain


def environment(roots: Iterable[str], kinds: Mapping[str, Any]) -> bytes:
    """Encode the environment of the frameworks that a call uses.

    Parameters
    ----------
    roots
        Packages that the function names.
    kinds
        A tensor among the arguments for each class and device.
    """
    tensors: dict[str, list[Any]] = {}
    for tensor in kinds.values():
        root = type(tensor).__module__.partition(".")[0]
        tensors.setdefault("jax" if root == "jaxlib" else root, []).append(tensor)
    used = sorted(set(_READERS) & (set(roots) | set(tensors)))
    found = [(root, *_READERS[root](tensors.get(root, []))) for root in used if _is_loadable(root)]
    return plain((platform.python_version(), tuple(found)))


@functools.cache
def _is_loadable(root: str) -> bool:
    return root in sys.modules or importlib.util.find_spec(root) is not None


def _numpy(tensors: list[Any]) -> tuple[Any, ...]:
    return (importlib.import_module("numpy").__version__,)


def _torch(tensors: list[Any]) -> tuple[Any, ...]:
    torch = importlib.import_module("torch")
    from tensorkey._torch_backend import environment as of

    tensors = tensors or [SimpleNamespace(device=torch.device("cpu"))]
    devices = {str(tensor.device): of(tensor) for tensor in tensors}
    return (str(torch.get_default_device()), tuple(devices[key] for key in sorted(devices)))


def _tensorflow(tensors: list[Any]) -> tuple[Any, ...]:
    from tensorkey._tensorflow_backend import environment as of

    tensors = tensors or [SimpleNamespace(device="")]
    devices = {str(tensor.device): of(tensor) for tensor in tensors}
    return tuple(devices[key] for key in sorted(devices))


def _jax(tensors: list[Any]) -> tuple[Any, ...]:
    jax = importlib.import_module("jax")
    return (
        jax.__version__,
        str(jax.default_backend()),
        str(jax.config.jax_default_device),
        bool(jax.config.jax_enable_x64),
        str(jax.config.jax_default_matmul_precision),
        str(jax.config.jax_numpy_dtype_promotion),
    )


def _keras(tensors: list[Any]) -> tuple[Any, ...]:
    keras = importlib.import_module("keras")
    backend = keras.config.backend()
    rest = () if backend not in _READERS else _READERS[backend]([])
    return (keras.__version__, backend, keras.config.floatx(), *rest)


_READERS = {
    "numpy": _numpy,
    "torch": _torch,
    "tensorflow": _tensorflow,
    "jax": _jax,
    "keras": _keras,
}
