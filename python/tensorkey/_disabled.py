"""``disabled()``: run all cached layers without their caches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tensorkey import _core


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Run all cached layers and methods without their caches while the block is open.

    In the whole process, not in this thread alone: a layer may be called by threads that whoever
    looks for a bug has no hand in, such as those of a server or of a data loader. Blocks nest, and
    may be open in several threads; caches answer again when the last one is closed. Entries stay.
    The calls are counted in ``stats.bypasses``.

    The environment variable ``TENSORKEY_DISABLE=1`` does the same for a whole process. It is read
    once, when the first cached layer or method is called; empty and "0" leave the caches on. An
    ``ActivationCache`` that you use yourself is not switched off.

    Examples
    --------
    >>> import tensorkey as tk
    >>> with tk.disabled():
    ...     pass  # every CachedLayer runs its layer
    """
    switch = _core.Switch()
    switch.open()
    try:
        yield
    finally:
        switch.close()
