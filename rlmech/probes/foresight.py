"""Does a policy know now what will be done, or happen, some steps later, beyond what it has been shown?

    score of y(t + k) read off a site at t,   beside the same probe on everything else that is known at t

A policy that draws nothing holds no more than all that it has observed. What a probe can find beyond the observation is
therefore one of three things: a memory of what is out of sight, a computation that a probe of the observation does not
make, or persistence, for what is done now is often done again. Each has its control here. Cost: that of `fit_probe` for
each number of steps, and of four controls more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np
import pandas as pd
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError
from rlmech.nets.untrained import untrained
from rlmech.patching.sites import Sites, choose_sites, site_coordinates
from rlmech.probes.cross_validation import CrossValidation, Method, Scored
from rlmech.probes.states import recorded
from rlmech.probes.targets import Labels, Target, read_targets
from rlmech.results import storable
from rlmech.statistics import bootstrap_ratio
from rlmech.untyped import Variables

CONTROLS = ("trained", "observation", "history", "decision", "untrained", "shuffled", "episode_mean")
"""The policy, and all that its score must be held against."""
BEATEN = ("observation", "history", "decision", "untrained")
N_RANDOM = 256
"""Random ReLU features of the observations' history, which let its probe compute what is not linear in it."""


@explain_misuse
def planning(
    policy: HookedPolicy,
    recording: Recording,
    *,
    target: Target = "action",
    horizon: int = 8,
    sites: Sites = "auto",
    n_history: int = 4,
    method: Method = "linear",
    n_folds: int = 5,
    n_controls: int = 5,
    n_untrained: int = 3,
    seed: int = 0,
) -> xr.Dataset:
    """How well what comes some steps later can be read off each site, and off all else that is known by then.

    Args:
        policy: The policy that was recorded. With a memory, it is run over each episode from its beginning.
        recording: Its episodes.
        target: What comes: a column of `recording.steps` such as `action` or `crashed`, a function of the recording, or
            what `within` makes. One value a step.
        horizon: Steps ahead, from 1 to this.
        sites: Where, as in sweeps.
        n_history: Observations that the control `history` sees, this step's among them.
        method: As in `fit_probe`.
        n_folds: Folds of whole episodes.
        n_controls: Times that the labels are shuffled.
        n_untrained: Networks of the same architecture with fresh weights, run over the same episodes.
        seed: Of folds, shuffles, fresh weights, random features and the bootstrap.

    Returns:
        By `site`, `step` (how many ahead) and `control`: `score` (R2 of a number, balanced accuracy of a class) with
        `score_low`, `score_high` (95 %, over episodes), and `advantage`, the policy's score less the control's, with
        interval. Controls: `trained`, the policy itself; `observation`, this step's; `history`, the last few and random
        ReLU features of them; `decision`, this step's scores and action, so what is done over and over is no plan;
        `untrained`; `shuffled`; `episode_mean`. `says[site, step]` in words: *foreseen* is what is read better than
        chance, *better than from every control* what beats observation, history, decision and untrained networks.
        `n_rows[step]`: steps that have one so far ahead.

    Raises:
        ConfigError: A horizon beyond the episodes, a target of several values a step, or what `fit_probe` refuses.
        RecordingError: The recording is of another policy.
        SiteError: No such site.

    Source:
        Controls after Hewitt and Liang 2019, arXiv 1909.03368; the question after Bush et al. 2025, *Interpreting
        Emergent Planning in Model-Free Reinforcement Learning*, arXiv 2504.01871.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(10), progress=False)
        >>> angle = {"angle": lambda r: r.observations[:, 2]}
        >>> found = rlm.probes.planning(policy, recording, target=angle["angle"], horizon=2, sites="0.hook_out")
        >>> found["score"].dims, "every control" in str(found["says"].values[0, 0])  # all of it is in the observation
        (('site', 'step', 'control'), False)
    """
    if method not in get_args(Method) or horizon < 1 or n_history < 1:
        raise ConfigError(
            "What is ahead is at least one step away, and a history holds at least this step.",
            given=f"horizon={horizon}, n_history={n_history}, method={method!r}",
            expected="1 or more of both, and the method linear or logistic",
            fix="horizon=8, n_history=4, method='linear'",
        )
    recording.check_policy(policy)
    chosen = choose_sites(policy, sites)
    episode = recording.steps["episode"].to_numpy()
    fit = CrossValidation(method=method, n_folds=n_folds, n_controls=n_controls, seed=seed, episode=episode)
    ahead = [_ahead(recording, target, k, horizon) for k in range(1, horizon + 1)]
    for one in ahead:
        fit.check(one)
    known = _known(policy, recording, n_history, seed)
    shown = {name: [fit.all(x, [one])[one.name] for one in ahead] for name, x in known.items()}
    means = [fit.episode_mean(one) for one in ahead]
    twins = [untrained(policy, seed + 1 + number) for number in range(n_untrained)]
    score = np.full((len(chosen), horizon, len(CONTROLS), 3), np.nan)
    advantage = np.full_like(score, np.nan)
    says = np.empty((len(chosen), horizon), dtype=object)
    for place, site in enumerate(chosen):
        x, fresh = recorded(policy, recording, site), [recorded(twin, recording, site) for twin in twins]
        for k, one in enumerate(ahead):
            own = fit.all(x, [one], shuffle=True)[one.name]
            others = [fit.all(values, [one])[one.name] for values in fresh]
            gained = _gained(own, {name: found[k] for name, found in shown.items()}, others, means[k])
            score[place, k], advantage[place, k] = _scores(one, gained, own.total, seed)
            says[place, k] = _words(one, score[place, k], advantage[place, k])
    variables: Variables = {}
    for name, values in (("score", score), ("advantage", advantage)):
        for suffix, part in zip(("", "_low", "_high"), np.moveaxis(values, 3, 0), strict=True):
            variables[name + suffix] = (("site", "step", "control"), part, {"units": "1"})
    variables["says"] = (("site", "step"), says.astype(str))
    variables["n_rows"] = ("step", [int(np.isfinite(one.values).sum()) for one in ahead])
    coords: Variables = {
        "site": np.arange(len(chosen)),
        "step": ("step", np.arange(1, horizon + 1), {"long_name": "steps ahead"}),
        "control": list(CONTROLS),
        **site_coordinates(policy, chosen),
    }
    attrs = provenance(policy) | {
        "target": ahead[0].name.removesuffix(" +1 steps"),
        "kind": ahead[0].kind,
        "n_history": n_history,
        "n_episodes": len(np.unique(episode)),
        "n_folds": n_folds,
        "n_controls": n_controls,
        "n_untrained": n_untrained,
        "seed": seed,
        "interval": "95 %, bootstrap over episodes",
    }
    return storable(xr.Dataset(variables, coords=coords), attrs)


