"""Random states that a layer may draw from: of Python, of NumPy if it is loaded, of a framework."""

from __future__ import annotations

import random
import sys
from typing import Any, Protocol

from tensorkey._encoding import plain


class Generators(Protocol):
    """The generators of a framework."""

    def random_state(self) -> Any:
        """Return their state: plain values, or a nest of them."""

    def set_random_state(self, state: Any) -> None:
        """Put it back."""


class RandomState:
    """The states at one moment.

    Examples
    --------
    >>> class Nothing:
    ...     def random_state(self): return None
    ...     def set_random_state(self, state): pass
    >>> state = RandomState(Nothing())
    >>> drawn = random.random()
    >>> RandomState(Nothing()).encoded == state.encoded
    False
    >>> state.restore()
    >>> random.random() == drawn
    True
    """

    def __init__(self, generators: Generators) -> None:
        self._generators = generators
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy: Any = None if numpy is None else numpy.random.get_state()
        self._framework = generators.random_state()
        legacy: Any = None
        if self._numpy is not None:
            kind, keys, *rest = self._numpy
            legacy = (kind, keys.tobytes(), *map(float, rest))
        self.encoded = plain((self._python, legacy, self._framework))
        """Equal bytes for equal states."""

    def restore(self) -> None:
        """Go on drawing from here."""
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        self._generators.set_random_state(self._framework)
