"""Draw the hit ratios of ours, the peers and the optimum: docs/hit_ratios.png.

python bench/policy/chart.py build/bench/policy-policy_bench.json docs/hit_ratios.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {
    "tensorkey": "#c2410c",
    "lru": "#9ca3af",
    "sieve": "#7dd3fc",
    "s3-fifo": "#38bdf8",
    "arc": "#0284c7",
    "w-tinylfu": "#1e3a8a",
    "belady": "#111827",
}
NAMES = {"tensorkey": "TensorKey", "lru": "LRU", "sieve": "SIEVE", "s3-fifo": "S3-FIFO"}
NAMES |= {"arc": "ARC", "w-tinylfu": "W-TinyLFU", "belady": "optimum"}


def draw(axes: plt.Axes, title: str, rows: list[dict]) -> None:
    """One group of bars a stream; the optimum is a line over its group."""
    policies = [name for name in COLOURS if name != "belady"]
    width = 0.84 / len(policies)
    for i, policy in enumerate(policies):
        at = [row + (i - (len(policies) - 1) / 2) * width for row in range(len(rows))]
        heights = [row["figures"][policy] for row in rows]
        axes.bar(at, heights, width * 0.94, color=COLOURS[policy], label=NAMES[policy])
    for i, row in enumerate(rows):
        best = row["figures"]["belady"]
        label = NAMES["belady"] if i == 0 else None
        axes.plot([i - 0.45, i + 0.45], [best, best], color=COLOURS["belady"], lw=1.5, label=label)
    axes.set_xticks(range(len(rows)), [row["name"].replace(", ", "\n") for row in rows], fontsize=8)
    axes.set_ylabel("hit ratio, %")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", lw=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)


def main() -> None:
    """Read the JSON, write the picture."""
    source, target = map(Path, sys.argv[1:])
    tables = json.loads(source.read_text())["tables"]
    training, held_out = (
        next(rows for name, rows in tables.items() if part in name)
        for part in ("streams of training", "held out")
    )
    panels = {
        "Streams of training and their like": training,
        "Held out: skew, scans, drift": held_out[:7],
        "Held out: recency, mixtures, newcomers": held_out[7:],
    }
    figure, axes = plt.subplots(len(panels), 1, figsize=(12, 4 * len(panels)), dpi=110)
    for each, (title, rows) in zip(axes, panels.items(), strict=True):
        draw(each, title, rows)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="upper center", frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(target, metadata={"Software": None})


if __name__ == "__main__":
    main()
