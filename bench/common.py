"""What all benchmarks of Python share: interleaved rounds, ratios, the machine, JSON and tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

Work = Callable[[], object]
Row = dict[str, object]


def machine() -> Row:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cpus": os.cpu_count(),
        "compiler": platform.python_compiler(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def interleaved(works: dict[str, Work], rounds: int, seconds: float = 0.004) -> dict[str, list]:
    """Nanoseconds a call of each work, one figure a round, the works taking turns in each round."""
    calls = {}
    for name, work in works.items():
        work()
        start = time.perf_counter()
        work()
        calls[name] = max(1, int(seconds / max(time.perf_counter() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            repeat = range(calls[name])
            start = time.perf_counter_ns()
            for _ in repeat:
                work()
            times[name].append((time.perf_counter_ns() - start) / calls[name])
    return times


def spread(ratios: list[float], digits: int = 2) -> Row:
    """The median of the ratios of all rounds, and their quartiles."""
    ratios = sorted(ratios)
    quartiles = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    return {
        "ratio": round(statistics.median(ratios), digits),
        "quartiles": [round(quartile, digits) for quartile in quartiles],
    }


def against(times: dict[str, list], ours: str, bars: dict[str, float] | None = None) -> list[Row]:
    """For each work: median time, and the ratio of its time to ours, round by round."""
    rows = []
    for name, theirs in times.items():
        row: Row = {"name": name, "ns": round(statistics.median(theirs), 1)}
        row |= spread([t / o for t, o in zip(theirs, times[ours], strict=True)])
        if bars and name in bars:
            row["bar"] = bars[name]
        rows.append(row)
    return rows


def digits_of(row: Row) -> int:
    """How many digits of a ratio matter: a bar near 1 is a bar on percents."""
    return 3 if row.get("most", 2.0) < 2.0 else 2


def show(bench: str, about: str, tables: dict[str, list[Row]], **more: object) -> None:
    """JSON on standard output, tables for the reader on standard error."""
    report = {"bench": bench, "about": about, "machine": machine(), **more, "tables": tables}
    print(json.dumps(report, indent=1))
    for title, rows in tables.items():
        print(f"\n{title}", file=sys.stderr)
        for row in rows:
            if "figures" in row:
                cells = [f"{key} {value:,.2f}" for key, value in row["figures"].items()]
                cells += [f"bar {row['bar']}"] if "bar" in row else []
                print(f"  {row['name']:<34}", "; ".join(cells), file=sys.stderr)
                continue
            cells = [f"  {row['name']:<34}", f"{row['ns']:>14,.0f} ns" if "ns" in row else " " * 17]
            ratio = f"{row['ratio']:>8.{digits_of(row)}f} x" if "ratio" in row else " " * 10
            bar = f"  bar {row['bar']}" if "bar" in row else ""
            cells += [ratio, f"  at most {row['most']}" if "most" in row else bar]
            print(*cells, f"  {row.get('note', '')}".rstrip(), file=sys.stderr)
