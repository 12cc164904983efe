"""``simulate``: replay a trace through our eviction policy and others."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tensorkey import _core
from tensorkey._sizes import parse_bytes


def simulate(
    trace: str | os.PathLike[str], memory: int | str, policies: Sequence[str] | None = None
) -> list[_core.Replay]:
    r"""Replay a trace through eviction policies: what would another bound have kept?

    Parameters
    ----------
    trace
        A file, as ``ActivationCache.trace`` writes it: one request a line, ``key [size [cost]]``
        (docs/eviction.md).
    memory
        Bytes of the cache, or a text such as "2 GiB".
    policies
        "tensorkey" (ours), "lru", "sieve", "s3-fifo", "arc", "w-tinylfu", "gdsf", "never-evict",
        "belady" (the optimum for equal sizes and costs) and some more; None: all of them.

    Returns
    -------
    list of Replay
        One for each policy, with ``hits``, ``requests``, ``hit_ratio``, ``byte_hit_ratio``,
        ``saved_ratio``, ``evictions`` and ``rejections``.

    Raises
    ------
    tensorkey.errors.StoreIOError
        The file cannot be read.
    tensorkey.errors.InvalidArgument
        A line is no request, or a policy does not exist.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> trace = pathlib.Path(tempfile.mkdtemp()) / "trace"
    >>> _ = trace.write_text("a 100\nb 100\na 100\n")
    >>> [replay.hits for replay in simulate(trace, 200, ["tensorkey", "lru"])]
    [1, 1]
    """
    names = _core.simulated_policies() if policies is None else policies
    return _core.replay(os.fspath(trace), parse_bytes(memory), list(names))
