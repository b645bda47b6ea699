"""Is an attribution true? What it calls important is taken away, in single decisions and for whole episodes.

* deletion, insertion: the metric's mean while players leave, or join, the most important first
* sensitivity-n: correlation, over random sets of n players, of what they are said to be worth and what they change
* infidelity: mean square of the difference of the two
* randomisation: rank correlation with the attribution of the same network with fresh weights

Players are taken away as in `shapley_values`: vehicles by their presence, features by a reference, heads by ablation.
Cost: some hundred rows of the policy a state, whatever the number of attributions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.attribution.games import Game, Players, game_of
from rlmech.attribution.readouts import made_by
from rlmech.core.observation import Observation
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError, ObservationError
from rlmech.metrics.measure import Metric, MetricFunction
from rlmech.nets.untrained import untrained
from rlmech.results import storable
from rlmech.statistics import Clusters, bootstrap_mean

Attributed = Callable[[HookedPolicy, Observation], xr.DataArray]
"""A function that attributes a batch: `[batch, entity]`, `[batch, entity, feature]`..., positive raises the metric."""
RANDOM, ALONE = "random", "leave one out"
MEASURES = ("deletion", "insertion", "sensitivity", "infidelity", "infidelity_scaled", "randomisation")


@explain_misuse
def faithfulness(
    policy: HookedPolicy,
    obs: Observation,
    *,
    attributions: Mapping[str, Attributed | xr.DataArray],
    players: Players = "entities",
    metric: Metric | MetricFunction | None = None,
    reference: Observation | None = None,
    n_subsets: int = 32,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Measure attributions against what happens when players are taken away.

    Args:
        policy: The policy.
        obs: A batch of observations.
        attributions: By name: `[batch, entity]` (`feature`, `head`), positive where the player raises the metric;
            further axes are summed over. Or a function `fn(policy, obs)` that gives one, which can be asked of fresh
            weights too. `random` and `leave one out`, the exact effect of each player alone, are measured besides.
        players: As in `shapley_values`.
        metric: As in `shapley_values`.
        reference: As in `shapley_values`.
        n_subsets: Sets drawn for each number of players taken away.
        clusters: A label for each row, say its episode, for the intervals over rows.
        seed: Of the sets, the random attribution, the fresh weights and the bootstrap.

    Returns:
        Dimension `condition`, the attributions, and `batch`. In the metric's unit: `deletion` (lower is better) and
        `insertion` (higher), the area under the metric's curve over the share of players that left or joined;
        `sensitivity`, the mean over n of the correlation; `infidelity`, in the unit squared, and `infidelity_scaled`,
        that of the best multiple of the attribution; `randomisation` (near 0: it depends on what was learned), NaN for
        an attribution that is no function. `<name>_mean[condition]` with `_low` and `_high`, 95 % bootstrap over the
        rows where it is defined for all attributions that have it.

    Raises:
        ObservationError: An attribution does not fit the observations or the players.
        ConfigError: No attributions.

    Source:
        Petsiuk et al. 2018, arXiv 1806.07421 (deletion, insertion; Quantus's PixelFlipping with
        `return_auc_per_sample`); Ancona et al. 2018, arXiv 1711.06104 (sensitivity-n; at one n Quantus's
        FaithfulnessCorrelation); Yeh et al. 2019, arXiv 1901.09392 (infidelity; scaled as captum's `normalize`);
        Adebayo et al. 2018, arXiv 1810.03292 (Quantus's MPRT, all layers at once).

    Example:
        >>> import torch, rlmech as rlm
        >>> policy, obs = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4)), torch.rand(8, 4)
        >>> exact = rlm.attribution.shapley_values(policy, obs, players="features")["value"]
        >>> found = rlm.attribution.faithfulness(policy, obs, attributions={"exact": exact}, players="features")
        >>> round(float(found["sensitivity_mean"].sel(condition="exact")), 3)
        1.0
    """
    policy = policy.fitting(obs)
    game = game_of(policy, obs, players=players, metric=metric, reference=reference)
    if not attributions or {RANDOM, ALONE} & set(attributions):
        raise ConfigError(
            "There is nothing to measure." if not attributions else "That name is taken.",
            given=", ".join(attributions) or "no attributions",
            expected=f"attributions by name, none named {RANDOM!r} or {ALONE!r}",
            fix="attributions={'shapley': values}",
        )
    rng = np.random.default_rng(seed)
    rows = _Rows.of(game, n_subsets=n_subsets, rng=rng)
    values = {name: players_of(game, _asked(given, policy, obs), name) for name, given in attributions.items()}
    values |= {RANDOM: rng.normal(size=game.playing.shape), ALONE: rows.alone}
    data = {name: np.full((len(values), len(game.playing)), np.nan) for name in MEASURES}
    for place, own in enumerate(values.values()):
        for name, found in rows.measure(own).items():
            data[name][place] = found
    functions = {name: given for name, given in attributions.items() if not isinstance(given, xr.DataArray)}
    twin = untrained(policy, seed + 1) if functions else policy
    for name, given in functions.items():
        fresh = players_of(game, given(twin, obs), name)
        data["randomisation"][list(values).index(name)] = _rank_correlations(values[name], fresh, game.playing)
    variables: dict[str, Any] = {}
    units = dict.fromkeys(("deletion", "insertion"), game.bound.unit) | {"infidelity": f"({game.bound.unit})^2"}
    units["infidelity_scaled"] = units["infidelity"]
    for name, found in data.items():
        unit = {"units": units.get(name, "1")}
        variables[name] = (("condition", "batch"), found, unit)
        for end, own in _means(found, clusters, seed).items():
            variables[f"{name}_{end}"] = ("condition", own, unit)
    attrs = made_by(policy, "faithfulness of attributions") | {
        "metric": game.bound.name,
        "players": players,
        "n_subsets": n_subsets,
        "seed": seed,
    }
    return storable(xr.Dataset(variables, coords={"condition": list(values)}), attrs)


