"""Paths: where in a nest a tensor is, ``images["left"][0].pixels``.

A path begins with the name of a parameter or of a field, then come ``[i]`` in a list or tuple,
``["k"]`` in a dict and ``.name`` for a field. No two places of one nest have the same path.
"""

from __future__ import annotations

import json
from typing import Any

_SHOWN = frozenset({int, float, complex, bool, type(None), bytes})


def quoted(key: str) -> str:
    r"""Return a str as JSON writes it, in UTF-8 where that can say it.

    Examples
    --------
    >>> print(quoted('ä"'))
    "ä\""
    """
    plainly = json.dumps(key, ensure_ascii=False)
    try:
        plainly.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return json.dumps(key)
    return plainly


def at_key(path: str, key: Any, position: int) -> str:
    """Return the path of what a dict has under a key, the `position`-th of it.

    Examples
    --------
    >>> at_key("batch", "ids", 0), at_key("batch", 7, 1), at_key("batch", (0, 1), 2)
    ('batch["ids"]', 'batch[7]', 'batch[#2]')
    """
    kind = type(key)
    if kind is str:
        return f"{path}[{quoted(key)}]"
    if kind in _SHOWN:
        return f"{path}[{key!r}]"
    return f"{path}[#{position}]"
