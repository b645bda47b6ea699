"""Table B: single units in the states that an agent meets, each number beside that of networks with fresh weights."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rlmech.atlas.agents import Agent, random_episodes
from rlmech.atlas.identity import hidden_weights
from rlmech.atlas.measures import (
    effective_rank,
    gaussian_rank,
    participation_ratio,
    rank_correlation,
    smallest_keeping,
)
from rlmech.atlas.sizes import Sizes
from rlmech.atlas.states import Inside, States, unit_of
from rlmech.core.policy import HookedPolicy
from rlmech.metrics import Metric, action_flip, action_gap
from rlmech.metrics.measure import MetricContext
from rlmech.nets.untrained import untrained
from rlmech.patching import ablation_sweep
from rlmech.untyped import JsonObject

SATURATED = 0.99
KINDS: tuple[Literal["mean", "zero", "resample"], ...] = ("mean", "zero", "resample")


def unit_row(agent: Agent, states: States, sizes: Sizes) -> JsonObject:
    """The row of an agent, and under `units` one for each of its units."""
    own, per_unit = measured(agent.policy, states.raw, states.idle)
    own |= _after_random_actions(agent, states, sizes)
    twins = [measured(untrained(agent.policy, 1 + k), states.raw, states.idle)[0] for k in range(sizes.n_untrained)]
    row: JsonObject = {"n_units": len(per_unit), "idle": float(states.idle.mean()), **own}
    row["dimension_obs"] = participation_ratio(states.seen)
    row["dimension_obs_raw"] = participation_ratio(states.raw.astype(float))
    row["n_features"] = states.raw.shape[1]
    for name in own:
        values = [twin[name] for twin in twins if twin.get(name) is not None]
        if values and not isinstance(values[0], bool | str):
            row[f"{name}_untrained"] = float(np.mean(values))
    return row | {"units": per_unit}


def measured(policy: HookedPolicy, raw: Any, idle: np.ndarray) -> tuple[JsonObject, list[JsonObject]]:
    """The numbers of a policy in some states; those of its outputs, and those of each unit."""
    inside = Inside.of(policy, raw)
    row: JsonObject = {}
    for number, (layer, kind) in enumerate(zip(inside.layers, inside.kinds, strict=True), start=1):
        values = inside.values(number - 1)
        if kind == "tanh":
            row[f"saturated_{number}"] = float((np.abs(values) > SATURATED).mean())
        if kind == "relu":
            row[f"dead_{number}"] = float((values == 0).all(0).mean())
        row[f"width_{number}"] = policy.hook_dict[layer].size("neuron")
    if not inside.units:
        return row, []
    row["dimension_last"] = participation_ratio(inside.values(len(inside.layers) - 1))
    row |= _ranks(policy, inside)
    units: list[JsonObject] = [
        {"layer": inside.layers.index(site.name) + 1, "unit": unit_of(site)} for site in inside.units
    ]
    changes = {kind: change_of_units(policy, raw, inside, kind=kind) for kind in KINDS}
    mean = changes["mean"].mean(1)
    if policy.output_kind == "mean_action":
        mean = np.sqrt(mean)
    else:
        gap = ablation_sweep(policy, raw, sites=inside.units, metric=action_gap(), reference=inside.cache)
        moved = np.abs(gap["patched"].values - gap["baseline"].values).mean(1)
        ranked = [inside.units[i] for i in np.argsort(-moved, kind="stable")]
        kept = smallest_keeping(policy, raw, ranked=ranked, reference=inside.cache)
        flips = {kind: change.mean(1) for kind, change in changes.items()}
        pairs = (("mean", "zero"), ("mean", "resample"), ("zero", "resample"))
        between = [rank_correlation(flips[a], flips[b]) for a, b in pairs]
        tops = [set(np.flatnonzero(flip == flip.max()).tolist()) for flip in flips.values()]
        row |= {
            "silent": float((changes["mean"].max(1) == 0).mean()),
            "silent_moving": float((changes["mean"][:, ~idle].max(1, initial=0.0) == 0).mean()),
            "kept": kept,
            "kept_share": kept / len(ranked),
            "most_flips": float(mean.max()),
            "most_flips_moving": float(changes["mean"][:, ~idle].mean(1).max()) if (~idle).any() else None,
            "ablations_agree": bool(set.intersection(*tops)),
            "ablations_correlate": float(np.nanmean(between)) if np.isfinite(between).any() else None,
        }
        for unit, change in zip(units, moved, strict=True):
            unit["gap_change"] = float(change)
    for kind, change in changes.items():
        for unit, value in zip(units, mean if kind == "mean" else change.mean(1), strict=True):
            unit[f"change_{kind}"] = float(value)
    return row, units


def change_of_units(
    policy: HookedPolicy, raw: Any, inside: Inside, *, kind: Literal["mean", "zero", "resample"] = "mean"
) -> np.ndarray:
    """What ablating each unit does in each state, `[unit row]`.

    Returns:
        1 where another action is the best; of continuous actions the squared change of the clipped action over the
        mean squared spread of the clipped action in these states.
    """
    metric = action_flip() if policy.output_kind != "mean_action" else relative_change(policy)
    cached = None if kind == "zero" else inside.cache
    found = ablation_sweep(policy, raw, sites=inside.units, kind=kind, metric=metric, reference=cached)
    return found["patched"].values


def relative_change(policy: HookedPolicy) -> Metric:
    """Squared change of a clipped continuous action, over the mean square of how it varies in the unedited runs."""
    low = torch.as_tensor(getattr(policy.action_space, "low", -torch.inf)).double()
    high = torch.as_tensor(getattr(policy.action_space, "high", torch.inf)).double()

    def clipped(scores: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(scores.double(), low), high)

    def prepare(context: MetricContext) -> Any:
        own = clipped(context.clean.scores)
        spread = float(((own - own.mean(0)) ** 2).sum(-1).mean())
        return lambda outputs, pair: ((clipped(outputs.scores) - own[pair]) ** 2).sum(-1) / max(spread, 1e-30)

    return Metric(name="relative_change", unit="fraction", prepare=prepare)


def _ranks(policy: HookedPolicy, inside: Inside) -> JsonObject:
    """Effective ranks of the second layer's weights and of their product with the first's, over chance."""
    if len(inside.layers) < 2:
        return {}
    first, second = hidden_weights(policy, inside.layers)[:2]
    a, b = (second.shape[0], second.shape[1]), (first.shape[0], first.shape[1])
    return {
        "rank_2": effective_rank(second) / gaussian_rank(a),
        "rank_21": effective_rank(second @ first) / gaussian_rank(a, b),
    }


def _after_random_actions(agent: Agent, states: States, sizes: Sizes) -> JsonObject:
    """Of the units that are dead in the agent's own states, the share that lives where actions are drawn."""
    own = Inside.of(agent.policy, states.raw)
    if "relu" not in own.kinds:
        return {}
    seen = random_episodes(agent.env, range(sizes.state_seeds), n_steps=sizes.n_states)[1]
    rows = np.linspace(0, len(seen) - 1, sizes.n_states).round().astype(int)
    other, row = Inside.of(agent.policy, seen[rows]), JsonObject()
    for number, kind in enumerate(own.kinds):
        dead = (own.values(number) == 0).all(0)
        if kind == "relu":
            lives = (other.values(number) != 0).any(0)
            row[f"revived_{number + 1}"] = float(lives[dead].mean()) if dead.any() else None
            row[f"dead_random_{number + 1}"] = float((~lives).mean())
    return row
