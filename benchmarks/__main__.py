"""`python -m benchmarks [suite ...] [--rounds 40]`: measure, print tables, write benchmarks/results."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch

from benchmarks import (
    affine,
    certify,
    closed_loops,
    episodes,
    features,
    forward,
    known_circuits,
    startup,
    sweeps,
    tables,
)

SUITES = ("forward", "startup", "sweeps", "affine", "certify", "certify_soundness", "features", "episodes",
          "closed_loops", "known_circuits")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suites", nargs="*", default=SUITES, help=f"any of {', '.join(SUITES)}; all by default")
    parser.add_argument("--rounds", type=int, default=40, help="interleaved rounds of each measurement")
    parser.add_argument("--out", type=Path, default=tables.RESULTS, help="where the tables and the JSON go")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.suites) - set(SUITES))
    if unknown:
        parser.error(f"no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="(transformer_lens|nnsight|pyvene|transformers).*")
    for peer in tables.absent_peers():
        print(f"{peer} is not installed and is skipped: pip install -r benchmarks/requirements-peers.txt")
    if "forward" in arguments.suites:
        rows = list(forward.measure(rounds=arguments.rounds))
        _finish("forward", rows, tables.forward_table(rows), arguments.out)
    if "startup" in arguments.suites:
        rounds = max(3, arguments.rounds // 4)
        rows = [*startup.measure_import(rounds=rounds), *startup.measure_wrap(rounds=rounds)]
        _finish("startup", rows, tables.startup_table(rows), arguments.out)
    if "sweeps" in arguments.suites:
        rows = list(sweeps.measure(rounds=arguments.rounds))
        _finish("sweeps", rows, tables.sweep_table(rows), arguments.out)
        for name, measured in (
            ("attribution", sweeps.attribution(rounds=arguments.rounds)),
            ("sweep_growth", sweeps.growth(rounds=arguments.rounds)),
            ("sweep_memory", sweeps.memory()),
        ):
            rows = list(measured)
            _finish(name, rows, tables.plain_table(rows), arguments.out)
    few = max(3, arguments.rounds // 8)
    plain = {
        "affine": lambda: affine.measure(rounds=max(5, arguments.rounds // 4)),
        "certify": certify.measure,
        "certify_soundness": certify.soundness,
        "features": features.measure,
        "closed_loops": lambda: closed_loops.measure(rounds=few),
        "known_circuits": known_circuits.measure,
    }
    for name in plain.keys() & set(arguments.suites):
        rows = list(plain[name]())
        drawn = known_circuits.table(rows) if name == "known_circuits" else tables.plain_table(rows)
        _finish(name, rows, drawn, arguments.out)
    if "episodes" in arguments.suites:
        for name, suite in episodes.SUITE.items():
            rows = list(suite(rounds=max(3, arguments.rounds // 4) if name == "episodes_workers" else arguments.rounds))
            _finish(name, rows, tables.plain_table(rows), arguments.out)
        rows = [*episodes.large_store(), *episodes.writing()]
        _finish("episodes_store", rows, tables.plain_table(rows), arguments.out)


def _finish(name: str, rows: list[dict[str, object]], table: str, where: Path) -> None:
    print(f"\n{table}\n")
    print("written:", *tables.save(name, rows=rows, table=table, where=where))


if __name__ == "__main__":
    main()
