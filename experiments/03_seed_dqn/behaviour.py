"""What it does: which action in which scene, and what it would do were the vehicle ahead nearer or farther."""

from __future__ import annotations

from typing import Any

import figures
import numpy as np
from network import Shown, panel
from scenes import BESIDE, Data, scene

import rlmech as rlm

DISTANCES = np.array([8, 12, 16, 20, 25, 30, 40, 50, 60, 80, 100], dtype=float)  # m


def chosen_where(data: Data) -> Shown:
    """Actions by what is ahead, and by the lane; then the vehicle ahead moved, all else kept."""
    policy, seen = data.policy, data.seen
    actions = list(policy.spec.actions)
    best = policy(seen).detach().numpy().argmax(1)
    quantities = scene(policy, seen)
    gap = quantities["gap ahead"]
    bins = {"no vehicle ahead": np.isnan(gap), "ahead within 25 m": gap < 25, "25 to 50 m": (gap >= 25) & (gap < 50),
            "beyond 50 m": gap >= 50}  # fmt: skip
    lanes = {name: quantities["lane"] == i for i, name in enumerate(("left lane", "middle lane", "right lane"))}
    slow = {"below 25 m/s": quantities["own speed"] < 25, "25 m/s and more": quantities["own speed"] >= 25}
    table = {name: _shares(best[rows], len(actions)) for name, rows in (bins | lanes | slow).items() if rows.any()}
    moved, where = leader_moved(data)
    choices = np.stack([policy(obs).detach().numpy().argmax(1) for obs in moved])
    numbers: dict[str, Any] = {
        "states": {name: int(rows.sum()) for name, rows in (bins | lanes | slow).items()},
        "actions": {name: dict(zip(actions, row, strict=True)) for name, row in table.items()},
        "vehicle ahead moved": {
            "states": len(where),
            **{f"{d:.0f} m": dict(zip(actions, _shares(row, len(actions)), strict=True))
               for d, row in zip(DISTANCES, choices, strict=True)},
        },
        "impossible lane changes": {
            "LANE_LEFT in the left lane": float((best[lanes["left lane"]] == actions.index("LANE_LEFT")).mean()),
            "LANE_RIGHT in the right lane": float((best[lanes["right lane"]] == actions.index("LANE_RIGHT")).mean()),
        },
    }  # fmt: skip
    panels = (
        panel("Actions by scene", "Share of states in which each action is best.",
              figures.grid(np.array(list(table.values())), x=actions, y=list(table), titles=("action", ""),
                           unit="share", height=420, limit=1)),
        panel("The vehicle ahead, moved", f"{len(where)} states with a vehicle ahead in the lane; it alone is put at "
              "other distances, and the rows are ordered by distance again, as the environment orders them.",
              figures.shares(DISTANCES, choices, actions, titles=("distance of the vehicle ahead [m]",
                                                                   "share of states"))),
    )  # fmt: skip
    return rlm.plot.Section(title="What it does", panels=panels), numbers


def leader_moved(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """States with a vehicle ahead in the ego's lane, that vehicle at each distance: `[distance, state, ...]`.

    Only its x is another. States come with their numbers among all states.
    """
    policy, seen = data.policy, data.seen
    names = [feature.name for feature in policy.spec.features]
    place = {name: names.index(name) for name in ("presence", "x", "y")}
    metres = {n: policy.spec.features[place[n]].physical(seen[:, 1:, place[n]]) for n in ("x", "y")}
    ahead = (seen[:, 1:, place["presence"]] >= 0.5) & (np.abs(metres["y"]) < BESIDE) & (metres["x"] > 0)
    where = np.flatnonzero(ahead.any(1))
    leader = np.where(ahead, metres["x"], np.inf)[where].argmin(1) + 1
    moved = np.repeat(seen[where][None], len(DISTANCES), axis=0)
    at = policy.spec.features[place["x"]].normalised(DISTANCES).astype(np.float32)
    moved[:, np.arange(len(where)), leader, place["x"]] = at[:, None]
    far = np.where(moved[..., 1:, place["presence"]] >= 0.5, np.abs(moved[..., 1:, place["x"]]), np.inf)
    order = far.argsort(-1, kind="stable")
    moved[..., 1:, :] = np.take_along_axis(moved[..., 1:, :], order[..., None], axis=-2)
    return moved, where


def _shares(best: np.ndarray, n_actions: int) -> list[float]:
    return [float(share) for share in np.bincount(best, minlength=n_actions) / len(best)]
