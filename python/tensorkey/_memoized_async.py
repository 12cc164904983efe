"""Memoized coroutine functions: one flight a key in an event loop, which never blocks for it."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Callable
from time import perf_counter
from typing import Any

from tensorkey import _core
from tensorkey._memoized import RUNNING, Call, MemoizedBase, Settings, Unstored, compiling
from tensorkey._results import Packed


@dataclasses.dataclass
class _Landed:
    """How a flight ended."""

    error: BaseException | None = None
    result: Packed | None = None
    seconds: float = 0.0
    again: bool = False
    """It was cancelled: another one may fly."""


class _Flight:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[_Landed] = loop.create_future()
        self.waiting = 0


class MemoizedAsync(MemoizedBase):
    """A memoized coroutine function."""

    def __init__(self, function: Callable[..., Any], settings: Settings) -> None:
        super().__init__(function, settings)
        # By the loop too: a future belongs to one.
        self._flights: dict[tuple[asyncio.AbstractEventLoop, _core.Key], _Flight] = {}
        if hasattr(inspect, "markcoroutinefunction"):
            inspect.markcoroutinefunction(self)
        else:
            self._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Answer from the cache, from a call that is under way, or by running the function."""
        function = self.__wrapped__
        call = None if compiling() else self._open(args, kwargs)
        if call is None:
            return await function(*args, **kwargs)
        loop = asyncio.get_running_loop()
        place = (loop, call.key)
        while (flight := self._flights.get(place)) is not None:
            flight.waiting += 1
            landed = await asyncio.shield(flight.future)
            if landed.error is not None:
                self._counts.error(landed.error)
                raise landed.error
            if landed.result is not None:
                self._counts.hit(landed.seconds)
                return landed.result.copy()
            if not landed.again:
                self._counts.bypass("another call's result, which could not be kept")
                return await function(*args, **kwargs)
        flight = self._flights[place] = _Flight(loop)
        landed = _Landed(again=True)
        try:
            return await self._fly(call, flight, landed, args, kwargs)
        finally:
            del self._flights[place]
            flight.future.set_result(landed)

    async def _fly(
        self,
        call: Call,
        flight: _Flight,
        landed: _Landed,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        entry = await self._find(call.key)
        if entry is not None:
            answer = self._answer(entry)
            if answer is not None:
                landed.again = True  # the others find it too
                return answer[0]
        start = perf_counter()
        token = RUNNING.set(RUNNING.get() | {bytes(call.key)})
        try:
            result = await self.__wrapped__(*args, **kwargs)
        except Exception as error:
            self._counts.error(error)
            landed.error = error
            raise
        finally:
            RUNNING.reset(token)
        landed.again = False
        landed.seconds = perf_counter() - start
        if entry is not None:
            return result
        try:
            packed = self._pack(call, args, kwargs, result)
        except Unstored as unstored:
            self._settle(unstored, args, kwargs, landed.seconds)
            return result
        self._store(call.key, packed, landed.seconds)
        if flight.waiting:
            # The caller may write to its result before they come to read it.
            landed.result = packed.copied()
        return result

    async def _find(self, key: _core.Key) -> _core.Entry | None:
        cache = self.cache
        if cache.has_store and key not in cache:
            return await asyncio.get_running_loop().run_in_executor(None, cache.get, key)
        return cache.get(key)
