"""The decisions as exact sums, and the laws that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from subjects import BETTER, WORSE, States, interval, mean_of

import rlmech as rlm
from rlmech.circuits.action_attribution import attribute_actions
from rlmech.circuits.affine import local_affine
from rlmech.circuits.pattern_effects import pattern_effects

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
            attribute_actions(states.policy, obs, better=BETTER, worse=WORSE),
            attribute_actions(states.policy, obs, better=BETTER),
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
    affine, obs = local_affine(states.policy, states.obs), states.obs.numpy()
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
    form = rlm.qk_circuit(states.policy, obs=one).circuit.isel(query=0).transpose("head", "entity", ...).values
    x = np.concatenate([one[0].numpy(), np.ones((one.shape[1], 1))], axis=-1)
    there = states.there[number]
    scores = np.einsum("q,hequ,eu->he", x[0], form[:, there], x[there])
    return float(np.abs(scores - states.attention_scores[number][:, there]).max())


def regions(states: States) -> dict[str, Any]:
    """How many linear regions the episodes pass through."""
    region = local_affine(states.policy, states.obs).region.values
    follows = np.flatnonzero(states.episode[1:] == states.episode[:-1])
    changed = (region[follows] != region[follows + 1]).astype(float)
    return {
        "states": len(region),
        "regions": len(np.unique(region)),
        "steps into another region": interval(states.episode[follows], lambda rows: changed[rows].mean()),
    }


def path_shares(states: States, paths: xr.Dataset) -> list[dict[str, Any]]:
    """Each path's mean share in SLOWER and in FASTER states, and of the gap's variance (the shares add up to 1)."""
    values = (paths.features + paths.bias).isel(action=0).transpose("path", "batch").values
    total, chosen = paths.total.values[:, 0], states.scores.argmax(1)
    rows: list[dict[str, Any]] = []
    for name, mine in zip(paths.path.values, values, strict=True):
        row: dict[str, Any] = {"path": str(name)}
        for action in (WORSE, BETTER):
            row[f"mean in {action} states"] = mean_of(states, np.where(chosen == states.action(action), mine, np.nan))
        row["share of the gap's variance"] = interval(
            states.episode, lambda r, mine=mine: np.cov(mine[r], total[r])[0, 1] / total[r].var(ddof=1)
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


def moved_by_the_pattern(states: States) -> xr.DataArray:
    """What the gap loses when the vehicles of a place leave each head's softmax one by one: mean effect per vehicle."""
    effects = pattern_effects(states.policy, states.obs, better=BETTER, worse=WORSE).removed_by_head
    values = effects.isel(action=0).transpose("batch", "head", "key").values
    group = groups_of(states)
    means = np.stack(
        [np.nanmean(np.where((group == w)[:, None], values, np.nan), (0, 2)) for w in range(len(GROUPS))], 1
    )
    coords = {"head": list(range(values.shape[1])), "where": list(GROUPS)}
    return xr.DataArray(
        means, dims=("head", "where"), coords=coords, attrs={"units": "return"}, name="change of the gap"
    )


def slopes(states: States) -> xr.DataArray:
    """The mean slope of the gap along each feature of the ego and of the nearest vehicle ahead, in physical units."""
    jacobian = local_affine(states.policy, states.obs).jacobian
    gap = (jacobian.sel(action=BETTER) - jacobian.sel(action=WORSE)).transpose("batch", "entity", "feature").values
    ahead, left = states.places()
    distance = np.where((ahead > 0) & states.there, np.hypot(ahead, left), np.inf)
    distance[:, 0] = np.inf
    nearest, some = distance.argmin(1), np.isfinite(distance).any(1)
    features = [(n, f) for n, f in enumerate(states.policy.spec.features) if n != states.policy.spec.presence_index]
    per_unit = np.array([float(np.diff(np.asarray(f.physical(np.array([0.0, 1.0]))))[0]) for _, f in features])
    columns = [n for n, _ in features]
    rows = np.stack([gap[:, 0, columns].mean(0), gap[some, nearest[some]][:, columns].mean(0)]) / per_unit
    names = [f"{f.name} [{f.unit}]" if f.unit else f.name for _, f in features]
    coords = {"of": ["ego", "nearest vehicle ahead"], "feature": names}
    return xr.DataArray(rows, dims=("of", "feature"), coords=coords, attrs={"units": "return per unit"}, name="slope")
