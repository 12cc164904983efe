"""What all benchmarks of Python share: interleaved rounds, ratios, the machine, JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

Work = Callable[[], object]


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((ln.split(":", 1)[1].strip() for ln in lines if "model name" in ln), "")
    return {
        "cpu": model or platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
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


def against(times: dict[str, list], ours: str) -> list[dict[str, object]]:
    """For each work: median time, and the median over rounds of its time / ours, with quartiles."""
    rows = []
    for name, row in times.items():
        ratios = sorted(t / o for t, o in zip(row, times[ours], strict=True))
        rows.append(
            {
                "name": name,
                "ns": round(statistics.median(row), 1),
                "times_ours": round(statistics.median(ratios), 2),
                "quartiles": [
                    round(ratios[len(ratios) // 4], 2),
                    round(ratios[3 * len(ratios) // 4], 2),
                ],
            }
        )
    return rows


def rounds_option(default: int = 31) -> int:
    """The number of rounds from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=default)
    return int(parser.parse_args().rounds)


def show(result: dict[str, object], tables: dict[str, list[dict[str, object]]]) -> None:
    """JSON on standard output, a table for the reader on standard error."""
    print(json.dumps({**result, "machine": machine(), **tables}, indent=1))
    for title, rows in tables.items():
        print(f"\n{title}", file=sys.stderr)
        for row in rows:
            line = f"  {row['name']:<34} {row['ns']:>12,.0f} ns {row['times_ours']:>8.2f} x"
            print(line + (f"   {row['note']}" if row.get("note") else ""), file=sys.stderr)
