"""What an ablation does to decisions, offline and on the road, and what of that a car can feel.

The car tracks one of three speeds. SLOWER and FASTER name the one next to its present speed, IDLE keeps what it tracks:
at full speed FASTER and IDLE are the same, and at a standstill SLOWER and IDLE. So a decision that differs may command
the same; here it counts as felt only where the commanded speed differs, bolder where it is higher.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

import rlmech as rlm

SPEEDS = np.array([0.0, 4.5, 9.0])  # m/s, of the environment's own configuration
SLOWER, IDLE, FASTER = range(3)
N_DRAWS = 2000
CLOSE = 3.0  # s to a collision at constant velocities


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share or mean with its 95 % interval over episodes."""

    value: float
    low: float
    high: float

    def to_json(self) -> list[float]:
        """As the README quotes it."""
        return [round(float(v), 4) for v in (self.value, self.low, self.high)]


def commanded(action: np.ndarray, *, speed: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The speed that an action makes the car track, in m/s."""
    place = np.rint(np.clip((speed - SPEEDS[0]) / (SPEEDS[-1] - SPEEDS[0]), 0, 1) * (len(SPEEDS) - 1)).astype(int)
    stepped = SPEEDS[np.clip(place + np.where(action == FASTER, 1, -1), 0, len(SPEEDS) - 1)]
    return np.where(action == IDLE, target, stepped)


def decisions(policy: rlm.HookedPolicy, recording: rlm.Recording, edits: list[rlm.Edit]) -> pd.DataFrame:
    """A row a step of a recording: what the policy does there with the edits and without, and what each commands."""
    ego = recording.vehicles[recording.vehicles["vehicle"] == 0][["episode", "step", "speed", "target_speed"]]
    rows = recording.steps[["episode", "seed", "step", "distance", "ttc"]].merge(ego, on=["episode", "step"])
    rows["plain"] = policy.predict(recording.observations)[0]
    with policy.edited(edits):
        rows["edited"] = policy.predict(recording.observations)[0]
    state = {"speed": rows["speed"].to_numpy(), "target": rows["target_speed"].to_numpy()}
    push = commanded(rows["edited"].to_numpy(), **state) - commanded(rows["plain"].to_numpy(), **state)
    return rows.assign(flip=rows["plain"] != rows["edited"], felt=push != 0, bolder=push > 0, timid=push < 0)


def share(rows: pd.DataFrame, column: str) -> Share:
    """Mean of a column over steps, with a bootstrap over episodes."""
    sums = rows.groupby("episode")[column].agg(["sum", "size"]).to_numpy(dtype=float)
    weights = np.random.default_rng(0).multinomial(len(sums), [1 / len(sums)] * len(sums), size=N_DRAWS)
    drawn = weights @ sums
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return Share(value=sums[:, 0].sum() / sums[:, 1].sum(), low=float(low), high=float(high))


def mean(values: np.ndarray) -> Share:
    """Mean over seeds, with a bootstrap."""
    weights = np.random.default_rng(0).multinomial(len(values), [1 / len(values)] * len(values), size=N_DRAWS)
    low, high = np.quantile(weights @ values / len(values), [0.025, 0.975])
    return Share(value=float(values.mean()), low=float(low), high=float(high))


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's."""
    return float(np.corrcoef(pd.Series(x).rank(), pd.Series(y).rank())[0, 1])


def felt_before(rows: pd.DataFrame, crashed: set[int]) -> pd.DataFrame:
    """Of the episodes of some seeds that crashed, the last felt change before the crash, and how many steps before."""
    last = rows.groupby("seed")["step"].max()
    felt = rows[rows["felt"] & rows["seed"].isin(crashed)].groupby("seed").last()
    return felt.assign(steps_before=last.loc[felt.index] - felt["step"])
