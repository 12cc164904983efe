"""What does training a head on a frozen encoder cost, beside encoding everything once by hand?

WordNet glosses, all-MiniLM-L6-v2, a linear head, four epochs in batches of 64, reshuffled, each
batch of texts of one length. The ideal encodes all texts once, in chunks of 32, and indexes the
tensor from then on. A ratio is the time of a whole training over that of the ideal, in the same
round; a bar the most that is wanted. The first ways take turns, the slow ones run once. Vectors are
compared with those of the ideal: bit by bit for ways that run the same chunks, else to rounding.

    python bench/layer/bench_head.py [--rounds 3] [--rows 512] > head.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from common import Row, show, spread
from contestants import (
    WIDTH,
    Bare,
    Cached,
    Ideal,
    Job,
    JoblibBatches,
    JoblibRows,
    Keyed,
    Loop,
    Mapped,
    Probed,
    Way,
)
from torch import Tensor, nn

EPOCHS, BATCH = 4, 64
IN_TURNS = (Ideal, Probed, Keyed, Cached, Loop)
ONCE = (Mapped, JoblibRows, JoblibBatches, Bare)
BARS = {Probed.name: 1.1, Keyed.name: 1.1}

Batches = list[tuple[Tensor, int]]


def reshuffled(job: Job) -> Batches:
    """Return the batches of all epochs."""
    random = torch.Generator().manual_seed(1)
    batches: Batches = []
    for _ in range(EPOCHS):
        epoch: Batches = []
        for length, members in job.members.items():
            order = members[torch.randperm(len(members), generator=random)]
            epoch += [(part, length) for part in order.split(BATCH)]
        order = torch.randperm(len(epoch), generator=random)
        batches += [epoch[i] for i in order.tolist()]
    return batches


def trained(kind: type[Way], job: Job, batches: Batches, truth: Tensor) -> tuple[float, str]:
    """Train a head with this way to encode; return the seconds, and what to say of them."""
    way = kind(job)
    torch.manual_seed(2)
    vectors = []
    with tempfile.TemporaryDirectory(prefix="tensorkey-bench-") as folder:
        start = time.perf_counter()
        way.prepare(Path(folder))
        head = nn.Linear(WIDTH, job.classes)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for numbers, length in batches:
            vectors.append(way(numbers, length))
            loss = nn.functional.cross_entropy(head(vectors[-1]), job.labels[numbers])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        note = way.note()
    for (numbers, _), got in zip(batches, vectors, strict=True):
        if way.exact:
            assert torch.equal(got, truth[numbers]), kind.name
        else:
            assert torch.allclose(got, truth[numbers], atol=1e-5), kind.name
    return seconds, note


def measure(job: Job, rounds: int) -> list[Row]:
    """Time all ways."""
    batches = reshuffled(job)
    truth = job.all_vectors()  # and the encoder is warm
    times: dict[str, list[float]] = {}
    notes = {}
    for number in range(rounds):
        for kind in IN_TURNS + (ONCE if number == 0 else ()):
            seconds, notes[kind.name] = trained(kind, job, batches, truth)
            times.setdefault(kind.name, []).append(seconds)
    rows = []
    for name, ours in times.items():
        row: Row = {"name": name, "ns": round(1e9 * statistics.median(ours))}
        row |= spread([t / b for t, b in zip(ours, times[Ideal.name], strict=False)], digits=3)
        row |= {"most": BARS[name]} if name in BARS else {}
        rows.append(row | {"note": notes[name]})
    return rows


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=512)
    options = parser.parse_args()
    job = Job(options.rows)
    lengths = ", ".join(f"{len(numbers)} of {n}" for n, numbers in job.members.items())
    title = f"{job.rows} texts ({lengths} tokens), {EPOCHS} epochs, over the ideal"
    tables = {title: measure(job, options.rounds)}
    show("head", __doc__, tables, rounds=options.rounds, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
