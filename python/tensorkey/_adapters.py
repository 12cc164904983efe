"""Adapters: objects that are no nest of tensors, as tensors and back.

    outputs=(to_tensors, from_tensors)    given by the user, for the whole output of a layer
    DiagonalGaussianDistribution          of diffusers, by its class, wherever in an output it is

The distribution is kept as its parameters (mean and log-variance), so that samples are drawn anew
from what a hit returns. Nothing is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from tensorkey import errors
from tensorkey._calls import Encoder, NoKey
from tensorkey._encoding import text


class Adapter(Protocol):
    """How the instances of a class are taken apart and put together."""

    def take_apart(self, value: Any) -> dict[str, Any] | None:
        """Return a nest by name; None if the value holds more than that would say."""

    def put_together(self, kind: type, parts: dict[str, Any]) -> Any:
        """Return a new instance."""


class _DiagonalGaussian:
    """Of diffusers: mean, log-variance and what follows from them are made by its constructor."""

    _attributes = frozenset({"parameters", "mean", "logvar", "deterministic", "std", "var"})

    def take_apart(self, value: Any) -> dict[str, Any] | None:
        held = vars(value)
        if held.keys() != self._attributes:
            return None
        return {"parameters": value.parameters, "deterministic": value.deterministic}

    def put_together(self, kind: type, parts: dict[str, Any]) -> Any:
        return kind(**parts)


_SHIPPED: dict[tuple[str, str], Adapter] = {
    ("diffusers", "DiagonalGaussianDistribution"): _DiagonalGaussian(),
}


def adapter_of(kind: type) -> Adapter | None:
    """Return the adapter that is shipped for a class, known by its package and its name."""
    return _SHIPPED.get((kind.__module__.partition(".")[0], kind.__qualname__))


class OutputAdapter:
    """What the user gave as ``outputs=``.

    Parameters
    ----------
    outputs
        Two functions: from what the layer returns to a nest of tensors, and back.

    Raises
    ------
    tensorkey.errors.InvalidArgument
        For anything else.

    Examples
    --------
    >>> adapter = OutputAdapter((lambda text: [text], lambda nest: nest[0]))
    >>> adapter.from_tensors(adapter.to_tensors("a"))
    'a'
    """

    def __init__(self, outputs: Sequence[Callable[[Any], Any]]) -> None:
        if (
            not isinstance(outputs, (tuple, list))
            or len(outputs) != 2
            or not all(map(callable, outputs))
        ):
            raise errors.InvalidArgument(
                "[CachedLayer] outputs is no pair of functions; expected (to_tensors, "
                "from_tensors): from what the layer returns to a nest of tensors, and back"
            )
        self.to_tensors: Callable[[Any], Any] = outputs[0]
        self.from_tensors: Callable[[Any], Any] = outputs[1]

    def about(self) -> tuple[bytes, list[str]]:
        """Encode what makes the tensors that are stored; return what is assumed of it too.

        What is made of them afterwards is no part of what is stored.
        """
        encoder = Encoder()
        try:
            return encoder.encode(self.to_tensors, "outputs[0]"), encoder.assumed
        except NoKey as reason:
            kind: Any = self.to_tensors
            named = f"{kind.__module__}.{getattr(kind, '__qualname__', type(kind).__qualname__)}"
            return text(named), [f"the code of outputs[0]: {reason}"]
