"""Probes with their controls: what can be read off a site, and what could have been read without it.

    number: R2 = 1 - sum (y - predicted)^2 / sum (y - mean of the training folds)^2    class: balanced accuracy

Predictions are of rows whose episode no fit has seen, the penalty chosen by inner folds that it has not seen either.
Cost: one pass over the states and K (K + 1) / 2 eigendecompositions for each site, however many targets; the controls
cost the same again for each untrained network. A probe says that something can be read, not that the policy reads it:
`is_used` asks that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np
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
from rlmech.probes.probe import CONTROLS, Probe, Probes
from rlmech.probes.states import entity_axis, recorded
from rlmech.probes.targets import Labels, Target, read_targets
from rlmech.results import storable
from rlmech.untyped import JsonObject, Settings, Variables


@explain_misuse
def fit_probe(
    policy: HookedPolicy,
    recording: Recording,
    *,
    target: Target | Iterable[Target] | Mapping[str, Target],
    sites: Sites = "auto",
    step_offset: int = 0,
    method: Method = "linear",
    n_folds: int = 5,
    n_controls: int = 5,
    n_untrained: int = 3,
    seed: int = 0,
) -> Probes:
    """Fit a probe for every target at every site, with the same probe where it should find nothing or everything.

    Args:
        policy: The policy that was recorded.
        recording: Its episodes.
        target: What to read: a column of `recording.steps` (`ttc`, `action`, `crashed`), a function of the recording,
            what `within`, `of_entity` and `entities` make, several of them, or a mapping of names to them.
        sites: Where, as in sweeps. A hook point's whole value is read, unless the site selects.
        step_offset: Read the target that many steps later in the same episode: does it know before?
        method: `linear`: ridge regression, for classes linear discriminant analysis of equally common classes.
            `logistic`: scikit-learn's, with balanced classes; for classes only, and slower by far.
        n_folds: Folds of whole episodes.
        n_controls: Times that the labels are shuffled.
        n_untrained: Networks of the same architecture with fresh weights.
        seed: Of folds, shuffles, fresh weights and the bootstrap.

    Returns:
        `scores` with dimensions `target`, `site` and `control`: `score` (R2 of a number, balanced accuracy of a class:
        chance is 1 / number of classes), `score_low`, `score_high` (95 %, bootstrap over episodes) for `trained` (the
        policy), `observation` (the same probe on what the policy sees), `untrained`, `shuffled` (means over their
        draws) and `episode_mean` (each episode's own mean or commonest class, which no probe may know);
        `advantage[target, site, control]`, the policy's score minus the control's, with interval; `says[target, site]`
        in words; `kind`, `units`, `n_rows`, `n_left_out`, `commonest` (share of the commonest class) by target;
        `penalty[target, site]`. `probe(target, site)` is the readout itself, with `direction()` and `pattern()`.

    Raises:
        ConfigError: A constant target, one class in a fold, fewer episodes than folds, or no such column.
        RecordingError: The recording is of another policy.
        SiteError: No such site.

    Source:
        Alain and Bengio 2016, arXiv 1610.01644; Hewitt and Liang 2019, *Designing and Interpreting Probes with Control
        Tasks*, arXiv 1909.03368 (selectivity).

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(10), progress=False)
        >>> found = rlm.probes.fit_probe(
        ...     policy, recording, target={"angle": lambda r: r.observations[:, 2]}, sites="0.hook_out"
        ... )
        >>> round(float(found.scores["score"].sel(control="trained").item()), 3)
        1.0
    """
    if method not in get_args(Method):
        raise ConfigError(
            f"There is no method {method!r}.", given=repr(method), expected="linear or logistic", fix="method='linear'"
        )
    chosen = choose_sites(policy, sites)
    recording.check_policy(policy)
    labels = read_targets(recording, target, step_offset=step_offset)
    episode = recording.steps["episode"].to_numpy()
    fit = CrossValidation(method=method, n_folds=n_folds, n_controls=n_controls, seed=seed, episode=episode)
    for one in labels:
        fit.check(one)
    twins = [untrained(policy, seed + 1 + number) for number in range(n_untrained)]
    data: dict[tuple[str, int], JsonObject] = {}
    probes: dict[tuple[str, int], Probe] = {}
    watched = [Site(name) for name in policy.hook_dict if policy.points[name].kind == "observation"]
    seen: dict[bool, dict[str, Scored]] = {}
    episode_means = {one.name: fit.episode_mean(one) for one in labels}
    for number, site in enumerate(chosen):
        for per_entity in sorted({one.values.ndim == 2 for one in labels}):
            group = [one for one in labels if (one.values.ndim == 2) == per_entity]
            per = entity_axis(policy, site, group[0].values.shape[1]) if per_entity else None
            x = recorded(policy, recording, site, per=per)
            trained = fit.all(x, group, shuffle=True)
            fresh = [fit.all(recorded(twin, recording, site, per=per), group) for twin in twins]
            if per_entity not in seen:
                seen[per_entity] = fit.all(_observed(policy, recording, watched, group[0].values), group)
            for one in group:
                scored = trained[one.name]
                key = (one.name, number)
                twin_scores = [other[one.name] for other in fresh]
                data[key] = fit.compare(one, scored, seen[per_entity][one.name], twin_scores, episode_means[one.name])
                shape = tuple(x.shape[2:]) if per_entity else site.block_shape(policy.point(site.name))
                probes[key] = _probe(one, site, scored, x, shape, data[key])
    return Probes(scores=_dataset(policy, chosen, labels, data, fit, n_untrained), _probes=probes)


def _observed(policy: HookedPolicy, recording: Recording, watched: Sequence[Site], values: np.ndarray) -> np.ndarray:
    """What the policy sees, a row a step; for targets by entity, each of the last entities' own features."""
    if values.ndim == 1:
        return np.concatenate([recorded(policy, recording, site) for site in watched], axis=1)
    by_entity = [
        recorded(policy, recording, site, per="entity") for site in watched if "entity" in policy.point(site.name).axes
    ]
    if not by_entity or by_entity[0].shape[1] < values.shape[1]:
        raise ConfigError(
            "The observation has no row for each entity of the target.",
            given=f"{values.shape[1]} values a step",
            expected="as many as the observation has entities, or the last so many of them",
            fix="choose a target of one value a step (rlm.probes.of_entity)",
        )
    return by_entity[0][:, -values.shape[1] :]


