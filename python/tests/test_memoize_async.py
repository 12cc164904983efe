"""``memoize`` on coroutine functions: one flight a key, and the event loop is never blocked."""

from __future__ import annotations

import asyncio
import inspect

import numpy as np
import pytest

import tensorkey as tk


def test_concurrent_awaits_run_once():
    runs = 0

    @tk.memoize
    async def f(x):
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.01)
        return {"y": x * 2}

    async def main():
        x = np.arange(3.0)
        results = await asyncio.gather(*(f(x.copy()) for _ in range(100)))
        for result in results:
            assert result["y"].tolist() == [0, 2, 4]
            result["y"][:] = 0  # each has its own
        assert (await f(x=x))["y"].tolist() == [0, 2, 4]

    asyncio.run(main())
    assert runs == 1
    assert (f.stats.hits, f.stats.misses) == (100, 1)
    assert asyncio.iscoroutinefunction(f)
    assert f._flights == {}
    asyncio.run(main())  # another event loop
    assert runs == 1
    if hasattr(inspect, "markcoroutinefunction"):
        assert inspect.iscoroutinefunction(f)


def test_an_exception_reaches_all_and_is_not_stored():
    error = ValueError("mine")
    runs = 0

    @tk.memoize
    async def f(x):
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.01)
        raise error

    async def main():
        return await asyncio.gather(*(f(1) for _ in range(10)), return_exceptions=True)

    assert asyncio.run(main()) == [error] * 10
    assert runs == 1
    assert f.stats.errors == {"ValueError": 10}
    assert asyncio.run(main()) == [error] * 10
    assert runs == 2


def test_another_takes_over_from_a_cancelled_one():
    runs = 0

    @tk.memoize
    async def f(x):
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.02)
        return x

    async def main():
        tasks = [asyncio.create_task(f(1)) for _ in range(5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[3].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(main())
    assert [type(result) for result in results].count(asyncio.CancelledError) == 2
    assert results.count(1) == 3
    assert runs == 2


def test_the_loop_goes_on_while_a_key_is_computed():
    ticks = 0

    @tk.memoize
    async def f(x):
        await asyncio.sleep(0.05)
        return x

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def main():
        ticking = asyncio.create_task(tick())
        await asyncio.gather(f(1), f(1), f(1))
        ticking.cancel()

    asyncio.run(main())
    assert ticks > 5


def test_results_that_are_not_kept_and_disabled_caches():
    runs = 0

    @tk.memoize
    async def f(x):
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        return object()

    async def main():
        assert len(set(map(id, await asyncio.gather(*(f(1) for _ in range(4)))))) == 4
        with tk.disabled():
            await f(2)

    asyncio.run(main())
    assert runs == 5
    assert sum(f.stats.bypasses.values()) == 5


def test_an_async_method_over_a_directory(tmp_path):
    class Client:
        def __init__(self):
            self.calls = 0

        @tk.memoize(disk=tmp_path / "cache")
        async def embed(self, text):
            self.calls += 1
            await asyncio.sleep(0)
            return np.full(3, len(text))

    async def main():
        client = Client()
        results = [await client.embed("four") for _ in range(3)]
        Client.embed.cache.flush()
        assert [result.tolist() for result in results] == [[4, 4, 4]] * 3
        assert client.calls == 1

    asyncio.run(main())
    with pytest.raises(TypeError):
        asyncio.run(Client().embed())
