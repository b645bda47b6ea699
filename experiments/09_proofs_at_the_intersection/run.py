"""What can be proved of the intersection policy, around states that it drives into?

    python experiments/09_proofs_at_the_intersection/run.py [--smoke] [--states N] [--boxes N] [--out FOLDER]

Only what `import rlmech` shows. Minutes; `--smoke` takes two states and few cells. Writes `radii.csv` and `map.html`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

import rlmech as rlm

POLICY = "zoo:intersection-ego-attention"
METRES = rlm.certify.Move(features=["x", "y"])


def driven(policy: rlm.HookedPolicy, n: int) -> np.ndarray:
    """States of the policy's own episodes, spread evenly over them."""
    seen = rlm.record(policy, rlm.make_env(policy.spec), seeds=range(max(2, n // 2)), progress=False).observations
    return np.asarray(seen)[np.linspace(1, len(seen) - 1, n).astype(int)]


def radii(policy: rlm.HookedPolicy, states: np.ndarray, *, n_boxes: int) -> xr.Dataset:
    """How many metres each vehicle may stand elsewhere before the action can change."""
    return rlm.certify.certified_radius(policy, states, move=METRES, over="entity", n_boxes=n_boxes)


def nearest(policy: rlm.HookedPolicy, state: np.ndarray) -> str:
    """The vehicle that stands nearest to the ego."""
    there = np.flatnonzero(state[1:, 0] >= 0.5) + 1
    away = np.hypot(*(state[there, 1:3] - state[0, 1:3]).T)
    return policy.spec.entities[int(there[away.argmin()])]


def around(
    policy: rlm.HookedPolicy, state: np.ndarray, vehicle: str, *, half: float, n: int, n_boxes: int
) -> xr.Dataset:
    """The action over where one vehicle stands, cell by cell."""
    place = policy.spec.index("entity", vehicle)
    features = {name: policy.spec.features[policy.spec.index("feature", name)] for name in ("y", "x")}
    seen = {name: state[place, policy.spec.index("feature", name)][None].astype(float) for name in features}
    at = {name: float(feature.physical(seen[name])[0]) for name, feature in features.items()}
    over = {name: np.linspace(value - half, value + half, n + 1) for name, value in at.items()}
    return rlm.certify.certified_map(policy, state[None], over=over, entity=vehicle, n_boxes=n_boxes)


def claims(policy: rlm.HookedPolicy, states: np.ndarray, vehicles: list[str], *, n_boxes: int) -> dict[str, list[str]]:
    """Two claims about the nearest vehicle's place, up to half a metre around where it is."""
    found: dict[str, list[str]] = {"keeps its action": [], "a metre nearer in x raises SLOWER - FASTER": []}
    for state, vehicle in zip(states, vehicles, strict=True):
        box = rlm.certify.Move(features={"x": 0.5, "y": 0.5}, entities=[vehicle], clipped=True)
        own = int(policy(state[None]).argmax())
        place = policy.spec.index("entity", vehicle)
        nearer = -float(np.sign(state[place, 1] - state[0, 1]) or 1)
        step = rlm.certify.Monotone(step={"x": nearer}, entities=[vehicle], better="SLOWER", worse="FASTER")
        for name, claim in zip(found, (rlm.certify.Takes(own), step), strict=True):
            result = rlm.certify.check(policy, state[None], box=box, claim=claim, n_boxes=n_boxes)
            found[name].append(str(result.verdict.values[0]))
    return found


def main() -> None:
    """Radii, a map, claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--states", type=int, default=12)
    parser.add_argument("--boxes", type=int, default=16, help="boxes of branch and bound for each question")
    parser.add_argument("--out", type=Path, default=Path("report/proofs_at_the_intersection"))
    parser.add_argument("--smoke", action="store_true", help="two states and few cells: does it run?")
    given = parser.parse_args()
    n_boxes = 1 if given.smoke else given.boxes
    policy = rlm.load(POLICY)
    states = driven(policy, 2 if given.smoke else given.states)
    vehicles = [nearest(policy, state) for state in states]

    found = radii(policy, states[:1] if given.smoke else states, n_boxes=0 if given.smoke else n_boxes)
    given.out.mkdir(parents=True, exist_ok=True)
    found[["certified", "attacked", "limit"]].to_dataframe().dropna().to_csv(given.out / "radii.csv")
    reached = np.minimum(found.attacked, found.limit)
    print("metres that a vehicle may stand elsewhere, median over states:")
    for name in found.entity.values[:6]:
        one = found.sel(entity=name)
        if np.isfinite(one.certified).any():
            changed = float(np.isfinite(one.attacked.values[np.isfinite(one.certified.values)]).mean())
            print(
                f"  {name:10s} certified {float(one.certified.median()):6.2f}, attacked "
                f"{float(reached.sel(entity=name).median()):6.2f}, a change was found in {changed:.0%}"
            )

    sensitive = int(found.attacked.min("entity").argmin("batch"))
    vehicle = vehicles[sensitive]
    cells = around(policy, states[sensitive], vehicle, half=5.0, n=4 if given.smoke else 16, n_boxes=n_boxes)
    rlm.plot.certified_map(cells).write_html(given.out / "map.html", include_plotlyjs=True)
    shares = {
        word: float((cells.state == kind).mean()) for kind, word in ((1, "proved"), (-1, "changing"), (0, "unknown"))
    }
    print(f"cells around {vehicle} of state {sensitive}:", {word: f"{share:.0%}" for word, share in shares.items()})

    for name, verdicts in claims(policy, states, vehicles, n_boxes=n_boxes).items():
        counts = {word: verdicts.count(word) for word in ("proved", "refuted", "undecided")}
        print(f"{name}, nearest vehicle within half a metre:", counts)


if __name__ == "__main__":
    main()