def _probe(one: Labels, site: Site, scored: Scored, x: np.ndarray, shape: tuple[int, ...], told: Settings) -> Probe:
    return Probe(
        site=site,
        target=one.name,
        kind=one.kind,
        unit=one.unit,
        classes=one.classes,
        read_out=scored.final,
        covariance=scored.covariance,
        mean=x.reshape(-1, x.shape[-1]).mean(0),
        shape=shape,
        spread=float(np.nanstd(one.values)) if one.kind == "number" else 1.0,
        score=dict(zip(CONTROLS, map(float, told["score"][0]), strict=True)),
        says=str(told["says"]),
    )


def _dataset(
    policy: HookedPolicy,
    sites: Sequence[Site],
    labels: Sequence[Labels],
    data: Mapping[tuple[str, int], Mapping[str, object]],
    fit: CrossValidation,
    n_untrained: int,
) -> xr.Dataset:
    def laid(what: str) -> np.ndarray:
        return np.array([[data[one.name, number][what] for number in range(len(sites))] for one in labels])

    dims = ("target", "site", "control")
    variables: Variables = {}
    for name in ("score", "advantage"):
        values = np.moveaxis(laid(name), 2, 0)
        for suffix, part in zip(("", "_low", "_high"), values, strict=True):
            variables[name + suffix] = (dims, part, {"units": "1"})
    rows = [np.isfinite(one.values) for one in labels]
    common = [
        float(np.bincount(one.values[there].astype(int)).max() / there.sum()) if one.kind == "class" else np.nan
        for one, there in zip(labels, rows, strict=True)
    ]
    variables |= {
        "penalty": (dims[:2], laid("penalty"), {"units": "1", "long_name": "share of the training rows"}),
        "says": (dims[:2], laid("says").astype(str)),
        "n_rows": ("target", [int(there.sum()) for there in rows]),
        "n_left_out": ("target", [int((~there).sum()) for there in rows]),
        "commonest": ("target", common, {"units": "1", "long_name": "share of the commonest class"}),
    }
    coords: Variables = {
        "target": [one.name for one in labels],
        "kind": ("target", [one.kind for one in labels]),
        "target_units": ("target", [one.unit for one in labels]),
        "control": list(CONTROLS),
        "site": np.arange(len(sites)),
        **site_coordinates(policy, sites),
    }
    attrs = provenance(policy) | {
        "method": f"{fit.method} probes, nested cross-validation over episodes",
        "score": "R2 of numbers, balanced accuracy of classes; of episodes that no fit has seen",
        "interval": "95 %, bootstrap over episodes",
        "n_episodes": len(np.unique(fit.episode)),
        "n_folds": fit.n_folds,
        "n_controls": fit.n_controls,
        "n_untrained": n_untrained,
        "seed": fit.seed,
    }
    return storable(xr.Dataset(variables, coords=coords), attrs)
