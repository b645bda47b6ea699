"""What the pairs are: how many, whom they turn on, and how unusual they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from figures import around_the_ego
from pairs import BRAKE, GO, Pairs, closed_up, scores_of
from places import Places
from tables import quartiles

import rlmech as rlm


def described(
    places: Places, recording: rlm.Recording, kinds: dict[str, Pairs], candidates: np.ndarray
) -> dict[str, Any]:
    """How many pairs, whom they turn on, and how far the corrupt sides are from what occurs."""
    policy, seen = places.policy, recording.observations
    brake, go = (policy.spec.actions.index(action) for action in (BRAKE, GO))
    chosen = scores_of(policy, seen).argmax(1)
    found: dict[str, Any] = {
        "states": len(seen),
        "SLOWER": int((chosen == brake).sum()),
        "FASTER": int((chosen == go).sum()),
        "vehicles tried": len(candidates),
        "without it FASTER": int((candidates[:, 2] == go).sum()),
        "without it IDLE": int((candidates[:, 2] == policy.spec.actions.index("IDLE")).sum()),
        "by place": flips_by_place(policy, seen, candidates),
    }
    usual = closed_up(policy, np.delete(seen, kinds["removed"].state, axis=0))
    for name, pairs in kinds.items():
        gaps = [scores_of(policy, side)[:, [brake, go]] for side in (pairs.clean, pairs.corrupt)]
        found[name] = {
            "pairs": len(pairs),
            "episodes": len(np.unique(pairs.episode)),
            "gap clean, corrupt": [float((gap[:, 0] - gap[:, 1]).mean()) for gap in gaps],
        }
        if name in ("removed", "replaced"):  # the others are recorded states
            found[name]["off-manifold percentile, quartiles"] = off_manifold(places, pairs, usual)
    return found


def off_manifold(places: Places, pairs: Pairs, usual: np.ndarray) -> dict[str, list[float]]:
    """How unusual clean and corrupt observations are, and the head outputs of a patch."""
    clean, corrupt = (closed_up(places.policy, side) for side in (pairs.clean, pairs.corrupt))
    z, found = places.block.names["z"], {}
    judged = [("hook_obs", rlm.Site("hook_obs")), ("hook_z", rlm.Site(z))]
    judged += [(f"hook_z, head {h} patched", places.head("z", h)) for h in places.heads]
    for name, site in judged:
        for side, source in (("clean", clean), ("corrupt", corrupt)):
            if side == "corrupt" or "patched" not in name:
                result = rlm.patching.off_manifold_distance(
                    places.policy, base=clean, source=source, reference=usual, sites=[site]
                )
                found[f"{name}, {side}"] = quartiles(result["percentile"].values)
    return found


def flips_by_place(policy: rlm.HookedPolicy, seen: np.ndarray, candidates: np.ndarray) -> dict[str, list[int]]:
    """For vehicles by place and motion: how many turn SLOWER to FASTER when taken away, of how many."""
    at = around_the_ego(policy, seen[candidates[:, 0]], candidates[:, 1])
    flips = candidates[:, 2] == policy.spec.actions.index(GO)
    turned, distance = (at["heading"] + 45) % 360, np.hypot(at["ahead"], at["left"])
    groups = {
        "ahead, within 15 m": (at["ahead"] > 0) & (distance < 15),
        "ahead, 15 to 30 m": (at["ahead"] > 0) & (distance >= 15) & (distance < 30),
        "ahead, farther": (at["ahead"] > 0) & (distance >= 30),
        "behind": at["ahead"] <= 0,
        "same heading": turned < 90,
        "heading left": (turned >= 90) & (turned < 180),
        "oncoming": (turned >= 180) & (turned < 270),
        "heading right": turned >= 270,
        "standing": at["speed"] < 1,
        "moving": at["speed"] >= 1,
    }
    same = candidates[:, :1] == candidates[:, 0]
    nearer = (same & (distance < distance[:, None])).sum(1)
    groups |= {f"nearest but {rank}": nearer == rank for rank in range(6)}
    return {name: [int((flips & group).sum()), int(group.sum())] for name, group in groups.items()}
