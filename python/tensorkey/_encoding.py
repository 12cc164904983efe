"""The canonical encoding: plain values to bytes, one value one text, in every process.

    item  = tag (1 byte) + length of the body (u64, little-endian) + body

    N  None, empty body                  l t  list, tuple: the items in order
    b  bool, one byte                    d    dict: key item, value item, in the dict's order
    i  int, decimal ASCII                s    set or frozenset: the items sorted as bytes
    f  float, 8 bytes, little-endian     E    enum member: class name, member name
    c  complex, two floats               C    code of a function, field by field (``code``)
    S  str, UTF-8                        n    a name that stands for a thing: S item of a kind,
    B  bytes                                  S item of the name

As every item carries its tag and length, no two different values share an encoding: ``1``,
``True`` and ``1.0`` differ, so do ``-0.0`` and ``0.0``, and a NaN equals its own bits.
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import Any


def item(tag: bytes, body: bytes) -> bytes:
    """Return one item of the encoding."""
    return tag + len(body).to_bytes(8, "little") + body


def text(value: str) -> bytes:
    """Encode a str; lone surrogates keep their own bytes."""
    return item(b"S", value.encode("utf-8", "surrogatepass"))


def name(kind: str, value: str) -> bytes:
    """Encode a thing that is known by name: a class, a dtype, a builtin function."""
    return item(b"n", text(kind) + text(value))


def sequence(tag: bytes, items: Iterable[bytes]) -> bytes:
    """Encode items that are encoded already."""
    return item(tag, b"".join(items))


PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda value: item(b"N", b""),
    bool: lambda value: item(b"b", b"\1" if value else b"\0"),
    int: lambda value: item(b"i", b"%d" % value),
    float: lambda value: item(b"f", struct.pack("<d", value)),
    complex: lambda value: item(b"c", struct.pack("<dd", value.real, value.imag)),
    str: text,
    bytes: lambda value: item(b"B", value),
    type(...): lambda value: name("constant", "Ellipsis"),
}
"""Encoders of the plain types, by exact type."""


def plain(value: object) -> bytes:
    """Encode a plain value or a tuple, list or set of such.

    Raises
    ------
    TypeError
        For anything else.

    Examples
    --------
    >>> plain(True) == plain(1), plain((1, "a")) == plain((1, "a"))
    (False, True)
    """
    encode = PLAIN.get(type(value))
    if encode is not None:
        return encode(value)
    if isinstance(value, tuple):
        return sequence(b"t", map(plain, value))
    if isinstance(value, list):
        return sequence(b"l", map(plain, value))
    if isinstance(value, frozenset):
        return sequence(b"s", sorted(map(plain, value)))
    if isinstance(value, CodeType):
        return code(value)
    raise TypeError(f"no canonical encoding for {type(value).__qualname__}")


def code(value: CodeType) -> bytes:
    """Encode what a code object does, and neither its file nor its lines.

    Examples
    --------
    >>> code((lambda x: x + 1).__code__) == code((lambda x: x + 2).__code__)
    False
    """
    return sequence(
        b"C",
        [
            plain((value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)),
            plain((value.co_flags, value.co_code, value.co_exceptiontable)),
            plain(value.co_consts),
            plain(value.co_names),
            plain((value.co_varnames, value.co_freevars, value.co_cellvars)),
        ],
    )


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    """Return which distributions bring which modules; reads the metadata of all."""
    from importlib import metadata

    return metadata.packages_distributions()


@functools.cache
def version_of(module: str) -> str:
    """Return the version of the distribution that a module comes from, or ``""``."""
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names or root == "__main__":
        return ""
    from importlib import metadata  # slow to import

    try:
        return metadata.version(root)
    except metadata.PackageNotFoundError:
        pass
    for distribution in _distributions().get(root, ()):
        return metadata.version(distribution)
    version = getattr(sys.modules.get(root), "__version__", "")
    return version if isinstance(version, str) else ""
