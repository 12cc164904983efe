"""Sizes in bytes, as people write them: ``"2 GiB"``, ``"500MB"``, ``1 << 30``.

The bottom module of the frontends: it imports no sibling but ``errors``.
"""

from __future__ import annotations

import re

from tensorkey import errors

_UNITS = {"": 1, "b": 1} | {
    prefix + infix + "b": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for infix, base in (("i", 1024), ("", 1000))
}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.ASCII)


def parse_bytes(size: int | str) -> int:
    """Read a size in bytes.

    Parameters
    ----------
    size
        A positive int, or a number with a unit: B, KB, MB, GB, TB (powers of 1000) or KiB, MiB,
        GiB, TiB (powers of 1024), in either case, with or without a space.

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For anything else: bool, float, NaN, zero, negative numbers, unknown units.

    Examples
    --------
    >>> parse_bytes("2 GiB"), parse_bytes("1.5kb"), parse_bytes(4096)
    (2147483648, 1500, 4096)
    """
    if type(size) is int:
        if size > 0:
            return size
    elif isinstance(size, str):
        match = _PATTERN.fullmatch(size.lower())
        if match and match[2] in _UNITS:
            number = float(match[1]) if "." in match[1] else int(match[1])
            value = int(number * _UNITS[match[2]])
            if value > 0:
                return value
    raise errors.InvalidArgument(
        f"[parse_bytes] {size!r} is no size; expected a positive int or a text such as '2 GiB'"
    )


def format_bytes(size: int) -> str:
    """Write a size for people, in powers of 1024.

    Examples
    --------
    >>> format_bytes(0), format_bytes(1536), format_bytes(2 << 30)
    ('0 B', '1.5 KiB', '2.0 GiB')
    """
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"
