"""Arguments bound to the names of parameters, once for each way of spelling a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tensorkey._backend import Bypass
from tensorkey._encoding import PLAIN
from tensorkey._paths import quoted

_ANY = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)


def signature_of(method: Callable[..., Any]) -> tuple[inspect.Signature, bool]:
    """Return a signature, and whether it is that of a function under a decorator."""
    try:
        signature = inspect.signature(method)
        return signature, signature != inspect.signature(method, follow_wrapped=False)
    except (TypeError, ValueError):
        return _ANY, False


class Binding:
    """Which parameter takes which argument: positions and keywords in parameter order.

    Parameters
    ----------
    signature
        Of the function.
    count
        The number of positional arguments.
    keywords
        The names of the others, in the order of the call.

    Raises
    ------
    tensorkey._backend.Bypass
        If such a call does not fit, or would have two arguments of one name.
    """

    def __init__(self, signature: inspect.Signature, count: int, keywords: tuple[str, ...]) -> None:
        markers: dict[str, int | str] = {key: key for key in keywords}
        try:
            bound = signature.bind(*range(count), **markers)
        except TypeError as error:
            raise Bypass(f"the arguments do not fit the layer: {error}") from None
        self.declared: list[tuple[str, int | str, bytes | None]] = []
        self.positional: list[tuple[str, int]] = []
        self.named: list[tuple[str, str, str]] = []
        for key, marker in bound.arguments.items():
            parameter = signature.parameters[key]
            if parameter.kind is parameter.VAR_POSITIONAL:
                self.positional = [(f"{key}[{i}]", at) for i, at in enumerate(marker)]
            elif parameter.kind is parameter.VAR_KEYWORD:
                self.named = [(own, _root(own), own) for own in marker]
            else:
                encode = PLAIN.get(type(parameter.default))
                default = encode(parameter.default) if encode is not None else None
                self.declared.append((key, marker, default))
        names = [key for key, *_ in self.declared] + [key for key, *_ in self.named]
        names += [path[: path.index("[")] for path, _ in self.positional[:1]]
        twice = {key for key in names if names.count(key) > 1}
        if twice:
            raise Bypass(f"two arguments are called {min(twice)}")
        self.places: list[int | str] = [at for _, at, _ in self.declared]
        self.places += [at for _, at in self.positional]
        self.places += [key for *_, key in self.named]


def _root(name: str) -> str:
    return name if name.isidentifier() else f"[{quoted(name)}]"
