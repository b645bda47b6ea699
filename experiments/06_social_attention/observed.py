"""The same claims read off the recorded states as they are: what one sees without moving anything.

Here distance, speed, arm and the number of vehicles go together, so these are correlations, adjusted as far as named.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from attention import Reading
from claims import specialisation
from intervals import Estimate, estimate, means
from road import ARMS
from scenes import COULD_CROSS, NEAR_EGO
from traffic import Seen

N_PERMUTED = 19
WITHIN = 60.0  # m to the entry
FLOOR = 1e-6  # of attention: smaller weights count as this


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Correlations in recorded states.

    Attributes:
        direction: Distance between heads' profiles, as in the claim.
        direction_permuted: The same with heads exchanged at random in each state: the largest of 19.
        approach: Doublings of attention for each 10 m nearer to the entry, between vehicles of one state, at equal
            speed and from the same arm.
        approach_permuted: The same with the vehicles of each state exchanged at random: the largest of 19.
        clear: Attention to the ego in states in which nobody could cross its way, less that in the others, at the
            same number of vehicles and the same place of the ego.
    """

    direction: Estimate
    direction_permuted: float
    approach: Estimate
    approach_permuted: float
    clear: Estimate | None


def observe(seen: Seen, read: Reading) -> Observed:
    """Measure in the states in which the ego has to decide."""
    at = seen.ego_to_entry
    deciding = np.flatnonzero((at >= NEAR_EGO[0]) & (at <= NEAR_EGO[1]))
    episode, rng = seen.states.episode[deciding], np.random.default_rng(0)
    by_arm = _by_arm(seen, read.pattern, deciding)
    shuffled = [_of_mean(rng.permuted(by_arm, axis=2), episode) for _ in range(N_PERMUTED)]
    vehicles = _vehicles(seen, read.pattern.mean(1), deciding)
    exchanged = [_slope(_permuted(vehicles, rng)) for _ in range(N_PERMUTED)]
    return Observed(
        direction=estimate(by_arm, episode, specialisation),
        direction_permuted=max(shuffled),
        approach=estimate(_products(vehicles), vehicles["episode"].to_numpy(), _nearer),
        approach_permuted=max(exchanged),
        clear=_clear(seen, read.pattern[:, :, 0].mean(1), deciding),
    )


def _by_arm(seen: Seen, pattern: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Attention to all vehicles on their way in, `[state, arm, head]`."""
    on = np.stack([seen.to_entry[arm][states] <= WITHIN for arm in ARMS], axis=1)
    return np.einsum("sae,she->sah", on, pattern[states])


def _of_mean(rows: np.ndarray, episode: np.ndarray) -> float:
    return float(specialisation(means(rows, episode)[0][None])[0])


def _vehicles(seen: Seen, weight: np.ndarray, states: np.ndarray) -> pd.DataFrame:
    """A row for each vehicle on its way in: state, episode, log2 of attention, tens of metres nearer, speed, arm."""
    tables = []
    for number, arm in enumerate(ARMS):
        away = seen.to_entry[arm][states]
        which, entity = np.nonzero(away <= WITHIN)
        state = states[which]
        table = {
            "state": state,
            "episode": seen.states.episode[state],
            "attention": np.log2(np.maximum(weight[state, entity], FLOOR)),
            "nearer": -away[which, entity] / 10,
            "speed": seen.speed[state, entity],
            "front": float(number == 1),
            "right": float(number == 2),
        }
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def _permuted(vehicles: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    order = pd.Series(rng.random(len(vehicles))).groupby(vehicles["state"]).rank(method="first").astype(int)
    rank = vehicles.groupby("state").cumcount() + 1
    key, other = (pd.MultiIndex.from_arrays([vehicles["state"], number]) for number in (rank, order))
    drawn = pd.Series(vehicles["attention"].to_numpy(), index=key).loc[other].to_numpy()
    return vehicles.assign(attention=drawn)


def _slope(vehicles: pd.DataFrame) -> float:
    return float(_nearer(_products(vehicles).mean(0)[None])[0])


def _products(vehicles: pd.DataFrame) -> np.ndarray:
    """Products of all pairs of columns, taken within states: what least squares needs, `[vehicle, column, column]`."""
    names = ["nearer", "speed", "front", "right", "attention"]
    values = (vehicles[names] - vehicles.groupby("state")[names].transform("mean")).to_numpy()
    return values[:, :, None] * values[:, None, :]


def _nearer(products: np.ndarray) -> np.ndarray:
    """The coefficient of the first column in the regression of the last one on the others."""
    return (np.linalg.pinv(products[:, :-1, :-1]) @ products[:, :-1, -1:])[:, 0, 0]


def _clear(seen: Seen, ego: np.ndarray, states: np.ndarray) -> Estimate | None:
    threat = np.stack([seen.to_entry[arm][states] <= COULD_CROSS for arm in ARMS]).any(0) | seen.inside[states]
    table = pd.DataFrame(
        {
            "clear": ~threat.any(1),
            "number": np.digitize(seen.there[states].sum(1), (4, 6, 8)),
            "place": np.floor(seen.ego_to_entry[states] / 15).astype(int),
        }
    )
    cell = table["number"] * 100 + table["place"]
    counts = pd.crosstab(cell, table["clear"])
    if counts.shape[1] < 2 or not (shared := counts.min(axis=1)[counts.min(axis=1) > 0]).size:
        return None
    kept = cell.isin(shared.index).to_numpy()
    weight = np.array([shared[c] / counts.loc[c, k] for c, k in zip(cell[kept], table["clear"][kept], strict=True)])
    side = table["clear"].to_numpy()[kept].astype(int)
    sums = np.zeros((kept.sum(), 4))
    rows = np.arange(len(sums))
    sums[rows, 2 * side], sums[rows, 2 * side + 1] = weight * ego[states][kept], weight
    return estimate(sums, seen.states.episode[states][kept], _difference)


def _difference(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        found = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
    return found[np.isfinite(found)]