def players_of(game: Game, attribution: xr.DataArray, name: str) -> np.ndarray:
    """An attribution as `[row player]`: further axes summed over, what does not play left out.

    Raises:
        ObservationError: It does not fit.
    """
    dims = tuple(map(str, getattr(attribution, "dims", ())))
    problem = ""
    if "batch" not in dims or game.dim not in dims:
        problem = f"axes {' '.join(dims) or 'without names'}"
    elif attribution.sizes.get("action", 1) != 1:
        problem = f"{attribution.sizes['action']} actions"
    elif attribution.sizes["batch"] != len(game.playing):
        problem = f"{attribution.sizes['batch']} rows for {len(game.playing)} observations"
    elif game.dim in attribution.coords and not set(game.names) <= set(attribution[game.dim].values.tolist()):
        problem = f"{game.dim} named {', '.join(map(str, attribution[game.dim].values[:4]))}..."
    elif game.dim not in attribution.coords and attribution.sizes[game.dim] != len(game.names):
        problem = f"{attribution.sizes[game.dim]} of {game.dim} without names"
    if problem:
        raise ObservationError(
            f"The attribution {name!r} does not fit what is taken away.",
            given=problem,
            expected=f"a DataArray [batch, {game.dim}], of one action or gap, that holds "
            f"{', '.join(map(str, game.names[:4]))}...",
            fix="rename its axes (key to entity), and explain one gap: better='FASTER', worse='SLOWER'",
        )
    chosen = attribution.sel({game.dim: game.names}) if game.dim in attribution.coords else attribution
    others = [dim for dim in dims if dim not in ("batch", game.dim)]
    return np.asarray(chosen.sum(others).transpose("batch", game.dim).values, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What the policy says of the sets that all attributions are measured on."""

    game: Game
    subsets: list[np.ndarray]
    """By row, who is taken away, `[set player]`, and by set how many."""
    changes: list[np.ndarray]
    """By row, what the metric loses with them."""
    alone: np.ndarray

    @classmethod
    def of(cls, game: Game, *, n_subsets: int, rng: np.random.Generator) -> _Rows:
        subsets: list[np.ndarray] = []
        changes: list[np.ndarray] = []
        alone = np.zeros(game.playing.shape)
        for row, playing in enumerate(game.playing):
            own = np.flatnonzero(playing)
            n = len(own)
            singles = np.eye(n, dtype=bool)
            sizes = np.repeat(np.arange(2, n), n_subsets)
            drawn = rng.random((len(sizes), n)).argsort(1).argsort(1) < sizes[:, None]
            out = np.concatenate([np.zeros((1, n), dtype=bool), singles, drawn])
            worth = game.worth(np.array([row]), own[None], ~out)[0]
            alone[row, own] = worth[0] - worth[1 : n + 1]
            subsets.append(out[1:])
            changes.append(worth[0] - worth[1:])
        return cls(game=game, subsets=subsets, changes=changes, alone=alone)

    def measure(self, values: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: np.full(len(values), np.nan) for name in MEASURES[:-1]}
        for row, playing in enumerate(self.game.playing):
            own = np.flatnonzero(playing)
            n = len(own)
            ranks = np.argsort(-values[row, own], kind="stable").argsort()
            steps = np.arange(n + 1)[:, None]
            curves = self.game.worth(np.array([row]), own[None], np.concatenate([ranks >= steps, ranks < steps]))[0]
            found["deletion"][row], found["insertion"][row] = _area(curves[: n + 1]), _area(curves[n + 1 :])
            if n:
                said = self.subsets[row] @ values[row, own]
                changed = self.changes[row]
                found["infidelity"][row] = ((said - changed) ** 2).mean()
                scale = (said @ changed) / (said @ said) if said.any() else 0.0
                found["infidelity_scaled"][row] = ((scale * said - changed) ** 2).mean()
                found["sensitivity"][row] = _sensitivity(self.subsets[row].sum(1), said, changed)
        return found


def _asked(given: Attributed | xr.DataArray, policy: HookedPolicy, obs: Observation) -> xr.DataArray:
    return given if isinstance(given, xr.DataArray) else given(policy, obs)


def _area(curve: np.ndarray) -> float:
    """The mean height of a curve over equal steps, by the trapezoid rule."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1))) if len(curve) > 1 else float(curve[0])


def _sensitivity(sizes: np.ndarray, said: np.ndarray, changed: np.ndarray) -> float:
    """The mean over set sizes of the correlation; sizes at which either does not vary say nothing."""
    found = [_correlation(said[sizes == n], changed[sizes == n]) for n in np.unique(sizes)]
    defined = [value for value in found if np.isfinite(value)]
    return float(np.mean(defined)) if defined else np.nan


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if len(a) > 2 and length > 1e-12 else np.nan


def _rank_correlations(values: np.ndarray, fresh: np.ndarray, playing: np.ndarray) -> np.ndarray:
    return np.array(
        [
            _correlation(scipy.stats.rankdata(a[there]), scipy.stats.rankdata(b[there]))
            for a, b, there in zip(values, fresh, playing, strict=True)
        ]
    )


def _means(found: np.ndarray, clusters: Clusters | None, seed: int) -> dict[str, np.ndarray]:
    """Means with intervals over the rows in which all conditions that have the measure have it."""
    has = np.isfinite(found).any(1)
    rows = np.isfinite(found[has]).all(0) if has.any() else np.zeros(found.shape[1], dtype=bool)
    ends = {end: np.full(len(found), np.nan) for end in ("mean", "low", "high")}
    if rows.any():
        own = None if clusters is None else np.asarray(clusters)[rows]
        interval = bootstrap_mean(found[has][:, rows], clusters=own, seed=seed)
        ends["mean"][has], ends["low"][has], ends["high"][has] = interval.estimate, interval.low, interval.high
    return ends
