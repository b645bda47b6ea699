"""Table C: each unit at its mean through whole episodes, found on some seeds and measured on others.

The worst and the best unit are chosen by their mean return on the first seeds and measured, paired, on seeds that chose
nothing. How much of the order of units is noise is told by the order's own split-half reliability.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.atlas.agents import Agent, random_episodes
from rlmech.atlas.measures import rank_correlation, share_of_way, split_half
from rlmech.atlas.sizes import Sizes
from rlmech.atlas.states import Inside, States, states_of, unit_of
from rlmech.atlas.units import change_of_units
from rlmech.core.edit import Edit
from rlmech.core.interventions import mean_ablation, resample_ablation, zero_ablation
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes import compare_rollouts, record
from rlmech.nets.untrained import untrained
from rlmech.untyped import JsonObject

LARGE, HALF = 0.1, 0.5


def loop_row(agent: Agent, states: States, sizes: Sizes) -> JsonObject:
    """The row of an agent, and under `units` one for each of its units; empty where it has no hidden unit."""
    policy, inside = agent.policy, Inside.of(agent.policy, states.raw)
    if not inside.units:
        return {"n_units": 0}
    change = change_of_units(policy, states.raw, inside).mean(1)
    losses, way = unit_losses(agent, inside, sizes)
    loss = losses.mean(1)
    chosen = {"worst": int(loss.argmax()), "best": int(loss.argmin()), "most_flips": int(change.argmax())}
    row: JsonObject = {
        "n_units": len(inside.units),
        "n_large": int((loss > LARGE * way).sum()),
        "n_half": int((loss > HALF * way).sum()),
        "n_raising": int((loss < 0).sum()),
        "flips_and_loss": rank_correlation(change, loss),
        "reliability": split_half(losses),
        "most_flips_is_worst": bool(change[chosen["worst"]] == change.max()) if np.ptp(loss) > 0 else None,
        "worst_rank_in_flips": int((change > change[chosen["worst"]]).sum()) + 1,
        "worst_in_last_layer": inside.units[chosen["worst"]].name == inside.layers[-1],
    }
    row |= {name: str(label(inside, place)) for name, place in chosen.items()}
    row |= _measured(agent, inside, sizes, chosen)
    units = [
        {
            "layer": inside.layers.index(site.name) + 1,
            "unit": unit_of(site),
            "loss": float(loss[i]),
            "loss_share": float(loss[i] / way) if way > 0 else None,
            "loss_first_half": float(losses[i, : losses.shape[1] // 2].mean()),
            "loss_second_half": float(losses[i, losses.shape[1] // 2 :].mean()),
        }
        for i, site in enumerate(inside.units)
    ]
    return row | {"units": units}


@explain_misuse
def drive_units(policy: HookedPolicy, env: gym.Env, *, sizes: Sizes | None = None) -> pd.Series:
    """Set each hidden unit to its mean through episodes: which costs most, which helps, and is it so on new seeds?

    Args:
        policy: A policy that sees one array of numbers and has no memory.
        env: Its environment.
        sizes: How many states and seeds; None for those of the published tables.

    Returns:
        What a row of the atlas's closed loops holds: `worst` and `best`, units chosen by their mean return on the first
        seeds, and of each, on seeds that chose nothing, `worst_share` (of the way from the policy down to one that acts
        at random) with `_low` and `_high`, 95 % over seeds; `gain` of the best one in the return's unit; `n_large` and
        `n_half`, units that cost more than a tenth and half of the way where they were chosen; `flips_and_loss`,
        Spearman's correlation over units of offline change and loss, beside `reliability`, that of the loss's own
        halves. `units` is a list with each unit's numbers.

    Raises:
        EnvironmentFitError: The environment is not one for this policy.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> policy, sizes = rlm.HookedPolicy(net, torch.rand(2, 4)), rlm.atlas.Sizes.quick()
        >>> int(rlm.atlas.drive_units(policy, rlm.make_env("CartPole-v1"), sizes=sizes)["n_units"])
        3
    """
    chosen = replace(sizes or Sizes(), return_seeds=0)
    agent = Agent(name="", algorithm="", path=Path(), policy=policy, env=env)
    return pd.Series(loop_row(agent, states_of(agent, chosen), chosen))


def unit_losses(agent: Agent, inside: Inside, sizes: Sizes) -> tuple[np.ndarray, float]:
    """What each unit's mean-ablation costs on the choosing seeds, `[unit seed]`, and the way down to random there."""
    conditions = {str(i): [ablation(inside, i)] for i in range(len(inside.units))}
    found = compare_rollouts(
        agent.policy, agent.env, conditions=conditions, seeds=sizes.choosing, n_resamples=200, progress=False
    )
    returns = found["return"].values
    random = random_episodes(agent.env, sizes.choosing)[0]
    return returns[0] - returns[1:], float(returns[0].mean() - random.mean())


def ablation(inside: Inside, unit: int, kind: str = "mean") -> Edit:
    """The edit that takes a unit out."""
    site: Site = inside.units[unit]
    if kind == "zero":
        return zero_ablation(site)
    return (mean_ablation if kind == "mean" else resample_ablation)(site, reference=inside.cache)


def label(inside: Inside, unit: int) -> str:
    """A unit in words: `layer 2 unit 17`."""
    site = inside.units[unit]
    return f"layer {inside.layers.index(site.name) + 1} unit {unit_of(site)}"


def _measured(agent: Agent, inside: Inside, sizes: Sizes, chosen: dict[str, int]) -> JsonObject:
    """The chosen units on fresh seeds, each under three ablations, beside untrained networks."""
    kinds = {"worst": ("mean", "zero", "resample"), "best": ("mean", "zero", "resample"), "most_flips": ("mean",)}
    conditions = {f"{name} {kind}": [ablation(inside, chosen[name], kind)] for name in kinds for kind in kinds[name]}
    found = compare_rollouts(agent.policy, agent.env, conditions=conditions, seeds=sizes.measuring, progress=False)
    own = found["return"].sel(condition="baseline").values
    random = random_episodes(agent.env, sizes.measuring)[0]
    row: JsonObject = {
        "return": float(own.mean()),
        "return_random": float(random.mean()),
        "way": float(own.mean() - random.mean()),
    }
    for condition in conditions:
        name = condition.removesuffix(" mean").replace(" ", "_")
        share = share_of_way(found["return"].sel(condition=condition).values, agent=own, random=random)
        row |= {
            f"{name}_share": float(share.estimate[0]),
            f"{name}_share_low": float(share.low[0]),
            f"{name}_share_high": float(share.high[0]),
        }
    row |= _gain(found, "best mean")
    row["best_helps"] = row["gain_low"] > 0
    shares = [
        float(share_of_way(_returns(agent, 1 + k, sizes), agent=own, random=random).estimate[0])
        for k in range(sizes.n_untrained)
    ]
    row["untrained_share"] = float(np.mean(shares)) if shares else None
    return row


def _gain(found: xr.Dataset, condition: str) -> JsonObject:
    one = found.sel(condition=condition)
    return {f"gain{end}": float(one[f"delta_return{end}"]) for end in ("", "_low", "_high")}


def _returns(agent: Agent, seed: int, sizes: Sizes) -> np.ndarray:
    """What a network with fresh weights returns."""
    recording = record(untrained(agent.policy, seed), agent.env, seeds=sizes.measuring, progress=False)
    return recording.episodes["return"].to_numpy(dtype=float)
