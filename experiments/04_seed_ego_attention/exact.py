"""The decisions as exact sums, and the laws that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from subjects import BETTER, WORSE, States, interval, mean_of

import rlmech as rlm

N_FORMS = 4
GROUPS = ("ego", "ahead, to 15 m", "ahead, 15 to 30 m", "ahead, beyond", "behind")


@dataclass(frozen=True)
class Terms:
    """The gap and the better action's score as sums of terms."""

    gap: xr.Dataset
    raw: xr.Dataset

    @classmethod
    def of(cls, states: States) -> Terms:
        """Of all states."""
        obs = states.obs
        return cls(
            rlm.attribute_actions(states.policy, obs, better=BETTER, worse=WORSE),
            rlm.attribute_actions(states.policy, obs, better=BETTER),
        )

    @property
    def vehicles(self) -> np.ndarray:
        """What each other vehicle adds to the gap, `[state head entity feature]`."""
        return _vehicles(self.gap)

    @property
    def raw_vehicles(self) -> np.ndarray:
        """The same for the score of the better action."""
        return _vehicles(self.raw)


def _vehicles(found: xr.Dataset) -> np.ndarray:
    return found.ov.isel(action=0, entity=slice(1, None)).transpose("batch", "head", "entity", "feature").values


def laws(states: States, terms: Terms, paths: xr.Dataset) -> dict[str, float]:
    """The largest error of each identity, over all states (over a few for the forms of attention)."""
    affine, obs = rlm.attribution.local_affine(states.policy, states.obs), states.obs.numpy()
    again = np.einsum("naef,nef->na", affine.jacobian.values, obs) + affine.offset.values
    parts = [terms.gap[name] for name in ("ov", "skip", "bias")]
    summed = sum(part.sum([d for d in part.dims if d not in ("batch", "action")]) for part in parts)
    routes = (paths.features + paths.bias).sum("path")
    q, k = states.split("query_ego")[:, 0], states.split("key_all")
    scores = np.einsum("nhd,nehd->nhe", q, k) * next(iter(states.policy.attention.values())).scale
    shown = np.broadcast_to(states.there[:, None], scores.shape)
    return {
        "scores": float(np.abs(states.scores).max()),
        "recorded q and k give the attention scores": float(np.abs(scores - states.attention_scores)[shown].max()),
        "each state's QK form gives them too": max(_form_error(states, i) for i in range(min(N_FORMS, len(obs)))),
        "J x + c is the scores": float(np.abs(again - states.scores).max()),
        "the terms add up to the gap": float(np.abs(summed.values - terms.gap.total.values).max()),
        "the paths add up to the gap": float(np.abs(routes.values - paths.total.values).max()),
    }


def _form_error(states: States, number: int) -> float:
    """How far the QK form of one state is from the attention scores of that state."""
    one = states.obs[number : number + 1]
    form = rlm.circuits.qk_circuit(states.policy, obs=one).circuit.isel(query=0).transpose("head", "entity", ...).values
    x = np.concatenate([one[0].numpy(), np.ones((one.shape[1], 1))], axis=-1)
    there = states.there[number]
    scores = np.einsum("q,hequ,eu->he", x[0], form[:, there], x[there])
    return float(np.abs(scores - states.attention_scores[number][:, there]).max())


def regions(states: States) -> dict[str, Any]:
    """How many linear regions the episodes pass through."""
    region = rlm.attribution.local_affine(states.policy, states.obs).region.values
    follows = np.flatnonzero(states.episode[1:] == states.episode[:-1])
    changed = (region[follows] != region[follows + 1]).astype(float)
    return {
        "states": len(region),
        "regions": len(np.unique(region)),
        "steps into another region": interval(states.episode[follows], lambda rows: changed[rows].mean()),
    }


