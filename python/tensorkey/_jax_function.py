"""The cached function of JAX."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import jax

from tensorkey import errors
from tensorkey._backend import Bypass
from tensorkey._cached import Cached
from tensorkey._frontend import Engine
from tensorkey._jax_environment import device_of, environment
from tensorkey._jax_fingerprint import JaxFingerprint
from tensorkey._jax_programs import Programs, is_inside
from tensorkey._jax_rows import Rows, unfit_inputs
from tensorkey._jax_signature import JaxSignature
from tensorkey._jax_traced import traced_call
from tensorkey._jax_tracing import is_staging, is_tracer, is_tracing
from tensorkey._options import Options
from tensorkey._own_keys import Id, KeyedLayer

_BOUND = (
    "[{}] the parameters are arguments, which keys of your own do not hold; expected a function "
    "that holds them, such as functools.partial(f, params)"
)


class JaxRows(Rows):
    """How the engine runs a function."""

    def __init__(self, function: Callable[..., Any], fingerprint: JaxFingerprint) -> None:
        self.programs = Programs(function, self)
        self._fingerprint = fingerprint

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function, jitted."""
        fingerprint = self._fingerprint
        return self.programs.run(fingerprint.function, fingerprint.given, args, kwargs)

    def seconds_once(self) -> float:
        """Return what the last run of this thread took to compile."""
        return self.programs.seconds_once()

    def unfit_layer(self) -> str | None:
        """Return why the function must run itself: nothing here."""
        return None

    def environment(self, tensor: Any, portable: bool) -> tuple[object, ...]:
        """Return what else the bits depend on."""
        given = self._fingerprint.given
        if given is not None and given.device not in (None, device_of(tensor)):
            raise Bypass("the parameters are committed to another device than the input")
        return _environment(tensor, portable, given is not None and bool(given.arrays))

    unfit_inputs = staticmethod(unfit_inputs)


def _environment(tensor: Any, portable: bool, passed: bool) -> tuple[object, ...]:
    """Return what bits depend on: weights that are arguments are not folded as constants are."""
    version, library, mode, *rest = environment(tensor, portable)
    return (version, library, f"{mode}, weights as arguments" if passed else mode, *rest)


class CachedFunction(Cached):
    """A function that remembers what it returned, row by row; :func:`tensorkey.jax.cached`."""

    __wrapped__: Callable[..., Any]

    def __init__(
        self, function: Callable[..., Any], params_argnums: Sequence[int], options: Options
    ) -> None:
        functools.update_wrapper(self, function, updated=())
        self._options = options
        self._params_argnums = tuple(params_argnums)
        if options.index != "input":
            raise errors.Unsupported(
                f"[cached] index is {options.index!r}; expected 'input': JAX moves inputs to where "
                "they are used"
            )
        self._fingerprint = fingerprint = JaxFingerprint(function, options)
        rows = JaxRows(function, fingerprint)
        self._engine = engine = Engine(rows, fingerprint, options, function, "call")
        self._signature = engine.signature = JaxSignature(
            function, rows, fingerprint, self._params_argnums, whole=engine.whole
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Answer from the cache where possible; run the function for the rest."""
        if is_inside():  # another cached function, which caches for both
            return self.__wrapped__(*args, **kwargs)
        if not is_tracing():
            return self.eagerly(args, kwargs)
        if not is_staging() and not any(map(is_tracer, jax.tree.leaves((args, kwargs)))):
            with jax.ensure_compile_time_eval():
                return self.eagerly(args, kwargs)
        try:
            return traced_call(self, args, kwargs)
        except Bypass as bypass:
            return self._run_alone(args, kwargs, str(bypass))

    def eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call whose arrays all have values."""
        engine = self._engine
        if engine.core.aside():
            return self.__wrapped__(*args, **kwargs)
        start = perf_counter()
        try:
            return engine.call(args, kwargs, start)
        except Bypass as bypass:
            return self._run_alone(args, kwargs, str(bypass))

    def environment_of(self, tensor: Any, passed: bool) -> tuple[object, ...]:
        """Return the environment of a call that is traced; `passed`: some weights are arguments."""
        return _environment(tensor, self._options.environment == "portable", passed)

    def _reason_to_bypass(self) -> str | None:
        return "a transformation of JAX" if is_tracing() else None

    def _run_inner(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.__wrapped__(*args, **kwargs)

    def _alone(self) -> Any:
        """Return the function as a call of it without the cache runs."""
        return self.__wrapped__

    def _twin(self, **options: Any) -> CachedFunction:
        """Return another with other options and a cache of its own."""
        changed = {"cache": None, "disk": None, "disk_limit": None} | options
        kept = dataclasses.replace(self._options, **changed)
        return CachedFunction(self.__wrapped__, self._params_argnums, kept)

    def with_keys(self, ids: Sequence[Id]) -> KeyedLayer:
        """Return the function for one batch under keys of the caller's own, one a row.

        See :meth:`tensorkey._cached.Cached.with_keys`.

        Raises
        ------
        tensorkey.errors.Unsupported
            If the parameters are arguments.
        """
        self._check_bound("with_keys")
        return super().with_keys(ids)

    def missing(self, ids: Sequence[Id]) -> list[int]:
        """Return the positions of ids whose rows would have to be run; of equal ones the first."""
        self._check_bound("missing")
        return super().missing(ids)

    def to_table(self, keys: Sequence[Id]) -> Any:
        """Return the outputs of rows with these keys; see :meth:`with_keys`."""
        self._check_bound("to_table")
        return super().to_table(keys)

    def to_safetensors(self, path: str | os.PathLike[str], keys: Sequence[Id]) -> int:
        """Write the outputs of rows with these keys into a file; see :meth:`with_keys`."""
        self._check_bound("to_safetensors")
        return super().to_safetensors(path, keys)

    def import_entries(self, path: str | os.PathLike[str]) -> int:
        """Take answers that were computed elsewhere; see :meth:`with_keys`."""
        self._check_bound("import_entries")
        return super().import_entries(path)

    def _check_bound(self, where: str) -> None:
        if self._params_argnums:
            raise errors.Unsupported(_BOUND.format(where))

    def __repr__(self) -> str:
        return f"<cached {self.__wrapped__!r}, {self._describe()}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise errors.Unsupported(
            "[cached] a cached function cannot be copied or pickled; call cached() again"
        )
