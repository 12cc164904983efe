"""Identity keys: what of a tensor changes when it is written to, as far as its framework tells."""

from __future__ import annotations

import sys
from typing import Any

from tensorkey.errors import Unsupported


def token(tensor: Any) -> tuple[Any, ...]:
    """Return what is equal at two times iff nobody wrote to the tensor, as its framework has it.

    Raises Unsupported for what an entry could not follow: no weak reference to it can be made, or
    its framework counts no writes where writing is what it is for.
    """
    kind = type(tensor)
    if kind.__weakrefoffset__ == 0:
        raise Unsupported(
            f"[by='identity'] no weak reference to {kind.__name__} can be made, so its entry would "
            "never end; use by='content'"
        )
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _torch_token(tensor)
    if numpy is not None and isinstance(tensor, numpy.ndarray):
        address = tensor.__array_interface__["data"][0]
        return (address, tensor.shape, tensor.strides, tensor.dtype)
    if _is_variable(tensor):
        raise Unsupported(
            f"[by='identity'] a {kind.__name__} is assigned to without a trace; use by='content'"
        )
    # Plain numbers: tokens are compared where no Python code may run.
    return tuple(getattr(tensor, "shape", ()))


def _torch_token(tensor: Any) -> tuple[Any, ...]:
    if tensor.is_inference():
        raise Unsupported(
            "[by='identity'] a tensor made in inference_mode does not count its writes; use "
            "by='content', or x.clone() outside of inference_mode"
        )
    return (tensor._version, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _is_variable(tensor: Any) -> bool:
    tf, keras = sys.modules.get("tensorflow"), sys.modules.get("keras")
    return (tf is not None and isinstance(tensor, tf.Variable)) or (
        keras is not None and isinstance(tensor, keras.Variable)
    )
