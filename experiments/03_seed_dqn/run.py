"""A plain DQN perceptron on the highway, opened: every usual step of such an analysis, done right.

    python experiments/03_seed_dqn/run.py [--smoke] [--episodes N] [--out FOLDER]

Writes a page with the figures, `numbers.json` with what the README quotes, and `changes.nc`, what was recorded when the
action changed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import attribution
import behaviour
import episode
import network
import scenes

import rlmech as rlm

STEPS = {
    "weights": network.weights,
    "observation": network.observation,
    "changes": network.action_changes,
    "features": attribution.features,
    "neurons": attribution.neurons,
    "along": episode.along,
    "scene": episode.against_scene,
    "lens": episode.lens,
    "behaviour": behaviour.chosen_where,
}


def main() -> None:
    """Record, compute, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("report/seed_dqn"))
    parser.add_argument("--recordings", type=Path, default=Path("runs/03_seed_dqn"))
    parser.add_argument(
        "--smoke", action="store_true", help="three episodes, five steps on the dense road: does it run?"
    )
    given = parser.parse_args()
    start = time.perf_counter()
    episodes, dense_steps = (3, 5) if given.smoke else (given.episodes, 40)
    data = scenes.load(given.recordings, episodes=episodes, dense_steps=dense_steps)
    print(f"recorded: {time.perf_counter() - start:.0f} s")
    found = scenes.saved(scenes.changes(data.fast, data.policy.spec), given.out / "changes.nc")
    sections: list[rlm.plot.Section] = []
    numbers: dict[str, Any] = {}
    for name, step in STEPS.items():
        shown, numbers[name] = step(data)
        sections.append(shown)
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    facts = [
        ("states", str(len(data.seen))),
        ("episodes", str(len(data.fast))),
        ("changes", str(found.sizes["change"])),
    ]
    page = rlm.plot.page(sections, given.out / "index.html", title="A DQN on the highway, opened", facts=facts)
    (given.out / "numbers.json").write_text(json.dumps(rounded(numbers), indent=1), encoding="utf-8")
    print(f"the page is at {page}, after {time.perf_counter() - start:.0f} s")


def rounded(value: Any) -> Any:
    """Numbers to four digits; what could not be computed is None."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
