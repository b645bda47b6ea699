"""Measurements as Markdown tables and as JSON."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import absent_peers

RESULTS = Path(__file__).parent / "results"
MODE_TITLES = {
    "idle": "no hook active",
    "cached": "every site cached (sites)",
    "replaced": "one activation replaced",
}
PACKAGES = ("rlmech", "torch", "transformer-lens", "nnsight", "pyvene")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "absent": absent_peers(),
    }


def forward_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per network, mode and tool; a column per batch size."""
    batches = sorted({row["batch"] for row in rows})
    lines = [
        "CPU time in forward passes of the raw module: median of the ratio per round [quartiles]; in bold beside",
        "its aim (≤ met, ≈ within the quartiles, > missed).",
        "",
        "| network | | tool | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---|---|---|" + "---|" * len(batches),
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        raw = {row["batch"]: row for row in rows if row["network"] == network and row["mode"] == "raw"}
        cells = " | ".join(f"{raw[batch]['microseconds']:.0f} µs" for batch in batches)
        lines.append(f"| {network} | forward | raw module | {cells} |")
        for mode, title in MODE_TITLES.items():
            for tool in dict.fromkeys(row["tool"] for row in rows if row["mode"] == mode):
                own = {
                    row["batch"]: row
                    for row in rows
                    if (row["network"], row["mode"], row["tool"]) == (network, mode, tool)
                }
                if own:
                    cells = " | ".join(_cell(own[batch]) for batch in batches)
                    count = f" ({own[batches[0]]['n_sites']})" if mode == "cached" else ""
                    lines.append(f"| {network} | {title.removesuffix(' (sites)')} | {tool}{count} | {cells} |")
    return "\n".join(lines)


def sweep_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per network and tool, a column per number of pairs."""
    pairs = sorted({row["pairs"] for row in rows})
    lines = [
        "CPU time of one sweep over all jobs, one thread: median of the ratio per round to rlmech's whole call, with",
        "intervals and labels [quartiles]; that of a plain loop of forward hooks beside its aim. The floor is the",
        "arithmetic of the cheapest exact scheme, no-op rows counted.",
        "",
        "| network (jobs) | tool | " + " | ".join(f"{n} pairs" for n in pairs) + " |",
        "|---|---|" + "---|" * len(pairs),
    ]
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        for tool in dict.fromkeys(row["tool"] for row in own):
            cells = [_sweep_cell(next((r for r in own if (r["tool"], r["pairs"]) == (tool, n)), None)) for n in pairs]
            lines.append(f"| {network} ({own[0]['jobs']}) | {tool} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _sweep_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["tool"] == "rlmech":
        rate = row["rows_per_second"] / 1e6
        return f"{row['milliseconds']:.2f} ms, {rate:.2f} M rows/s, {row['times_floor']:.1f} x floor"
    ratio = f"{row['times']:.1f} x [{row['times_low']:.1f} {row['times_high']:.1f}]"
    return ratio if row["aim"] is None else f"**{ratio}** ({'≥' if row['times'] >= row['aim'] else '<'} {row['aim']})"


def plain_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per row, a column per key."""
    keys = list(rows[0])
    lines = ["| " + " | ".join(key.replace("_", " ") for key in keys) + " |", "|" + "---|" * len(keys)]
    for row in rows:
        values = (f"{row[key]:.3g}" if isinstance(row[key], float) else str(row[key]) for key in keys)
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def startup_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line per thing that happens once."""
    lines = ["| | CPU seconds | ratio | aim |", "|---|---|---|---|"]
    for row in rows:
        ratio = f"{row['ratio']:.2f} [{row['ratio_low']:.2f} {row['ratio_high']:.2f}]" if "ratio" in row else ""
        aim = "" if row["target"] is None else f"{row['target']:g}"
        lines.append(f"| {row['what']} | {row['seconds']:.2f} | {ratio} | {aim} |")
    return "\n".join(lines)


def save(name: str, *, rows: Sequence[dict[str, Any]], table: str, where: Path = RESULTS) -> list[Path]:
    """Write `name.json` and `name.md`."""
    where.mkdir(parents=True, exist_ok=True)
    facts = machine()
    data, page = where / f"{name}.json", where / f"{name}.md"
    data.write_text(json.dumps({"machine": facts, "rows": list(rows)}, indent=1) + "\n")
    absent = f"\nNot installed, so not measured: {', '.join(facts['absent'])}.\n" if facts["absent"] else ""
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items() if number)
    page.write_text(f"{table}\n\n{facts['processor']}, {facts['threads']} thread, {versions}.\n{absent}")
    return [data, page]


def _cell(row: dict[str, Any]) -> str:
    figure = f"{row['ratio']:.2f} [{row['ratio_low']:.2f} {row['ratio_high']:.2f}]"
    if row["target"] is None:
        return figure
    aim = row["target"]
    sign = "≤" if row["ratio"] <= aim else "≈" if row["ratio_low"] <= aim else ">"
    return f"**{figure}** {sign} {aim:.2f}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
