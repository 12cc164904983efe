"""Keys of the caller's own in place of content: file names, dataset indices."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tensorkey import errors
from tensorkey._backend import Bypass
from tensorkey._layer_runner import arguments_of

if TYPE_CHECKING:
    from tensorkey._cached import Cached

Id = str | bytes | int


def checked_ids(ids: Iterable[Any]) -> list[Id]:
    """Return ids as str, bytes and int.

    Raises
    ------
    tensorkey.errors.Unsupported
        For an id of another type; bool is one.

    Examples
    --------
    >>> checked_ids(["a.png", b"b", 3])
    ['a.png', b'b', 3]
    """
    if isinstance(ids, (str, bytes)):
        raise _no_sequence(ids)
    to_list: Any = getattr(ids, "tolist", None)
    try:
        given = list(ids if to_list is None else to_list())
    except TypeError:
        raise _no_sequence(ids) from None
    return [_checked(one, position) for position, one in enumerate(given)]


def _no_sequence(ids: Any) -> errors.Unsupported:
    return errors.Unsupported(
        f"[with_keys] ids is a {type(ids).__name__}; expected a sequence with one id a row"
    )


def _checked(one: Any, position: int) -> Id:
    if isinstance(one, str):
        try:
            one.encode()
        except UnicodeEncodeError:
            raise errors.Unsupported(
                f"[with_keys] id {position} is no Unicode text: {one!r}; use os.fsencode() for "
                "file names"
            ) from None
        return str(one)
    if isinstance(one, bytes):
        return bytes(one)
    # A tensor of bool has an index, bool itself is an int.
    if not isinstance(one, bool) and not str(getattr(one, "dtype", "")).endswith("bool"):
        try:
            return operator.index(one)
        except TypeError:
            pass
    raise errors.Unsupported(
        f"[with_keys] id {position} is a {type(one).__name__}; expected str, bytes or an integer"
    )


class KeyedLayer:
    """A cached layer for one batch whose rows have keys of the caller's own."""

    def __init__(self, layer: Cached, ids: Sequence[Id]) -> None:
        self._layer = layer
        self._ids = ids

    def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
        """Answer the batch.

        Parameters
        ----------
        *inputs, **kwargs
            The arguments of the layer; or one function, which is called with the positions (a list
            of int) of the rows that are missing and returns their inputs: a tuple is arguments by
            position, a mapping arguments by name, anything else one argument.

        Raises
        ------
        tensorkey.errors.InvalidArgument
            Unless there is one key for each row.
        """
        return answer_keyed(self._layer, self._ids, inputs, kwargs)


def answer_keyed(
    layer: Cached, ids: Sequence[Id], inputs: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Answer a batch by keys of the caller's own."""
    start = perf_counter()
    engine = layer._engine
    fetch = inputs[0] if len(inputs) == 1 and not kwargs and is_function(inputs[0]) else None
    reason = layer._reason_to_bypass()
    aside = reason is None and engine.core.aside()  # counts it
    if reason is None and not aside:
        try:
            return engine.call_with_keys(ids, fetch, inputs, kwargs, start)
        except Bypass as bypass:
            reason = str(bypass)
    if fetch is not None:
        inputs, kwargs = arguments_of(fetch(list(range(len(ids)))))
    if aside:
        return layer._run_inner(inputs, kwargs)
    return layer._run_alone(inputs, kwargs, reason or "")


_island: Any = answer_keyed  # torch.compile looks rows up between two graphs
_island._torchdynamo_disable = True
_island._torchdynamo_disable_msg = "rows are looked up by their keys between two graphs"


def is_function(value: Any) -> bool:
    """Whether this is a function that gives inputs, no tensor."""
    return callable(value) and not hasattr(value, "shape")
