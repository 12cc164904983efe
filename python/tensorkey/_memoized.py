"""What ``memoize`` puts in the place of a function: keys of calls, the cache, counters."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import MethodType
from typing import Any

from tensorkey import _core, errors
from tensorkey._cache import ActivationCache
from tensorkey._calls import Encoder, NoKey, gradient_mode, records_gradients, transform
from tensorkey._counts import Counts
from tensorkey._encoding import plain
from tensorkey._environment import environment
from tensorkey._fork import renew_after_fork
from tensorkey._options import Options
from tensorkey._readers import class_name, is_tensor, is_torch_module, read_instance
from tensorkey._reading import Readable
from tensorkey._result_tensors import NoResult, make
from tensorkey._results import DESCRIPTION, Packed, decode
from tensorkey._scope import Scope, digest
from tensorkey._stats import CacheStats, FunctionStats

RUNNING: ContextVar[frozenset[bytes]] = ContextVar("tensorkey_memoize_running", default=frozenset())
"""Keys that are being computed where this is called from."""
DISABLED = "tensorkey.disabled()"
OWN_GRADIENTS = (
    "gradients of the instance are recorded: call requires_grad_(False), or run under "
    "torch.no_grad()"
)
UNREADABLE = "a stored result could not be made again: its class or device is not there"
NESTED = "called for the same arguments by itself"


class Unstored(Exception):
    """A result was computed and must not be stored; the text is the reason."""

    def __init__(self, reason: str, moved: Packed | None = None) -> None:
        super().__init__(reason)
        self.moved = moved
        """The result, if it is to be stored under the key that the call has by now."""


class Settings:
    """The options of ``memoize``."""

    def __init__(
        self,
        tiers: Options,
        ignore: frozenset[str],
        version: object,
        state: Callable[[Any], Iterable[Any]] | None,
    ) -> None:
        self.tiers = tiers
        self.ignore = ignore
        self.version = plain(version)
        self.state = state


class Call:
    """One call, read: the parts of its key by name."""

    def __init__(self, parts: dict[str, bytes], surroundings: bytes) -> None:
        self.parts = parts
        self.key = _core.Key(_core.blake3(digest(parts) + surroundings))


class MemoizedBase(Readable):
    """A function that remembers; the two kinds of calls are in subclasses."""

    __module__: str
    __name__: str
    __qualname__: str

    def __init__(self, function: Callable[..., Any], settings: Settings) -> None:
        wrapper: Any = self
        functools.update_wrapper(wrapper, function)
        self.__wrapped__ = function
        self._settings = settings
        self._counts = Counts()
        self._scope = Scope(function)
        self._cache: ActivationCache | None = settings.tiers.cache
        self._method = settings.state is not None
        self._assumed: dict[str, None] = {}
        about = (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
        self._purge = "tensorkey memoize {}.{}".format(*about)
        try:
            self._signature: inspect.Signature | None = inspect.signature(
                function, follow_wrapped=False
            )
        except (TypeError, ValueError):  # some builtins
            self._signature = None
        self.renew_locks()
        renew_after_fork(self)

    def renew_locks(self) -> None:
        """Forget who held them: for the child of a fork."""
        self._making = threading.Lock()

    # As a method.

    def __set_name__(self, owner: type, name: str) -> None:
        self._method = True

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        wrapper: Any = self
        return self if instance is None else MethodType(wrapper, instance)

    # What is asked of it.

    @property
    def cache(self) -> ActivationCache:
        """The cache: the one that was given, or one of its own, made when it is first needed."""
        if self._cache is None:
            with self._making:
                if self._cache is None:
                    self._cache = self._settings.tiers.make_cache()
        return self._cache

    @property
    def stats(self) -> FunctionStats:
        """A snapshot of the counters."""
        counts = self._counts
        return FunctionStats(
            counts.hits,
            counts.misses,
            counts.seconds_saved,
            dict(counts.bypasses),
            dict(counts.errors),
            list(dict.fromkeys([*self._scope.assumptions, *self._assumed])),
            CacheStats() if self._cache is None else self._cache.stats,
        )

    def cache_clear(self) -> None:
        """Drop the results of this function, on disk too, and set the counters to zero."""
        self.cache.purge(self._purge)
        self._counts.reset()

    def key(self, /, *args: Any, **kwargs: Any) -> _core.Key:
        """Return the key of a call; of a method with the instance as the first argument.

        Raises
        ------
        tensorkey.errors.Unsupported
            The call has none; the message says why.
        """
        try:
            return self._read(args, kwargs).key
        except NoKey as reason:
            raise errors.Unsupported(f"[memoize] {self.__qualname__}: {reason}") from None

    def __repr__(self) -> str:
        return f"<memoized {self.__wrapped__!r}>"

    def __reduce__(self) -> str:
        return self.__qualname__

    # Keys.

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Read a call that may be answered; None for one that has to run, which is counted."""
        reason = DISABLED if _core.is_disabled() else transform()
        if reason is None:
            try:
                call = self._read(args, kwargs)
                if bytes(call.key) not in RUNNING.get():
                    return call
                reason = NESTED
            except NoKey as unread:
                reason = str(unread)
            except Exception as error:  # anything that other people's classes may raise
                reason = f"the call cannot be read: {type(error).__name__}: {error}"
        self._counts.bypass(reason)
        return None

    def _read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        encoder = Encoder()
        parts = self._scope.parts()
        settings = self._settings
        for name, value in self._bound(args, kwargs):
            if name is None:
                parts["self"] = self._instance(value, encoder)
            else:
                parts[f"argument {name}"] = encoder.encode(value, f"argument {name}")
        about = (b"tensorkey memoize", 1, gradient_mode())
        self._assumed |= dict.fromkeys(encoder.assumed)
        surroundings = environment(self._scope.roots | encoder.roots, encoder.kinds)
        return Call(parts, plain(about) + settings.version + surroundings)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str | None, Any]]:
        """Return what counts of the arguments by name; an instance has none."""
        if self._signature is None:
            return [("*", args), ("**", kwargs)]
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:  # the function says it best
            raise NoKey("arguments that the function does not take") from None
        bound.apply_defaults()
        ignore = self._settings.ignore
        found: list[tuple[str | None, Any]] = []
        for place, (name, value) in enumerate(bound.arguments.items()):
            if place == 0 and (self._method or name == "cls") and _is_instance(value):
                found.append((None, value))
            elif name not in ignore:
                if self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                    value = {key: entry for key, entry in value.items() if key not in ignore}
                found.append((name, value))
        return found

    def _instance(self, value: Any, encoder: Encoder) -> bytes:
        """Encode what a method is called on, by `state` or by what can be read of it."""
        kind = class_name(type(value))
        state = self._settings.state
        try:
            if state is not None:
                if is_torch_module(value) and any(map(records_gradients, value.parameters())):
                    raise NoKey(OWN_GRADIENTS)
                return kind + encoder.encode(list(state(value)), "state")
            if isinstance(value, type):
                self._assumed[f"class {value.__module__}.{value.__qualname__}"] = None
                return class_name(value)
            code = self._scope.code()
            written = frozenset(code.written_attributes if code else ())
            reading = read_instance(value, written)
            if any(map(records_gradients, reading.tensors)):
                raise NoKey(OWN_GRADIENTS)
            for name in written & set(getattr(value, "__dict__", ())):
                self._assumed[f"self.{name}: the method writes it"] = None
            for found in reading.unread:
                self._assumed[found.replace("layer", "self", 1)] = None
            return kind + encoder.thing(reading)
        except (errors.Error, ValueError) as error:
            raise NoKey(f"self has no key: {error}") from None

    # Results.

    def _pack(
        self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> Packed:
        """Take a result apart.

        Raises
        ------
        Unstored
            It cannot be described, or what the key was made of is not what it was.
        """
        try:
            packed = Packed(result)
            after = self._read(args, kwargs).parts
        except (NoResult, NoKey) as error:
            raise Unstored(str(error)) from None
        except Exception as error:  # anything that other people's classes may raise
            reason = f"the result cannot be read: {type(error).__name__}: {error}"
            raise Unstored(reason) from None
        before = call.parts
        changed = [part for part in before | after if before.get(part) != after.get(part)]
        if not changed:
            return packed
        reason = f"the function changed {', '.join(changed)}"
        raise Unstored(reason, packed if self._scope.exclude(changed) else None)

    def _store(self, key: _core.Key, packed: Packed, seconds: float) -> None:
        """Store a result and count it."""
        try:
            self.cache.put(key, packed.members(), seconds, self._purge)
        except errors.Error as error:
            self._counts.bypass(f"the result cannot be stored: {error}")
        else:
            self._counts.miss()

    def _settle(
        self,
        unstored: Unstored,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        seconds: float,
    ) -> None:
        """Store what has another key by now; count what is not stored."""
        if unstored.moved is not None:
            try:
                self._store(self._read(args, kwargs).key, unstored.moved, seconds)
                return
            except NoKey as reason:
                unstored = Unstored(str(reason))
        self._counts.bypass(str(unstored))

    def _answer(self, entry: _core.Entry) -> tuple[Any] | None:
        """Make a result again; None, counted, if that is not possible."""

        def tensor(number: int, noted: tuple[Any, ...]) -> Any:
            stored = entry[str(number)]
            return make(noted, stored.dtype, stored.shape, stored)

        try:
            description: Any = entry[DESCRIPTION]
            result = decode(bytes(description), tensor)
        except Exception:  # whatever a class, a device or foreign bytes may raise
            self._counts.bypass(UNREADABLE)
            return None
        self._counts.hit(entry.seconds)
        return (result,)


def _is_instance(value: Any) -> bool:
    """Whether this may be what a method was called on: neither a plain value nor a tensor."""
    plain_kind = type(value).__module__ == "builtins" and not isinstance(value, type)
    return not plain_kind and not is_tensor(value)


def compiling() -> bool:
    """Whether PyTorch follows this call, and would stop at the foreign code of the cache."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()
