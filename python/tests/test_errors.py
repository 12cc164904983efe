"""Each code of the core is one class, which is also the built-in exception one would expect."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import tensorkey as tk
from tensorkey import errors


def corrupt(folder: Path) -> None:
    (folder / "pack").write_text("no pack " * 20)
    tk.ActivationCache(pack=folder / "pack")


def unavailable(folder: Path) -> None:
    (folder / "foreign").write_text("")
    tk.ActivationCache(disk=folder)


def no_file(folder: Path) -> None:
    tk.ActivationCache("1 MiB").pack(folder / "missing" / "pack")


def full(folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root, and to be allowed to mount")
    try:
        cache = tk.ActivationCache("8 MiB")
        cache.put(tk.key(np.ones(1)), np.zeros(1 << 18))
        cache.pack(folder / "pack")
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("error_class", "built_in", "failing"),
    [
        (errors.InvalidArgument, ValueError, lambda _: tk.key(np.ones(1), secret=b"short")),
        (errors.Unsupported, TypeError, lambda _: tk.key("text")),
        (errors.MissingKey, KeyError, lambda _: tk.TensorKeyDict()[np.ones(1)]),
        (errors.CorruptEntry, RuntimeError, corrupt),
        (errors.StoreUnavailable, ConnectionError, unavailable),
        (errors.StoreFull, OSError, full),
        (errors.StoreIOError, OSError, no_file),
    ],
)
def test_table(error_class, built_in, failing, tmp_path):
    with pytest.raises(error_class) as caught:
        failing(tmp_path)
    assert isinstance(caught.value, built_in)
    assert isinstance(caught.value, errors.Error)
    assert str(caught.value).startswith("[")


def test_every_class_is_named():
    assert set(errors.__all__) == {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.Error)
    }
    # The one that no call is meant to bring about.
    assert issubclass(errors.InternalError, RuntimeError)


@pytest.mark.parametrize("key", ["text", [1.0], object()])
def test_a_key_that_is_no_tensor_leads_to_the_page(key):
    page = Path(__file__).parents[2] / "docs" / "unhashable.md"
    with pytest.raises(TypeError, match="docs/unhashable.md"):
        tk.TensorKeyDict()[key] = 1
    assert page.exists()
