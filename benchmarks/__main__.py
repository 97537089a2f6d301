"""Run every script of this folder and print one table; peers that cannot be had are named, and stop nothing.

python -m benchmarks [SCRIPT ...]
"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.work import BUILD, ROOT

HELPERS = {"__init__", "__main__", "work", "growth"}  # growth makes a page, and has no peer


def main(names: list[str]) -> int:
    here = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in HELPERS)
    unknown = sorted(set(names) - set(here))
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}: there are {', '.join(here)}.", file=sys.stderr)
        return 2
    lines, failed = [], []
    for name in names or here:
        print(f"{name} ...", file=sys.stderr, flush=True)
        run = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        lines += [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        failed += [name] if run.returncode else []
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(table(lines))
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


def table(lines: list[dict]) -> str:
    """The JSON lines as aligned text: what, who, the median with its unit and spread, and what else a line says."""
    rows = [("work", "who", "median", "min - max", "runs", "")]
    for line in lines:
        line = dict(line)
        unit = next((key.removeprefix("median_") for key in line if key.startswith("median_")), None)
        median = f"{line.pop(f'median_{unit}'):g} {unit.replace('_', ' ')}" if unit else "-"
        spread = f"{line.pop('min'):g} - {line.pop('max'):g}" if {"min", "max"} <= set(line) else ""
        row = (line.pop("work", "machine"), line.pop("who", ""), median, spread, str(line.pop("runs", "")))
        rows.append((*row, ", ".join(f"{key} {value}" for key, value in line.items())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