def _ahead(recording: Recording, target: Target, k: int, horizon: int) -> Labels:
    longest = int(recording.steps.groupby("episode").size().max())
    if k >= longest:
        raise ConfigError(
            "The horizon lies beyond the episodes.",
            given=f"horizon={horizon}, and episodes of {longest} steps at most",
            expected="fewer steps than the episodes have",
            fix=f"horizon={max(1, longest // 2)}",
        )
    (found,) = read_targets(recording, target, step_offset=k)
    if found.values.ndim != 1:
        raise ConfigError(
            "What is foreseen is one value a step.",
            given=f"{found.values.shape[1]} values a step of {found.name!r}",
            expected="one",
            fix="rlm.probes.of_entity(column, row=1) takes one entity's",
        )
    return found


def _known(policy: HookedPolicy, recording: Recording, n_history: int, seed: int) -> dict[str, np.ndarray]:
    """What else is known at each step: the observation, those before it, what is decided now."""
    sites = [Site(name) for name in policy.hook_dict if policy.points[name].kind == "observation"]
    now = np.concatenate([recorded(policy, recording, site) for site in sites], axis=1)
    before = pd.DataFrame(now).groupby(recording.steps["episode"].to_numpy())
    past = np.concatenate([before.shift(k).to_numpy() for k in range(n_history)], axis=1)
    missing = np.isnan(past[:, :: now.shape[1]]).astype(float)  # before the episode began
    history = np.concatenate([np.nan_to_num(past), missing[:, 1:]], axis=1)
    spread = np.where(history.std(0) > 0, history.std(0), 1.0)
    rng = np.random.default_rng([seed, 2])
    weight = rng.normal(size=(history.shape[1], N_RANDOM)) / np.sqrt(history.shape[1])
    random = np.maximum((history - history.mean(0)) / spread @ weight + rng.normal(size=N_RANDOM), 0)
    output = Site(next(name for name, point in policy.hook_dict.items() if point.kind == "output"))
    scores = recorded(policy, recording, output)
    decision = [scores, scores == scores.max(1, keepdims=True)]
    if "action" in recording.steps:
        decision.append(pd.get_dummies(recording.steps["action"].astype(str)).to_numpy())
    return {
        "observation": now,
        "history": np.concatenate([history, random], axis=1),
        "decision": np.concatenate([part.astype(float) for part in decision], axis=1),
    }


def _gained(
    own: Scored, shown: Mapping[str, Scored], fresh: list[Scored], episode_mean: np.ndarray
) -> dict[str, np.ndarray]:
    nothing = np.full_like(own.gained, np.nan)
    return {
        "trained": own.gained,
        **{name: found.gained for name, found in shown.items()},
        "untrained": np.mean([other.gained for other in fresh], axis=0) if fresh else nothing,
        "shuffled": np.mean(own.shuffled, axis=0) if own.shuffled else nothing,
        "episode_mean": episode_mean,
    }


def _scores(
    one: Labels, gained: Mapping[str, np.ndarray], total: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and advantages with their intervals, `[control end]`."""
    rows = np.stack([gained[name] for name in CONTROLS])
    asked = np.concatenate([rows, rows[0] - rows])
    known = np.isfinite(asked).all(1)
    ends = np.full((len(asked), 3), np.nan)
    interval = bootstrap_ratio(asked[known], total, seed=seed)
    ends[known] = np.stack([interval.estimate, interval.low, interval.high], axis=1)
    score, advantage = ends[: len(rows)], ends[len(rows) :]
    return (np.clip(score, 0, 1) if one.kind == "class" else score), advantage


def _words(one: Labels, score: np.ndarray, advantage: np.ndarray) -> str:
    at = {name: place for place, name in enumerate(CONTROLS)}
    if not np.isfinite(score[0, 1]):
        return "too few episodes for an interval"
    chance = 0.0 if one.kind == "number" else 1 / len(one.classes)
    if score[0, 1] <= chance or advantage[at["shuffled"], 1] <= 0:
        return "not foreseen"
    equal = [name for name in BEATEN if not advantage[at[name], 1] > 0]
    if not equal:
        return "foreseen, better than from every control"
    named = {
        "observation": "the observation",
        "history": "the last observations",
        "decision": "the present decision",
        "untrained": "untrained networks",
    }
    return "foreseen, no better than from " + " or ".join(named[name] for name in equal)
