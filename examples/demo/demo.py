"""The main job: a small classifier learns on a frozen sentence encoder, with and without the cache.

    python examples/demo/demo.py            DEMO_ROWS=1024 DEMO_EPOCHS=4 by default

A frozen all-MiniLM-L6-v2 encodes WordNet glosses for several reshuffled epochs, while a linear head
learns their lexicographer class. Five ways to do it are timed; the cached ones must give the same
bits as the bare one, row for row, or the exit status is 1. One of them has memory for half of the
activations; what LRU would have hit there is replayed from its trace. `tk.check` tells beforehand
what a cache would come to, `explain` tells why rows would be hits or not, and `verify` computes a
share of the hits again. At last the texts are encoded with a directory for the activations, and
once more in a new process, which reads them from there and probes nothing. Every figure is measured
in this run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from corpus import sample
from encoder import CHUNK, WIDTH, Texts, in_chunks, load_encoder
from insight import checked, explained, verified
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from training import Encode, Result, train

import tensorkey as tk
from tensorkey.torch import CachedLayer


@dataclass
class Row:
    """A line of the table."""

    name: str
    seconds: float
    rows_run: int
    rows_read: int
    mebibytes: float
    result: Result


class Job:
    """The texts, the encoder, and the ways to encode with it."""

    def __init__(self, rows: int, epochs: int) -> None:
        corpus = sample(rows)
        self.epochs = epochs
        self.texts = Texts(corpus.texts)
        self.labels = torch.tensor(corpus.labels)
        self.classes = corpus.classes
        self.encoder = load_encoder()
        self.total = len(self.texts) * epochs

    def run(self, encode: Encode, advance, by_length: bool = True) -> tuple[Result, float]:
        """All epochs with this way of encoding, and the seconds they took."""
        start = time.perf_counter()
        result = train(
            encode, self.texts, self.labels, self.classes, self.epochs, advance, by_length
        )
        return result, time.perf_counter() - start

    def bare(self, advance) -> Row:
        """Every epoch runs the encoder."""

        def encode(indices: list[int], length: int | None) -> Tensor:
            with torch.no_grad():
                return in_chunks(self.encoder, *self.texts.batch(indices, length))

        result, seconds = self.run(encode, advance)
        return Row("bare", seconds, self.total, 0, 0.0, result)

    def cached(
        self, advance, name: str = "cached", memory: int | str = "1 GiB", trace: Path | None = None
    ) -> tuple[Row, CachedLayer]:
        """The encoder wrapped, nothing else changed."""
        layer = CachedLayer(self.encoder, memory=memory, chunk=CHUNK, bypass="never")
        layer.cache.trace(trace)

        def encode(indices: list[int], length: int | None) -> Tensor:
            with torch.no_grad():
                return layer(*self.texts.batch(indices, length))

        result, seconds = self.run(encode, advance)
        layer.cache.trace(None)
        stats = layer.stats
        mebibytes = stats.cache.bytes / 2**20
        return Row(name, seconds, stats.misses, stats.hits, mebibytes, result), layer

    def on_disk(self, folder: Path) -> dict[str, Any]:
        """All texts once, by a layer that keeps its answers in a directory."""
        layer = CachedLayer(self.encoder, disk=folder, chunk=CHUNK, bypass="never")
        start = time.perf_counter()
        outputs = torch.empty(len(self.texts), WIDTH)
        with torch.no_grad():
            for indices, length in self.by_length():
                outputs[indices] = layer(*self.texts.batch(indices, length))
        layer.cache.flush()
        return {
            "seconds": time.perf_counter() - start,
            "rows run": layer.stats.misses,
            "rows read": layer.stats.hits,
            "chunks probed": layer.stats.probe_runs,
            "bits": tk.key(outputs).hex(),
        }

    def by_length(self) -> list[tuple[list[int], int]]:
        """The numbers of all texts of each canonical length."""
        numbers = range(len(self.texts))
        lengths = sorted({self.texts.length(i) for i in numbers})
        return [([i for i in numbers if self.texts.length(i) == n], n) for n in lengths]

    def dynamic(self, advance) -> Row:
        """Every epoch runs the encoder, each batch padded to its longest text."""

        def encode(indices: list[int], length: int | None) -> Tensor:
            with torch.no_grad():
                return self.encoder(*self.texts.batch(indices))

        result, seconds = self.run(encode, advance, by_length=False)
        return Row("bare, dynamic padding", seconds, self.total, 0, 0.0, result)

    def precomputed(self, advance) -> Row:
        """The loop one writes by hand: encode everything into one tensor, then index it."""
        start = time.perf_counter()
        table = torch.empty(len(self.texts), WIDTH)
        for indices, length in self.by_length():
            with torch.no_grad():
                table[indices] = in_chunks(self.encoder, *self.texts.batch(indices, length))
        before = time.perf_counter() - start
        result, seconds = self.run(lambda indices, _: table[indices], advance)
        return Row(
            "precomputed by hand",
            before + seconds,
            len(self.texts),
            self.total,
            table.nbytes / 2**20,
            result,
        )


def identical_rows(bare: Result, cached: Result) -> tuple[int, int]:
    """How many rows of the cached run have the bits of the bare run, and of how many."""
    same = total = 0
    for (expected_indices, expected), (indices, got) in zip(
        bare.outputs, cached.outputs, strict=True
    ):
        if expected_indices != indices or expected.shape != got.shape:
            raise AssertionError("the two runs saw different batches")
        same += int((expected.view(torch.int32) == got.view(torch.int32)).all(1).sum())
        total += len(indices)
    return same, total


def as_table(rows: list[Row]) -> Table:
    """The figures of all runs."""
    table = Table(title="A head trained on a frozen encoder")
    table.add_column("run", no_wrap=True)
    for name in ("seconds", "rows run", "rows read", "hits %", "MiB", "speed-up", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        asked = row.rows_run + row.rows_read
        table.add_row(
            row.name,
            f"{row.seconds:.1f}",
            f"{row.rows_run:,}",
            f"{row.rows_read:,}",
            f"{100 * row.rows_read / asked:.1f}",
            f"{row.mebibytes:.1f}",
            f"{rows[0].seconds / row.seconds:.1f}x",
            f"{row.result.accuracy:.3f}",
        )
    return table


SHARE = 0.25  # of the hits, to be verified
AGAIN = "DEMO_DISK"  # in the environment of the second process: the directory


def runs_on_disk(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same texts in this process, then in a new one that finds the directory."""
    with tempfile.TemporaryDirectory() as folder:
        first = job.on_disk(Path(folder) / "activations")
        done = subprocess.run(
            [sys.executable, __file__],
            env=os.environ | {AGAIN: str(Path(folder) / "activations")},
            stdout=subprocess.PIPE,
            check=True,
        )
        return first, json.loads(done.stdout)


