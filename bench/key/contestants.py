"""Ways to make a key of a tensor that people use today. Each takes a torch tensor on the CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import joblib
import torch
import xxhash
from blake3 import blake3
from dask.base import tokenize
from datasets.fingerprint import Hasher
from torch import Tensor

import tensorkey as tk

CONTESTANTS: dict[str, Callable[[Tensor], object]] = {
    "tensorkey.key": tk.key,
    "tuple of floats": lambda x: tuple(x.numpy().flatten().tolist()),
    "(shape, dtype, bytes)": lambda x: (x.shape, x.dtype, x.numpy().tobytes()),
    "hashlib.sha256 of bytes": lambda x: hashlib.sha256(x.numpy().tobytes()).digest(),
    "hashlib.blake2b of bytes": lambda x: hashlib.blake2b(x.numpy().tobytes()).digest(),
    "blake3 of bytes": lambda x: blake3(x.numpy().tobytes()).digest(),
    "xxhash.xxh3_128 of bytes": lambda x: xxhash.xxh3_128_digest(x.numpy().tobytes()),
    "joblib.hash": joblib.hash,
    "datasets Hasher": Hasher.hash,
    "dask tokenize": tokenize,
}


def flaws(make: Callable[[Tensor], object], x: Tensor) -> str:
    """What is wrong with these keys, measured; empty if nothing."""
    key = make(x)
    changed = x.clone()
    changed.view(-1)[-1] += 1
    found = []
    if make(x.clone()) != key:
        found.append("an equal tensor has another key")
    if make(changed) == key:
        found.append("other elements have the same key")
    forgotten = [
        name
        for name, other in (("shape", x.view(2, -1)), ("dtype", x.view(dtype=torch.int32)))
        if make(other) == key
    ]
    if forgotten:
        found.append("forgets " + " and ".join(forgotten))
    return "; ".join(found)
