"""What it does: which action in which scene, and what it would do were the vehicle ahead nearer or farther."""

from __future__ import annotations

from typing import Any

import figures
import numpy as np
from network import Shown, panel
from scenes import BESIDE, LANE, Data, scene

import rlmech as rlm

N_LANES = 3
LANES = {-2: "two lanes to the left", -1: "the lane to the left", 0: "the ego's lane", 1: "the lane to the right",
         2: "two lanes to the right"}  # fmt: skip
MOVES = {"moves left": "LANE_LEFT", "keeps lane and speed": "IDLE", "moves right": "LANE_RIGHT", "faster": "FASTER",
         "slower": "SLOWER"}  # fmt: skip
SLOWER_BY = 8.0  # m/s
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
        "vehicle ahead made otherwise: share of actions that change": leader_compared(data),
        "lane changes": stays(data),
    }  # fmt: skip
    aside = nearest_aside(data)
    where_to = {offset: moves(policy, obs) for offset, obs in aside.items()}
    numbers["nearest vehicle put into"] = {
        LANES[offset]: {"states": len(aside[offset])} | row for offset, row in where_to.items()
    }
    panels = (
        panel("Actions by scene", "Share of states in which each action is best.",
              figures.grid(np.array(list(table.values())), x=actions, y=list(table), titles=("action", ""),
                           unit="share", height=420, limit=1)),
        panel("The vehicle ahead, moved", f"{len(where)} states with a vehicle ahead in the lane; it alone is put at "
              "other distances, and the rows are ordered by distance again, as the environment orders them.",
              figures.shares(DISTANCES, choices, actions, titles=("distance of the vehicle ahead [m]",
                                                                   "share of states"))),
        panel("The nearest vehicle, put into another lane", "Its place along the road and all other vehicles are kept.",
              figures.grid(np.array([list(row.values()) for row in where_to.values()]), x=list(MOVES),
                           y=[LANES[offset] for offset in where_to], titles=("what it then does", ""), unit="share",
                           height=340, limit=1)),
    )  # fmt: skip
    return rlm.plot.Section(title="What it does", panels=panels), numbers


def leaders(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """States with a vehicle ahead in the ego's lane, by number, and the row of the nearest such vehicle."""
    x, y, there = (data.physical(name)[:, 1:] for name in ("x", "y", "presence"))
    ahead = (there >= 0.5) & (np.abs(y) < BESIDE) & (x > 0)
    where = np.flatnonzero(ahead.any(1))
    return where, np.where(ahead, x, np.inf)[where].argmin(1) + 1


def leader_moved(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Those states with that vehicle at each distance, `[distance, state, entity, feature]`, and their numbers.

    Only its x is another; rows are ordered by distance again.
    """
    where, leader = leaders(data)
    place = data.place("x")
    moved = np.repeat(data.seen[where][None], len(DISTANCES), axis=0)
    at = data.policy.spec.features[place].normalised(DISTANCES)
    moved[:, np.arange(len(where)), leader, place] = at[:, None]
    far = np.where(moved[..., 1:, data.place("presence")] >= 0.5, np.abs(moved[..., 1:, place]), np.inf)
    order = far.argsort(-1, kind="stable")
    moved[..., 1:, :] = np.take_along_axis(moved[..., 1:, :], order[..., None], axis=-2)
    return moved, where


def leader_compared(data: Data) -> dict[str, float]:
    """How often the action changes with the speed of the vehicle ahead, and with its distance."""
    where, leader = leaders(data)
    place = data.place("vx")
    moved, _ = leader_moved(data)
    near, far = (moved[DISTANCES.tolist().index(distance)] for distance in (25.0, 50.0))
    slow, even = (data.seen[where].copy() for _ in range(2))
    for seen, speed in ((slow, -SLOWER_BY), (even, 0.0)):
        at = data.policy.spec.features[place].normalised(np.full(len(where), speed))
        seen[np.arange(len(where)), leader, place] = at

    def changed(a: np.ndarray, b: np.ndarray) -> float:
        return float((data.policy.predict(a)[0] != data.policy.predict(b)[0]).mean())

    return {"as fast as the ego, or 8 m/s slower": changed(even, slow), "at 25 m, or at 50 m": changed(near, far)}


def nearest_aside(data: Data) -> dict[int, np.ndarray]:
    """The states with row 1, the nearest vehicle, in each lane of the road, by that lane's offset from the ego's."""
    policy, seen = data.policy, data.seen
    place = data.place("y")
    own = scene(policy, seen)["lane"]
    there = seen[:, 1, data.place("presence")] >= 0.5
    found: dict[int, np.ndarray] = {}
    for offset in sorted(LANES):
        rows = there & (own + offset >= 0) & (own + offset <= N_LANES - 1)
        if rows.any():
            found[offset] = seen[rows].copy()
            at = policy.spec.features[place].normalised(np.full(rows.sum(), offset * LANE))
            found[offset][:, 1, place] = at
    return found


def moves(policy: rlm.HookedPolicy, seen: np.ndarray) -> dict[str, float]:
    """Share of states by what the chosen action does; a change to a lane that is not there keeps the lane."""
    actions = policy.spec.actions
    chosen = [actions[i] for i in policy(seen).detach().numpy().argmax(1)]
    lane = scene(policy, seen)["lane"]
    edge = {"LANE_LEFT": 0, "LANE_RIGHT": N_LANES - 1}
    done = ["IDLE" if edge.get(action) == own else action for action, own in zip(chosen, lane, strict=True)]
    return {move: done.count(action) / len(done) for move, action in MOVES.items()}


def stays(data: Data) -> dict[str, dict[str, float]]:
    """For each lane and lane change: how often it was recorded, and how often the lane was the same a step later."""
    lane = scene(data.policy, data.seen)["lane"]
    taken, follows = np.asarray(data.fast.actions)[:-1], data.episode[1:] == data.episode[:-1]
    found: dict[str, dict[str, float]] = {}
    for action in ("LANE_LEFT", "LANE_RIGHT"):
        for number, name in enumerate(("left", "middle", "right")):
            rows = follows & (taken == data.policy.spec.actions.index(action)) & (lane[:-1] == number)
            same = float((lane[1:] == lane[:-1])[rows].mean()) if rows.any() else float("nan")
            found[f"{action} in the {name} lane"] = {"states": int(rows.sum()), "same lane a step later": same}
    return found


def _shares(best: np.ndarray, n_actions: int) -> list[float]:
    return [float(share) for share in np.bincount(best, minlength=n_actions) / len(best)]
