"""Several epochs of a small classifier on top of a frozen encoder: the usual job."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from encoder import WIDTH, Texts
from torch import Tensor, nn

BATCH = 64

Encode = Callable[[list[int], int | None], Tensor]  # text numbers, canonical length -> (n, 384)
Advance = Callable[[int], None]


@dataclass
class Result:
    """What a run of all epochs gave."""

    accuracy: float = 0.0
    outputs: list[tuple[list[int], Tensor]] = field(default_factory=list)


def batches(
    indices: list[int], texts: Texts, rng: random.Random, by_length: bool
) -> Iterator[tuple[list[int], int | None]]:
    """The texts in a new order, in batches: of one canonical length each, or as they come."""
    order = rng.sample(indices, len(indices))
    buckets: dict[int | None, list[int]] = defaultdict(list)
    for i in order:
        buckets[texts.length(i) if by_length else None].append(i)
    cut = [
        (bucket[first : first + BATCH], length)
        for length, bucket in buckets.items()
        for first in range(0, len(bucket), BATCH)
    ]
    rng.shuffle(cut)
    yield from cut


def train(
    encode: Encode,
    texts: Texts,
    labels: Tensor,
    classes: int,
    epochs: int,
    advance: Advance,
    by_length: bool = True,
) -> Result:
    """Train a linear head for some epochs and give its accuracy on the fifth of texts held out."""
    rng = random.Random(1)
    torch.manual_seed(1)
    head = nn.Linear(WIDTH, classes)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    held_out = len(texts) // 5
    train_set, test_set = list(range(held_out, len(texts))), list(range(held_out))
    result = Result()
    for _ in range(epochs):
        for indices, length in batches(train_set, texts, rng, by_length):
            vectors = encode(indices, length)
            loss = nn.functional.cross_entropy(head(vectors), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            result.outputs.append((indices, vectors))
            advance(len(indices))
        right = 0
        for indices, length in batches(test_set, texts, rng, by_length):
            vectors = encode(indices, length)
            with torch.no_grad():
                right += int((head(vectors).argmax(1) == labels[indices]).sum())
            result.outputs.append((indices, vectors))
            advance(len(indices))
        result.accuracy = right / max(1, len(test_set))
    return result
