"""Arguments of a function of JAX: rows, parameters and the rest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tensorkey import errors
from tensorkey._inputs import Arguments, Signature
from tensorkey._jax_fingerprint import JaxFingerprint
from tensorkey._jax_nest import converted
from tensorkey._jax_parameters import Parameters, Reader


class JaxArguments(Arguments):
    """The arguments of one call beside its parameters, and these."""

    __slots__ = ("given",)

    def __init__(self, taken: Arguments, given: Parameters) -> None:
        super().__init__(taken.rows, taken.tensors, taken._plan, taken._args, taken._kwargs)
        self.given = given

    def replaced(self, tensors: list[Any], rows: int) -> Arguments:
        """Return the same arguments with other tensors in the places of ``tensors``."""
        return JaxArguments(super().replaced(tensors, rows), self.given)


class JaxSignature(Signature):
    """Takes arguments apart, arrays of NumPy made arrays of JAX.

    Parameters
    ----------
    function
        What is cached.
    fingerprint
        Of the function; it is told the parameters of each call.
    params_argnums
        Positions of the parameters.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        framework: Any,
        fingerprint: JaxFingerprint,
        params_argnums: Sequence[int],
        *,
        whole: bool,
    ) -> None:
        signature, places = _divided(function, params_argnums)
        self.reader = Reader(places) if places else None
        super().__init__(_Spelled(signature), framework, whole=whole)
        self._fingerprint = fingerprint

    def take(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool = True
    ) -> Arguments:
        """Take arguments apart.

        Parameters
        ----------
        args, kwargs
            Of the call.
        keep
            Whether the parameters may be kept, to be known again: not while they are traced.

        Raises
        ------
        tensorkey._backend.Bypass
            For what has no key, or no rows.
        """
        reader = self.reader
        if reader is None:
            return super().take(*converted(args, kwargs))
        values, places, args, kwargs = reader.split(args, kwargs)
        given = reader.read(values, places, keep)
        self._fingerprint.given = given
        return JaxArguments(super().take(*converted(args, kwargs)), given)


class _Spelled:
    """Has the signature of another function."""

    def __init__(self, signature: inspect.Signature | None) -> None:
        if signature is not None:
            self.__signature__ = signature

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Take anything."""


def _divided(
    function: Callable[..., Any], params_argnums: Sequence[int]
) -> tuple[inspect.Signature | None, list[tuple[int, str]]]:
    """Return the signature without the parameters, and where these are."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        if params_argnums:
            raise errors.InvalidArgument(
                "[cached] the function shows no signature; expected one, with params_argnums"
            ) from None
        return None, []
    parameters = [*signature.parameters.values()]
    places = []
    for position in params_argnums:
        named = position < len(parameters) and parameters[position].kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        )
        if not named or position < 0:
            raise errors.InvalidArgument(
                f"[cached] params_argnums names argument {position}, which is none of the "
                "function's named ones that may be passed by position"
            )
        places.append((position, parameters[position].name))
    taken = {name for _, name in places}
    rest = [parameter for parameter in parameters if parameter.name not in taken]
    if places:  # a default before what has none, where the parameters stood between
        try:
            signature = signature.replace(parameters=rest)
        except ValueError:
            signature = signature.replace(
                parameters=[p.replace(default=inspect.Parameter.empty) for p in rest]
            )
    return signature, places