def path_shares(states: States, paths: xr.Dataset) -> list[dict[str, Any]]:
    """Each path's mean share in SLOWER and in FASTER states, and of the gap's variance (the shares add up to 1)."""
    features, bias = (paths[part].isel(action=0).transpose("path", "batch").values for part in ("features", "bias"))
    named = {"ego past attention": features[0], "biases past attention": bias[0]}
    named |= {str(name): both for name, both in zip(paths.path.values[1:], (features + bias)[1:], strict=True)}
    total, chosen = paths.total.values[:, 0], states.scores.argmax(1)
    rows: list[dict[str, Any]] = []
    for name, mine in named.items():
        row: dict[str, Any] = {"path": name}
        for action in (WORSE, BETTER):
            row[f"mean in {action} states"] = mean_of(states, np.where(chosen == states.action(action), mine, np.nan))
        row["share of the gap's variance"] = interval(
            states.episode, lambda r, mine=mine: np.cov(mine[r], total[r])[0, 1] / total[r].var(ddof=1)
        )
        rows.append(row)
    return rows


def bias_sources(states: States, terms: Terms) -> xr.DataArray:
    """What each bias adds to the gap, by whatever way, mean over SLOWER and over FASTER states."""
    values, chosen = terms.gap.bias.isel(action=0), states.scores.argmax(1)
    means = [values.isel(batch=np.flatnonzero(chosen == states.action(name))).mean("batch") for name in (WORSE, BETTER)]
    found = xr.concat(means, "states").assign_coords(states=[f"in {WORSE} states", f"in {BETTER} states"])
    short = [".".join(str(name).split(".")[-4:]) for name in found.source.values]
    return found.assign_coords(source=short).transpose("source", "states").rename("mean").assign_attrs(units="return")


def ablated(states: States) -> dict[str, xr.Dataset]:
    """Each head's output replaced by its mean over all states: the gap, and the share of other decisions."""
    z = next(iter(states.policy.attention.values())).names["z"]
    heads = states.policy.sites(z, over="head")
    metrics = {"gap": rlm.metrics.action_gap(BETTER, WORSE), "other decisions": rlm.metrics.action_flip()}
    return {
        name: rlm.ablation_sweep(states.policy, states.obs, sites=heads, kind="mean", metric=metric)
        for name, metric in metrics.items()
    }


def by_head(states: States, found: dict[str, xr.Dataset]) -> list[dict[str, Any]]:
    """The same in numbers, apart for SLOWER and FASTER states, intervals over episodes."""
    chosen = states.scores.argmax(1)
    change = (found["gap"]["patched"] - found["gap"]["baseline"]).transpose("site", "pair").values
    flips = found["other decisions"]["patched"].transpose("site", "pair").values
    rows: list[dict[str, Any]] = []
    for head, (moved, flipped) in enumerate(zip(change, flips, strict=True)):
        row: dict[str, Any] = {"head": head, "other decisions": mean_of(states, flipped.astype(float))}
        for action in (WORSE, BETTER):
            row[f"gap moves in {action} states"] = mean_of(
                states, np.where(chosen == states.action(action), moved, np.nan)
            )
        rows.append(row)
    return rows


def groups_of(states: States) -> np.ndarray:
    """To which of `GROUPS` each row belongs, `[state entity]`, -1 for none."""
    ahead, left = states.places()
    away = np.hypot(ahead, left)
    group = np.select([ahead < 0, away < 15, away < 30, away >= 30], [4, 1, 2, 3], default=-1)
    group[:, 0] = 0
    return group


def looks(states: States, terms: Terms) -> dict[str, xr.DataArray]:
    """Attention and what is said of it, by head and place, mean over the states with a vehicle there."""
    group, coords = groups_of(states), {"head": list(range(states.pattern.shape[1])), "where": list(GROUPS)}
    member = np.stack([group == number for number in range(len(GROUPS))])  # [where state entity]
    any_there = member.any(-1)
    said = terms.gap.ov.isel(action=0).sum("feature").transpose("batch", "head", "entity").values
    here = np.array([states.there.sum(1)]).T
    found: dict[str, xr.DataArray] = {}
    for name, values, unit in (("attention", states.pattern, "1"), ("contribution", said, "return")):
        sums = np.einsum("nhe,wne->hwn", values, member.astype(float))
        means = np.stack([sums[:, w, any_there[w]].mean(1) for w in range(len(GROUPS))], axis=1)
        found[name] = xr.DataArray(means, dims=("head", "where"), coords=coords, attrs={"units": unit}, name=name)
    even = np.stack([(member[w] / here)[any_there[w]].sum(1).mean() for w in range(len(GROUPS))])
    found["if attention were even"] = xr.DataArray(even, dims=("where",), coords={"where": list(GROUPS)})
    return found


