"""The twenty answers: means over policies of columns of the atlas, with 95 % intervals over policies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from rlmech.arguments import explain_misuse
from rlmech.atlas.tables import write_tables
from rlmech.errors import ConfigError
from rlmech.statistics import FEWEST, bootstrap_mean
from rlmech.untyped import JsonObject

QUESTIONS: tuple[tuple[int, str, str, str, str], ...] = (
    (1, "share of single units without which no greedy action changes", "units", "silent", "D16"),
    (1, "the same, of states in which something moves", "units", "silent_moving", "D16"),
    (2, "units that keep 95 % of greedy actions", "units", "kept", "D16"),
    (2, "the same as a share of all", "units", "kept_share", "D16"),
    (3, "first order against exact, first hidden layer, clean into corrupt", "methods", "first_order_denoise_1", "D16"),
    (3, "first order against exact, last hidden layer, clean into corrupt", "methods", "first_order_denoise_2", "D16"),
    (3, "first order against exact, first hidden layer, corrupt into clean", "methods", "first_order_noise_1", "D16"),
    (4, "share of unit and state with tanh beyond ±0.99, first layer", "units", "saturated_1", "all"),
    (4, "the same, second layer", "units", "saturated_2", "all"),
    (5, "share of ReLU units that are dead, first layer", "units", "dead_1", "all"),
    (5, "the same, second layer", "units", "dead_2", "all"),
    (5, "of the dead, those that live under random actions, first layer", "units", "revived_1", "all"),
    (5, "the same, second layer", "units", "revived_2", "all"),
    (6, "accuracy of a linear map of the observation", "methods", "linear_accuracy", "D16"),
    (6, "R2 of a linear map of the observation", "methods", "linear_r2", "continuous"),
    (
        7,
        "the linear imitation driven, as a share of the way from random to the agent",
        "methods",
        "linear_share",
        "D16",
    ),
    (7, "the same, continuous actions", "methods", "linear_share", "continuous"),
    (8, "effective rank of W2 over Gaussian", "units", "rank_2", "all"),
    (8, "effective rank of W2 W1 over Gaussian", "units", "rank_21", "all"),
    (9, "share of shared states with the same action", "pairs", "agreement", "pairs"),
    (9, "what action frequencies alone would give", "pairs", "chance", "pairs"),
    (10, "linear CKA of the last hidden layers", "pairs", "cka", "pairs"),
    (11, "return lost without VecNormalize's statistics", "identity", "lost", "statistics"),
    (12, "share of the way to random that the worst unit costs", "loops", "worst_share", "D16"),
    (12, "the same, continuous actions", "loops", "worst_share", "continuous"),
    (13, "Spearman of flips and loss over units", "loops", "flips_and_loss", "D16"),
    (13, "Spearman of the loss's own halves", "loops", "reliability", "D16"),
    (13, "share in which the unit with the most flips is the worst", "loops", "most_flips_is_worst", "D16"),
    (14, "share in which three ablations name one unit", "units", "ablations_agree", "D16"),
    (14, "mean Spearman between three ablations", "units", "ablations_correlate", "D16"),
    (15, "distance to the next border in steps, median state", "methods", "border", "all"),
    (15, "the same, of states in which something moves", "methods", "border_moving", "all"),
    (15, "linear regions of the states", "methods", "n_regions", "all"),
    (16, "greedy actions flipped by noise of 1 %", "methods", "noise_flips", "D16"),
    (17, "mirrored action in the mirrored state", "methods", "mirror", "D16"),
    (17, "correlation with the mirrored action", "methods", "mirror_correlation", "continuous"),
    (18, "units that raise the return on the choosing seeds", "loops", "n_raising", "D16"),
    (18, "share in which the best one raises it on fresh seeds", "loops", "best_helps", "D16"),
    (18, "the same, continuous actions", "loops", "best_helps", "continuous"),
    (19, "features that can be set to their mean", "methods", "n_ignored", "D16"),
    (20, "effective dimension of the last hidden layer", "units", "dimension_last", "D16"),
    (20, "effective dimension of the observation", "units", "dimension_obs", "D16"),
)
"""Question, what is asked, table, column and group of policies."""


_CORRELATIONS = (
    *("first_order_denoise_1", "first_order_denoise_2", "first_order_noise_1", "ablations_correlate"),
    *("flips_and_loss", "reliability", "mirror_correlation"),
)
_SHARES = (
    *("silent", "silent_moving", "kept_share", "saturated_1", "saturated_2", "dead_1", "dead_2", "revived_1"),
    *("revived_2", "linear_accuracy", "agreement", "chance", "cka", "noise_flips", "mirror"),
)
_COUNTS = ("kept", "rank_2", "rank_21", "border", "border_moving", "n_regions", "n_raising", "n_ignored")
RANGES: dict[str, tuple[float, float]] = (
    dict.fromkeys(_CORRELATIONS, (-1.0, 1.0))
    | dict.fromkeys(_SHARES, (0.0, 1.0))
    | dict.fromkeys(_COUNTS, (0.0, np.inf))
    | dict.fromkeys(("dimension_last", "dimension_obs"), (1.0, np.inf))
)
"""What a column can be at all: an interval reaches no further."""
YES_OR_NO = ("most_flips_is_worst", "ablations_agree", "best_helps")


@explain_misuse
def answers(out: str | Path) -> pd.DataFrame:
    """The twenty answers of an atlas, over all policies of a question's group and by algorithm.

    Args:
        out: The folder that `map_policies` wrote.

    Returns:
        A row an answer: `question`, `asked`, `group` (D16: a2c, ppo, trpo, dqn on the four classic tasks, those at
        hand), `algorithm` (`all`, or one), `mean` with `low` and `high` (95 %, bootstrap over policies; none of fewer
        than four; within what the number can be), `n` policies, and `untrained`, the same mean of networks with fresh
        weights; of the first question `pooled` too, over all units of the group together.

    Raises:
        ConfigError: There is no atlas in the folder.

    Example:
        >>> import rlmech as rlm
        >>> try:
        ...     rlm.atlas.answers("nowhere")
        ... except rlm.RlmechError as error:
        ...     print(error.problem)
        There is no atlas here.
    """
    tables = write_tables(out) if (Path(out) / "rows").is_dir() else {}
    if not any(map(len, tables.values())):
        raise ConfigError(
            "There is no atlas here.",
            given=str(out),
            expected="a folder that map_policies wrote",
            fix="rlm.atlas.map_policies(folder, out) first",
        )
    rows: list[JsonObject] = []
    for number, asked, table, column, group in QUESTIONS:
        own = of_group(tables, table, group)
        if column not in own:
            continue
        told: JsonObject = {"question": number, "asked": asked, "group": group}
        rows.append(told | {"algorithm": "all"} | _mean(own, column))
        if "algorithm" in own and own["algorithm"].nunique() > 1:
            rows += [told | {"algorithm": name} | _mean(part, column) for name, part in own.groupby("algorithm")]
    pairs = tables["pairs"]
    if len(pairs) > 2:
        found = scipy.stats.spearmanr(pairs["cka"], pairs["agreement"])
        rows.append(
            {
                "question": 10,
                "asked": "Spearman of CKA and agreement over pairs",
                "group": "pairs",
                "algorithm": "all",
                "mean": float(found.statistic),
                "n": len(pairs),
            }
        )
    return pd.DataFrame([row for row in rows if row["n"]])


def of_group(tables: Mapping[str, pd.DataFrame], table: str, group: str) -> pd.DataFrame:
    """The rows of a table that are of a group of policies."""
    rows = tables[table]
    if not len(rows) or group in ("all", "pairs"):
        return rows
    if group == "D16":
        return rows[rows["is_of_d16"].fillna(value=False).astype(bool)] if "is_of_d16" in rows else rows[:0]
    if group == "continuous":
        return rows[rows["scores"] == "mean_action"]
    return rows[rows["has_statistics"].fillna(value=False).astype(bool)] if "has_statistics" in rows else rows[:0]


def _mean(rows: pd.DataFrame, column: str) -> JsonObject:
    values = rows[column].dropna().to_numpy(dtype=float)
    told: JsonObject = {"mean": None, "low": None, "high": None, "n": len(values), "untrained": None}
    if column == "silent" and len(values):  # a share of all units of the group, as it is asked
        told["pooled"] = float((rows[column] * rows["n_units"]).sum() / rows["n_units"].sum())
    if len(values):
        told["mean"] = float(values.mean())
        if len(values) >= FEWEST:
            found = bootstrap_mean(values[None], shares="shares" if column in YES_OR_NO else None)
            least, most = RANGES.get(column, (-np.inf, np.inf))
            told |= {"low": max(least, float(found.low[0])), "high": min(most, float(found.high[0]))}
    twin = f"{column}_untrained"
    if twin in rows and rows[twin].notna().any():
        told["untrained"] = float(np.nanmean(rows[twin].to_numpy(dtype=float)))
    return told
