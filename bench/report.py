"""Write docs/benchmarks.md from the JSON files that `make bench` left.

python bench/report.py build/bench docs/benchmarks.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from common import digits_of

INTRO = """# Benchmarks

Each section is one run of one program of `make bench`, on the machine and at the versions that it
names; all ratios of a table are of that run. They are medians over rounds in which the contestants
take turns, with quartiles in brackets: their time over ours, so above 1 means that we are faster. A
bar is what the project asks of itself: the least; or, where it says "at most", of a ratio that is
our time over that of what the table's title names. Absolute times are of that machine and of how
busy it was: compare ratios.

Answers are checked by each program before it times anything.
"""


def cell(value: object, digits: int = 2) -> str:
    """One cell of a table."""
    if isinstance(value, float):
        return f"{value:,.{digits}f}" if value < 100 else f"{value:,.0f}"
    return str(value)


def ratio_of(row: dict) -> str:
    """The ratio of a row, and its quartiles."""
    if "ratio" not in row:
        return ""
    digits = digits_of(row)
    low, high = (cell(quartile, digits) for quartile in row.get("quartiles", ("", "")))
    return f"{cell(row['ratio'], digits)} ({low} - {high})"


def figures_of(title: str, rows: list[dict]) -> list[str]:
    """One table of a report that counts: a column a contestant."""
    names = list(rows[0]["figures"])
    bar = any("bar" in row for row in rows)
    head = ["", *names, *(["bar"] if bar else [])]
    lines = [f"**{title}**", "", "|" + "|".join(head) + "|", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["name"], *(f"{row['figures'][name]:.2f}" for name in names)]
        cells += [f"{row['bar']:.1f}" if "bar" in row else ""] if bar else []
        lines.append("|" + "|".join(cells) + "|")
    return [*lines, ""]


def table_of(title: str, rows: list[dict]) -> list[str]:
    """One table of a report."""
    if "figures" in rows[0]:
        return figures_of(title, rows)
    extra = [key for key in ("official_ns", "libxxhash_ns") if any(key in row for row in rows)]
    head = ["", "ns", *(key.removesuffix("_ns") + ", ns" for key in extra), "ratio", "bar", ""]
    lines = [f"**{title}**", "", "|" + "|".join(head) + "|", "|---" * len(head) + "|"]
    for row in rows:
        cells = [
            row["name"],
            f"{row['ns']:,.0f}" if "ns" in row else "",
            *(f"{row[key]:,.0f}" if key in row else "" for key in extra),
            ratio_of(row),
            f"at most {row['most']}" if "most" in row else cell(row.get("bar", "")),
            row.get("note", ""),
        ]
        lines.append("|" + "|".join(cells) + "|")
    return [*lines, ""]


def section_of(stem: str, report: dict) -> str:
    """The part of the page that one program fills."""
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    about, _, rest = report["about"].partition("\n")
    lines = [f"## {about}", ""]
    for paragraph in rest.strip().split("\n\n"):
        if not paragraph.startswith("    "):  # how to call the program
            lines += [paragraph, ""]
    rounds = report.get("rounds")  # of what is measured once there are none
    how = machine or f"{rounds} seeds"
    if machine and rounds is not None:
        how += f", rounds {rounds}"
    lines += [f"`{stem}`: {how}.", ""]
    for title, rows in report["tables"].items():
        lines += table_of(title, rows)
    return "\n".join(lines).rstrip() + "\n"


def sections_of(page: str) -> dict[str, str]:
    """The parts of a page that is there, by their programs."""
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)[1:]
    stems = [re.search(r"^`([\w-]+)`: ", part, re.MULTILINE) for part in parts]
    return {stem[1]: part.rstrip() + "\n" for stem, part in zip(stems, parts, strict=True) if stem}


def main() -> None:
    """Read the folder, write the page; parts of programs that did not run stay as they are."""
    folder, page = map(Path, sys.argv[1:])
    sections = sections_of(page.read_text()) if page.exists() else {}
    for path in folder.glob("*.json"):
        sections[path.stem] = section_of(path.stem, json.loads(path.read_text()))
    page.write_text("\n".join([INTRO, *(text for _, text in sorted(sections.items()))]))


if __name__ == "__main__":
    main()
