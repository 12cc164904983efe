"""Memoized functions: one computation a key over threads and processes."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from tensorkey import errors
from tensorkey._memoized import RUNNING, MemoizedBase, Unstored, compiling


class Memoized(MemoizedBase):
    """A memoized function; thread-safe, one computation a key."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Answer from the cache, or run the function."""
        function = self.__wrapped__
        if compiling():
            return function(*args, **kwargs)
        call = self._open(args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        done: list[Any] = []
        start = perf_counter()

        def compute() -> dict[str, Any]:
            done.append(function(*args, **kwargs))
            return self._pack(call, args, kwargs, done[0]).members()

        token = RUNNING.set(RUNNING.get() | {bytes(call.key)})
        try:
            entry = self.cache.get_or_compute(call.key, compute, self._purge)
        except Unstored as unstored:
            if done:
                self._settle(unstored, args, kwargs, perf_counter() - start)
                return done[0]
            self._counts.bypass(str(unstored))  # another thread's result, which is not ours
        except errors.Error as error:
            if not done:
                self._counts.error(error)
                raise
            self._counts.bypass(f"the result cannot be stored: {error}")
            return done[0]
        except BaseException as error:
            self._counts.error(error)
            raise
        else:
            if done:
                self._counts.miss()
                return done[0]
            answer = self._answer(entry)
            if answer is not None:
                return answer[0]
        finally:
            RUNNING.reset(token)
        return function(*args, **kwargs)
