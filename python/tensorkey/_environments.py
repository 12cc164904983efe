"""Environments under which a directory holds rows of a layer: so that a hint can name what differs.

A cache with a directory keeps, beside the rows of a layer, the last environments in which it was
called. Rows that are missing in this one and there in another are told once, with the option that
would share them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensorkey import _core
from tensorkey._cache import ActivationCache
from tensorkey._encoding import plain
from tensorkey._results import decode

_MOST = 16
Environment = tuple[object, ...]


class Environments:
    """Those of one layer: its frontend, method, options, code and form of arguments.

    Parameters
    ----------
    cache
        With a tier below memory.
    about
        Plain values that tell the layer from others, its environment left out.
    """

    def __init__(self, cache: ActivationCache, about: tuple[object, ...]) -> None:
        self._cache = cache
        scope = _core.blake3(plain(("tensorkey environments", 1, *about)))
        self._key = _core.key(b"environments", scope=scope)
        self.hint = ""

    def known(self) -> list[Environment]:
        """Return what is stored; nothing for a record that cannot be read."""
        entry = self._cache.get(self._key)
        if entry is None:
            return []
        try:
            found = decode(_bytes_of(entry[0]), _no_tensor)
        except Exception:  # of any class, as decode() says: whoever wrote it
            return []
        if type(found) is not tuple or not all(type(one) is tuple for one in found):
            return []
        return list(found[-_MOST:])

    def note(self, environment: Environment) -> None:
        """Add an environment to what is stored."""
        known = self.known()
        if environment in known:
            return
        self._cache.remove(self._key)
        self._cache.put(self._key, plain((*known[1 - _MOST :], environment)))

    def look(self, environment: Environment, is_there: Callable[[Environment], bool]) -> None:
        """See whether rows that are missing are there in another environment."""
        for other in reversed(self.known()):
            if other != environment and is_there(other):
                pairs = zip(other, environment, strict=False)
                apart = ", ".join(
                    f"{then!r} then, {now!r} now" for then, now in pairs if then != now
                )
                self.hint = (
                    f"rows that miss here are stored from another environment ({apart}); "
                    "environment='portable' shares them between CPUs and numbers of threads, "
                    "equal to rounding"
                )
                return


def _bytes_of(stored: Any) -> bytes:
    return bytes(memoryview(stored))


def _no_tensor(number: int, note: Any) -> Any:
    raise ValueError("a record of environments holds no tensors")
