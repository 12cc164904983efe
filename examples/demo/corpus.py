"""Glosses of WordNet with their lexicographer class, from Debian's package wordnet-base.

WordNet 3.0 is copyright Princeton University; its licence permits use and distribution with the
notice that stands in every data file and in the package's copyright file.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
FILES = ("data.noun", "data.verb", "data.adj", "data.adv")


@dataclass(frozen=True)
class Corpus:
    """Texts and their classes, numbered from 0."""

    texts: list[str]
    labels: list[int]
    classes: int


def read_glosses() -> list[tuple[str, int]]:
    """(gloss, number of the lexicographer file) of each synset; wndb(5) has the format."""
    glosses = []
    for name in FILES:
        path = WORDNET / name
        if not path.exists():
            raise SystemExit(f"{path} is missing; on Debian: apt-get install wordnet-base")
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            definition = gloss.strip().partition('; "')[0]  # without the example sentences
            glosses.append((definition, int(fields.split(" ", 2)[1])))
    return glosses


def sample(rows: int, seed: int = 0) -> Corpus:
    """`rows` different glosses, drawn at random."""
    unique = sorted(dict(read_glosses()).items())
    chosen = random.Random(seed).sample(unique, min(rows, len(unique)))
    numbers = sorted({label for _, label in chosen})
    place = {number: i for i, number in enumerate(numbers)}
    return Corpus(
        texts=[text for text, _ in chosen],
        labels=[place[label] for _, label in chosen],
        classes=len(numbers),
    )
