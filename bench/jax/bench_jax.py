"""What does a cached function of JAX cost under jit, where programs call C++ and where Python?

Programs for the CPU look up and deliver by functions of the core that XLA calls (its FFI); where
that is not possible, by callbacks into Python. Both are measured beside each other and beside the
bare function, all of them jitted. Rows are 32 token ids, answers 384 floats; batches have 64 rows.
A ratio is the time of the row over that of what the table's title names, and a bar the most that is
wanted. Answers of both ways are the same bits, and the function's own but for rounding.

    python bench/jax/bench_jax.py [--rounds 21] > jax.json
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jax
import numpy as np
from common import Row, interleaved, show, spread
from jax import numpy as jnp

from tensorkey import _jax_ffi, _jax_graph
from tensorkey.jax import CachedFunction, cached

ROWS, TOKENS, WIDTH, CHUNK, WORDS = 64, 32, 384, 32, 30522
WAYS = ("C++", "callbacks")
Function = Callable[..., Any]
RANDOM = np.random.default_rng(0)


@contextmanager
def calling(way: str) -> Iterator[None]:
    """Programs that are compiled meanwhile call this."""
    native = _jax_graph.native_call
    if way == "callbacks":
        _jax_graph.native_call = lambda *_: None
    try:
        yield
    finally:
        _jax_graph.native_call = native


def blocking(function: Function) -> Function:
    """The same, but it waits."""
    return lambda *args: jax.block_until_ready(function(*args))


def batch(rows: int = ROWS) -> jax.Array:
    """Rows that nobody has seen."""
    return jnp.asarray(RANDOM.integers(0, WORDS, (rows, TOKENS), np.int32))


def layer_of(seconds: float) -> Function:
    """A function that takes so long for a batch."""
    table = jnp.asarray(RANDOM.standard_normal((WORDS, WIDTH), np.float32))
    matrix = jnp.asarray(RANDOM.standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5)

    def of_depth(depth: int) -> Function:
        def layer(ids: jax.Array) -> jax.Array:
            hidden = table[ids].mean(1)
            return jax.lax.fori_loop(0, depth, lambda _, h: jnp.tanh(h @ matrix), hidden)

        return layer

    x, depth = batch(), 8
    while True:
        program = blocking(jax.jit(of_depth(depth)))
        program(x)
        taken = []
        for _ in range(15):
            start = time.perf_counter()
            program(x)
            taken.append(time.perf_counter() - start)
        found = statistics.median(taken)
        if found >= seconds:
            return of_depth(depth)
        depth = int(depth * min(8.0, 1.1 * seconds / found)) + 1


def ways_of(
    layer: Function, *args: Any, **options: Any
) -> dict[str, tuple[CachedFunction, Function]]:
    """The cached function and its program, for each way; compiled, probed and checked."""
    ways = {}
    answers = []
    for way in WAYS:
        with calling(way):
            function = cached(layer, **options)
            program = blocking(jax.jit(lambda *given, f=function: f(*given)))
            for _ in range(2):
                answers.append(np.asarray(program(*args)))
            assert function.stats.misses == ROWS, function.stats
            assert not function.stats.bypasses
            assert not function.stats.errors
        ways[way] = function, program
    assert all(answer.tobytes() == answers[0].tobytes() for answer in answers)
    assert np.allclose(answers[0], np.asarray(jax.jit(layer)(*args)), rtol=1e-3, atol=1e-4)
    return ways


def over(times: dict[str, list[float]], name: str, others: list[float], most: float | None) -> Row:
    """A row: its time over others, round by round."""
    row: Row = {"name": name, "ns": round(statistics.median(times[name]))}
    row |= spread([a / b for a, b in zip(times[name], others, strict=True)], digits=3)
    return row if most is None else row | {"most": most}


def all_known(rounds: int) -> list[Row]:
    """Hits alone."""
    layer, x = layer_of(0.003), batch()
    works: dict[str, Any] = {"the function": lambda: blocking(bare)(x)}
    bare = jax.jit(layer)
    for way, (_, program) in ways_of(layer, x, bypass="never").items():
        works[way] = lambda program=program: program(x)
    times = interleaved(works, rounds, seconds=0.05)
    rows = [over(times, way, times["the function"], 0.2) for way in WAYS]
    rows.append(over(times, "the function", times["the function"], None))
    row = over(times, "callbacks", times["C++"], None)
    return [*rows, row | {"name": "callbacks, over C++", "note": "C++ stays for 1.5 and more"}]


def one_new(rounds: int) -> list[Row]:
    """A chunk is run for it: what is beside that, over 1 ms."""
    layer, x = layer_of(0.003), batch()
    news = [batch(1) for _ in range(4096)]
    chunk = jax.jit(lambda x: layer(x[:CHUNK]))
    works: dict[str, Any] = {"a chunk": lambda: blocking(chunk)(x)}
    for way, (_, program) in ways_of(layer, x, bypass="never").items():
        fresh = itertools.cycle(news)
        program(jnp.concatenate([x[:-1], next(fresh)]))
        works[way] = lambda program=program, fresh=fresh: program(replaced(x, next(fresh)))
    again = itertools.cycle(news)
    works["the batch itself"] = lambda: blocking(replaced)(x, next(again))
    times = interleaved(works, rounds, seconds=0.05)
    rows = []
    for way in WAYS:
        columns = zip(times[way], times["a chunk"], times["the batch itself"], strict=True)
        beside = {way: [whole - chunk - made for whole, chunk, made in columns]}
        rows.append(over(beside, way, [1e6] * rounds, 1.0))
    return [*rows, {"name": "a chunk", "ns": round(statistics.median(times["a chunk"]))}]


@jax.jit
def replaced(x: jax.Array, row: jax.Array) -> jax.Array:
    """A batch with another last row."""
    return x.at[-1:].set(row)


def nothing_known(rounds: int) -> list[Row]:
    """No row comes twice."""
    layer, x = layer_of(0.005), batch()
    bare = jax.jit(layer)
    parts = jax.jit(lambda x: [layer(x[i : i + CHUNK]) for i in range(0, ROWS, CHUNK)])
    works: dict[str, Any] = {
        "the function": lambda: blocking(bare)(next(fresh)),
        "the function in chunks": lambda: blocking(parts)(next(fresh)),
    }
    fresh = itertools.cycle([batch() for _ in range(4096)])
    for way, (_, program) in ways_of(layer, x, bypass="never").items():
        works[way] = lambda program=program: program(next(fresh))
    times = interleaved(works, rounds, seconds=0.05)
    rows = [over(times, way, times["the function"], 1.05) for way in WAYS]
    for name in ("the function", "the function in chunks"):
        rows.append(over(times, name, times["the function"], None))
    return rows


def passed(rounds: int, megabytes: int) -> list[Row]:
    """Parameters that a program is passed are digested at every call."""
    x, width = batch(), 1024
    count = megabytes * 1_000_000 // (4 * width * width)
    params = [jnp.asarray(RANDOM.standard_normal((width, width), np.float32)) for _ in range(count)]
    params.append(jnp.asarray(RANDOM.standard_normal((WORDS // 30, WIDTH), np.float32)))

    def layer(params: list[jax.Array], ids: jax.Array) -> jax.Array:
        used = sum(matrix[0, :WIDTH] for matrix in params)
        return params[-1][ids % (WORDS // 30)].mean(1) + used

    works: dict[str, Any] = {}
    ways = ways_of(layer, params, x, params_argnums=0, bypass="never")
    for way, (_, program) in ways.items():
        works[way] = lambda program=program: program(params, x)
    times = interleaved(works, rounds, seconds=0.1)
    return [over(times, name, times["C++"], None) for name in WAYS]


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    if _jax_ffi.refusal() is not None:
        sys.exit(f"this JAX cannot call C++: {_jax_ffi.refusal()}")
    tables = {
        "all 64 rows known, over the function of 3 ms": all_known(rounds),
        "one of 64 rows new: what is beside its chunk, over 1 ms": one_new(rounds),
        "no row known, over the function of 5 ms": nothing_known(rounds),
        "all rows known, 13 MB of parameters passed, over C++": passed(rounds, 13),
        "all rows known, 91 MB of parameters passed, over C++": passed(rounds, 91),
    }
    show("jax", __doc__, tables, rounds=rounds, jax=jax.__version__)


if __name__ == "__main__":
    main()
