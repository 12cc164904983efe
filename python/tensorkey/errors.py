"""Errors: one class a code of the C++ core, each also the built-in exception one would expect.

A miss is never an error. What a framework or the caller's own function raises passes through
unchanged.

Examples
--------
>>> import tensorkey as tk
>>> try:
...     tk.key("no tensor")
... except TypeError as error:
...     isinstance(error, tk.errors.Unsupported)
True
"""

from tensorkey import _core

__all__ = [
    "CorruptEntry",
    "Error",
    "InternalError",
    "InvalidArgument",
    "MissingKey",
    "StoreFull",
    "StoreIOError",
    "StoreUnavailable",
    "Unsupported",
]


class Error(Exception):
    """Base of all errors of this library."""


class InvalidArgument(Error, ValueError):
    """A value is out of range or of the wrong length."""


class Unsupported(Error, TypeError):
    """A type, dtype, layout or device has no key, or a tensor has no value yet."""


class MissingKey(Error, KeyError):
    """``d[x]`` or ``del d[x]`` with a tensor that is not in the mapping."""

    __str__ = Exception.__str__  # KeyError shows the repr of its argument


class CorruptEntry(Error, RuntimeError):
    """Stored bytes are no whole entry, or not one that a holder of the secret wrote."""


class StoreIOError(Error, OSError):
    """A file or device refuses."""


class StoreUnavailable(Error, ConnectionError):
    """A directory or a pack is refused, gone, or locked by somebody else."""


class StoreFull(Error, OSError):
    """A disk or a bound is full."""


class InternalError(Error, RuntimeError):
    """An invariant of the library is broken: please report it."""


_core.register_error("invalid_argument", InvalidArgument)
_core.register_error("unsupported", Unsupported)
_core.register_error("not_found", MissingKey)
_core.register_error("corruption", CorruptEntry)
_core.register_error("io", StoreIOError)
_core.register_error("internal", InternalError)
_core.register_error("unavailable", StoreUnavailable)
_core.register_error("exhausted", StoreFull)