def moved_by_the_pattern(states: States) -> xr.Dataset:
    """How the gap changes when a vehicle leaves one head's softmax, mean over the vehicles of a place."""
    effects = rlm.attribution.pattern_effects(states.policy, states.obs, better=BETTER, worse=WORSE).removed_by_head
    values = effects.isel(action=0).transpose("batch", "head", "key").values
    group, coords = groups_of(states), {"head": list(range(values.shape[1])), "where": list(GROUPS)}
    numbers = np.zeros((3, values.shape[1], len(GROUPS)))
    for head, where in np.ndindex(*numbers.shape[1:]):
        here = (group == where) & ~np.isnan(values[:, head])
        size, count = np.where(here, values[:, head], 0).sum(1), here.sum(1)
        numbers[:, head, where] = interval(
            states.episode, lambda rows, s=size, c=count: s[rows].sum() / c[rows].sum() if c[rows].any() else np.nan
        )
    named = dict(zip(("change", "change_low", "change_high"), numbers, strict=True))
    found = xr.Dataset({name: (("head", "where"), array) for name, array in named.items()}, coords=coords)
    found["change"].attrs["units"] = "return"
    return found


def without_vehicles(states: States) -> dict[str, dict[str, list[float]]]:
    """What it chooses in the SLOWER states when vehicles are taken away: their rows zero, as of any absent vehicle."""
    group, chosen = groups_of(states), states.scores.argmax(1) == states.action(WORSE)
    taken = {
        "all": states.there,
        "those ahead, to 15 m": group == 1,
        "those farther ahead": (group == 2) | (group == 3),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name, rows in taken.items():
        gone = torch.as_tensor(rows & (np.arange(rows.shape[1]) > 0))
        with torch.no_grad():
            after = np.asarray(states.policy(torch.where(gone[..., None], 0.0, states.obs))).argmax(1)
        found[name] = {
            action: mean_of(states, np.where(chosen, after == number, np.nan))
            for number, action in enumerate(states.policy.spec.actions)
        }
    return found


def slopes(states: States) -> xr.Dataset:
    """The slope of the gap along each feature of the ego and of the nearest vehicle ahead, in physical units.

    Its mean, its standard deviation over states, and the share of states that have the mean's sign.
    """
    jacobian = rlm.attribution.local_affine(states.policy, states.obs).jacobian
    gap = (jacobian.sel(action=BETTER) - jacobian.sel(action=WORSE)).transpose("batch", "entity", "feature").values
    ahead, left = states.places()
    distance = np.where((ahead > 0) & states.there, np.hypot(ahead, left), np.inf)
    distance[:, 0] = np.inf
    nearest, some = distance.argmin(1), np.isfinite(distance).any(1)
    features = [(n, f) for n, f in enumerate(states.policy.spec.features) if n != states.policy.spec.presence_index]
    per_unit = np.array([float(np.diff(np.asarray(f.physical(np.array([0.0, 1.0]))))[0]) for _, f in features])
    columns = [n for n, _ in features]
    each = [gap[:, 0, columns] / per_unit, gap[some, nearest[some]][:, columns] / per_unit]
    rows = {
        "slope": np.stack([values.mean(0) for values in each]),
        "spread": np.stack([values.std(0) for values in each]),
        "sign_share": np.stack([(np.sign(values) == np.sign(values.mean(0))).mean(0) for values in each]),
    }
    names = [f"{f.name} [{f.unit}]" if f.unit else f.name for _, f in features]
    coords = {"of": ["ego", "nearest vehicle ahead"], "feature": names}
    found = xr.Dataset({name: (("of", "feature"), values) for name, values in rows.items()}, coords=coords)
    found["slope"].attrs["units"] = "return per unit"
    return found