def positive(name: str, default: int) -> int:
    """A positive number from the environment."""
    text = os.environ.get(name, str(default))
    if not text.isdigit() or int(text) == 0:
        raise SystemExit(f"{name} is {text!r}; expected a positive whole number")
    return int(text)


def main() -> int:
    """Run the job in all ways and compare."""
    rows, epochs = positive("DEMO_ROWS", 1024), positive("DEMO_EPOCHS", 4)
    if AGAIN in os.environ:
        print(json.dumps(Job(rows, epochs).on_disk(Path(os.environ[AGAIN]))))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 110)
    with console.status("reading WordNet and loading the encoder"):
        job = Job(rows, epochs)
        in_chunks(job.encoder, *job.texts.batch(list(range(min(32, rows)))))  # warm-up
    console.print(
        f"{len(job.texts):,} glosses, {job.classes} classes, {epochs} epochs, "
        f"all-MiniLM-L6-v2, {torch.get_num_threads()} threads"
    )
    with console.status("measuring what a cache would come to"):
        found = checked(job.encoder, job.texts)
    print(found)
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def bar(name: str):
            task = progress.add_task(name, total=job.total)
            return lambda count: progress.advance(task, count)

        bare = job.bare(bar("bare"))
        cached, layer = job.cached(bar("cached"))
        full = layer.stats.cache.bytes
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace"
            name = "cached, half the memory"
            half, half_layer = job.cached(bar(name), name, full // 2, trace)
            replays = tk.simulate(trace, full // 2, ["lru", "belady"])
        dynamic = job.dynamic(bar("bare, dynamic padding"))
        by_hand = job.precomputed(bar("precomputed by hand"))
    console.print(as_table([bare, cached, half, dynamic, by_hand]))
    print(layer.stats)
    stats = half_layer.stats
    ours = f"hits with half the memory: {stats.hits / stats.lookups:.1%}"
    others = ", ".join(f"{replay.policy} {replay.hit_ratio:.1%}" for replay in replays)
    print(f"{ours}; replayed from its own trace, all of it for values: {others}")
    same, total = identical_rows(bare.result, cached.result)
    same_half, _ = identical_rows(bare.result, half.result)
    same = min(same, same_half)
    print(f"outputs bit-identical: {'yes' if same == total else 'NO'} ({same} of {total} rows)")
    print(f"speed-up: {bare.seconds / cached.seconds:.1f}x")
    indices, length = job.by_length()[0]
    print(explained(layer, job.texts, indices[:CHUNK], length))
    with console.status("verifying"):
        hits, again, deviating = verified(layer, job.texts, job.by_length(), SHARE)
    print(f"verify: {again} of {hits} hits computed again, {deviating} differ")
    with console.status("once more, with a directory, and in a new process"):
        first, second = runs_on_disk(job)
    for name, run in (("first process", first), ("new process", second)):
        print(
            f"on disk, {name}: {run['rows run']} rows run, {run['rows read']} rows read, "
            f"{run['chunks probed']} chunks probed, {run['seconds']:.2f} s"
        )
    warm = first["bits"] == second["bits"]
    print(f"on disk, bit-identical: {'yes' if warm else 'NO'}")
    return 0 if same == total and warm and not deviating else 1


if __name__ == "__main__":
    sys.exit(main())
