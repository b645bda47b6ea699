"""Two policies on the same states: how alike they represent them, and how often they do the same.

What stands beside each number says what it would be by chance: networks of the second's shape with fresh weights, and
agreement of two policies that draw their actions independently, each as often as it takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.many_rows import scores_of, values_at
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.core.provenance import provenance
from rlmech.core.site import Site
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError, RecordingError
from rlmech.features.rows import States, states_of
from rlmech.nets.untrained import untrained
from rlmech.patching.sites import choose_sites
from rlmech.patching.sweeps.independence import refuse_train_mode
from rlmech.results import storable
from rlmech.similarity.measures import Sums, canonical_correlation, jackknife, linear_cka, shared_neighbours
from rlmech.statistics import bootstrap_mean
from rlmech.untyped import JsonObject, Variables

COMPARED = ("other", "untrained")
Pairs = Sequence[str | Site] | Mapping[str, str] | None


@explain_misuse
def compare_policies(
    a: HookedPolicy,
    b: HookedPolicy,
    states: Recording | Observation,
    *,
    sites: Pairs = None,
    n_states: int = 1000,
    n_neighbours: int = 10,
    n_untrained: int = 3,
    clusters: Any = None,
    seed: int = 0,
) -> xr.Dataset:
    """How alike two policies represent the same states, and how often they do the same there.

    Args:
        a: A policy of discrete actions.
        b: Another that takes the same observations and has the same actions.
        states: A recording of one of them, or observations.
        sites: Hook points (or sites) that both have, or a mapping of a's names to b's; None for all activations and
            linear layers whose names they share. They may be of different width.
        n_states: States that are compared, drawn at random.
        n_neighbours: Nearest states that are looked at.
        n_untrained: Networks of b's shape with fresh weights.
        clusters: A label for each state, say its episode, where observations are given.
        seed: Of the draw, the fresh weights and the bootstrap.

    Returns:
        By `site` and `compared` (`other`, b; `untrained`, its floor, the mean of several): `cka`, `cca`, `neighbours`,
        from 0 to 1, each with `_low`, `_high` (95 %, over episodes), and `cka_advantage[site]`, b's less the floor's,
        likewise; `cka_highest_untrained[site]`, since fresh networks differ among themselves, which no interval over
        episodes tells; coordinates `hook_a`, `hook_b`.
        Of the decisions: `agreement[compared]` with interval, `chance[compared]`, what it would be
        if both drew their actions independently as often as they take them, and `kappa[compared]`, the share of what
        chance leaves.

    Raises:
        ConfigError: Other observations or actions, continuous actions, several choices, memory, one episode only, no
            common site, or a site that never changes.
        RecordingError: The recording is of neither.

    Source:
        Kornblith et al. 2019, arXiv 1905.00414 (CKA); Raghu et al. 2017, arXiv 1706.05806 (SVCCA); Cohen 1960 (kappa).

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> found = rlm.similarity.compare_policies(policy, policy, torch.randn(50, 4), sites=["1.hook_out"])
        >>> round(float(found["cka"].sel(compared="other").item()), 6), float(found["agreement"].sel(compared="other"))
        (1.0, 1.0)
    """
    check_pair(a, b)
    known = shared_states(a, b, states, clusters)
    pairs = _pairs(a, b, sites)
    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(len(known))[:n_states])
    obs, episode = known.rows(drawn), known.episode[drawn]
    _check(episode, n_neighbours, n_untrained)
    twins = [untrained(b, seed + 1 + k) for k in range(n_untrained)]
    data = {name: np.full((len(pairs), 2, 3), np.nan) for name in ("cka", "cca", "neighbours")}
    advantage = np.full((len(pairs), 3), np.nan)
    highest = np.full(len(pairs), np.nan)
    for place, (site, other) in enumerate(pairs):
        x = _values(a, obs, site)
        ys = [_values(policy, obs, other) for policy in (b, *twins)]
        sums = [Sums.of(x, y, episode) for y in ys]
        for name, statistic in (("cka", linear_cka), ("cca", canonical_correlation)):
            data[name][place, 0] = jackknife(sums[:1], statistic)
            data[name][place, 1] = jackknife(sums[1:], statistic)
        advantage[place] = jackknife(sums[1:], linear_cka, less=sums[0])
        highest[place] = max(linear_cka(*one.covariances()) for one in sums[1:])
        near = np.stack([shared_neighbours(x, y, episode, n_neighbours) for y in ys])
        found = bootstrap_mean(np.stack([near[0], near[1:].mean(0)]), clusters=episode, seed=seed)
        data["neighbours"][place] = np.stack([found.estimate, found.low, found.high], axis=1)
    variables: Variables = {}
    for name, values in data.items():
        for end, part in zip(("", "_low", "_high"), np.moveaxis(values, 2, 0), strict=True):
            variables[name + end] = (("site", "compared"), part, {"units": "1"})
    for end, part in zip(("", "_low", "_high"), advantage.T, strict=True):
        variables["cka_advantage" + end] = ("site", part, {"units": "1"})
    variables["cka_highest_untrained"] = ("site", highest, {"units": "1"})
    variables |= _decisions(a, [b, *twins], obs, episode, seed)
    coords: Variables = {
        "compared": list(COMPARED),
        "hook_a": ("site", [str(site) if site.selection else site.name for site, _ in pairs]),
        "hook_b": ("site", [str(site) if site.selection else site.name for _, site in pairs]),
    }
    attrs = provenance(a) | {"other_policy": b.fingerprint, "n_states": len(drawn), "n_neighbours": n_neighbours}
    attrs |= {"n_untrained": n_untrained, "n_episodes": len(np.unique(episode)), "seed": seed}
    attrs |= {"interval": "over episodes: jackknife of cka and cca, bootstrap of neighbours, Wilson's of agreement"}
    return storable(xr.Dataset(variables, coords=coords), attrs)


def check_pair(a: HookedPolicy, b: HookedPolicy) -> None:
    """Refuse policies that cannot be asked about the same states, or do not choose among the same actions."""
    seen = [_observed(policy) for policy in (a, b)]
    actions = [_n_actions(policy) for policy in (a, b)]
    names = [policy.spec.actions for policy in (a, b)]
    problems = [
        (
            any(p.output_kind == "mean_action" or p.choices is not None for p in (a, b)),
            "Decisions are compared where one action of several is done.",
            "continuous actions, or several choices",
            "discrete actions, one choice, in both",
            "policy.choice(name) is one of several choices alone",
        ),
        (
            a.is_recurrent or b.is_recurrent,
            "Policies with memory are in states of their own, which the other does not have.",
            "a policy with memory",
            "policies without memory",
            "rlm.compare_rollouts drives one against the other",
        ),
        (
            seen[0] != seen[1],
            "The two policies take different observations.",
            " and ".join(str(one) for one in seen),
            "the same shapes under the same names",
            "compare policies of one environment and one observation configuration",
        ),
        (
            actions[0] != actions[1] or (all(names) and names[0] != names[1]),
            "The two policies choose among different actions.",
            " and ".join(f"{n} actions {list(own) or ''}".strip() for n, own in zip(actions, names, strict=True)),
            "the same actions in the same order",
            "compare policies of one environment and one action configuration",
        ),
    ]
    for wrong, message, given, expected, fix in problems:
        if wrong:
            raise ConfigError(message, given=given, expected=expected, fix=fix)
    refuse_train_mode(a)
    refuse_train_mode(b)


def shared_states(a: HookedPolicy, b: HookedPolicy, states: Recording | Observation, clusters: Any) -> States:
    """States that either of two policies met.

    Raises:
        RecordingError: The recording is of neither.
    """
    try:
        return states_of(a, states, clusters)
    except RecordingError:
        return states_of(b, states, clusters)


def _observed(policy: HookedPolicy) -> dict[str, tuple[int | None, ...]]:
    raw = "hook_obs_raw" in policy.hook_dict  # what stands before VecNormalize's statistics is what is given
    return {
        name.replace("_raw", ""): tuple(point.shape[1:])
        for name, point in policy.hook_dict.items()
        if point.kind == "observation" and (not raw or "raw" in name)
    }


def _n_actions(policy: HookedPolicy) -> int:
    point = next(point for point in policy.hook_dict.values() if point.kind == "output")
    return point.size("action") if "action" in point.axes else 0


def _pairs(a: HookedPolicy, b: HookedPolicy, sites: Pairs) -> list[tuple[Site, Site]]:
    if isinstance(sites, Mapping):
        found = [(_one(a, name), _one(b, other)) for name, other in sites.items()]
    elif sites is None:
        kinds = ("activation", "linear", "convolution", "norm")
        common = [name for name, p in a.hook_dict.items() if p.kind in kinds and name in b.hook_dict]
        found = [(Site(name), Site(name)) for name in common]
    else:
        found = [(_one(a, site), _one(b, site)) for site in ([sites] if isinstance(sites, str | Site) else sites)]
    if not found:
        raise ConfigError(
            "The two policies have no hook point of the same name.",
            given=f"{len(a.hook_dict)} and {len(b.hook_dict)} hook points",
            expected="activations with the same names, or a mapping of one's to the other's",
            fix="sites={'q_net.1.hook_out': 'layers.0.hook_out'}",
        )
    return found


def _one(policy: HookedPolicy, site: str | Site) -> Site:
    return choose_sites(policy, [site])[0]


def _values(policy: HookedPolicy, obs: Any, site: Site) -> np.ndarray:
    values = values_at(policy, obs, site).flatten(1).double().cpu().numpy()
    if not np.isfinite(values).all() or not (values != values[:1]).any():
        raise ConfigError(
            f"What stands at {site} says nothing of how alike two policies are.",
            given="infinite activations" if not np.isfinite(values).all() else "the same value in all states",
            expected="finite activations that vary",
            fix="choose other sites, or states that differ",
        )
    return values


def _decisions(a: HookedPolicy, others: Sequence[HookedPolicy], obs: Any, episode: np.ndarray, seed: int) -> JsonObject:
    scores = scores_of(a, obs)
    own, n = scores.argmax(-1).cpu().numpy(), scores.shape[-1]
    done = [scores_of(policy, obs).argmax(-1).cpu().numpy() for policy in others]
    same = np.stack([(own == one).astype(float) for one in done])
    rows = np.stack([same[0], same[1:].mean(0)])
    found = bootstrap_mean(rows, clusters=episode, seed=seed)
    share = np.bincount(own, minlength=n) / len(own)
    chances = [float(share @ (np.bincount(one, minlength=n) / len(one))) for one in done]
    chance = np.array([chances[0], float(np.mean(chances[1:]))])
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.where(chance < 1, (found.estimate - chance) / (1 - chance), np.nan)
    unit = {"units": "fraction"}
    data: Variables = {
        f"agreement{end}": ("compared", part, unit)
        for end, part in (("", found.estimate), ("_low", found.low), ("_high", found.high))
    }
    return data | {"chance": ("compared", chance, unit), "kappa": ("compared", kappa, {"units": "1"})}


def _check(episode: np.ndarray, n_neighbours: int, n_untrained: int) -> None:
    _, sizes = np.unique(episode, return_counts=True)
    others = len(episode) - sizes.max()
    if len(sizes) < 2 or not 1 <= n_neighbours < others or n_untrained < 1:
        raise ConfigError(
            "States are compared with those of other episodes, and with untrained networks.",
            given=f"{len(episode)} states of {len(sizes)} episodes, n_neighbours={n_neighbours}, "
            f"n_untrained={n_untrained}",
            expected="two episodes or more, fewer neighbours than states of other episodes, n_untrained from 1",
            fix="record more episodes, or n_neighbours=3",
        )
