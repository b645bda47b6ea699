"""From recordings of the same seeds under several conditions to a table of differences, with intervals and tests.

A difference is that of one seed's episode from the baseline's, so that what the traffic does to both falls away. Means
carry a studentised bootstrap interval over seeds, rates Wilson's, differences of rates Tango's; differences also an
exact test, which never contradicts the interval beside it, and Holm's correction for the number of conditions. Nothing
here runs an episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float

from rlmech.arguments import explain_misuse
from rlmech.episodes.along import along_episodes
from rlmech.episodes.recording import Recording
from rlmech.errors import ConfigError, MetricError, RecordingError, nearest
from rlmech.results import storable
from rlmech.statistics import (
    FEWEST,
    Interval,
    Shares,
    bootstrap_mean,
    exact_test,
    holm,
    largest_spread,
    n_for_half_width,
)
from rlmech.untyped import JsonObject, Settings, Variables

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy

BASELINE = "baseline"
OWN = {
    "return": {"units": "return", "long_name": "sum of the rewards", "kind": "sum"},
    "length": {"units": "step", "long_name": "decisions in the episode", "kind": "sum"},
}
ALONG = {
    "edited": ("share of steps", "steps at which edits were at work"),
    "agreement": ("share of steps", "steps at which the unedited baseline policy would do the same in that very state"),
    "onset": ("step", "first step at which edits were at work; NaN: none"),
    "divergence": ("step", "first step at which another action was taken than in the baseline's episode; NaN: none"),
    "steps_to_change": ("step", "from onset to divergence; NaN: no edit, or no other action"),
}
TO_CRASH = ("step", "from onset to the crash; NaN: no edit, or no crash")


@explain_misuse
def compare_recordings(
    recordings: Mapping[str, Recording],
    *,
    policy: HookedPolicy | None = None,
    control_of: Mapping[str, str] = MappingProxyType({}),
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """Compare recordings of the same seeds with the one named `baseline`.

    Args:
        recordings: By condition; one is `baseline`.
        policy: The baseline's policy, to tell where recordings of other policies agree with it; None: not told.
        control_of: By control, the condition that it belongs to. Controls are corrected among themselves, so that
            asking for them makes no finding less significant.
        confidence: Nominal coverage of all intervals.
        n_resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        Dimensions `condition` and `seed`. Of `return`, `length` and the outcomes recorded (highway-env's environments
        tell `crashed`, `speed` and, where there is a goal, `arrived`), with those asked for when recording: the
        episodes' values `[condition, seed]`; `mean_return[condition]` with `_low` and `_high`;
        `delta_return[condition]`, the mean difference from the baseline of the same seed (positive: more than the
        baseline), with `_low`, `_high`, `_se` (standard error), `_p` (exact test) and `_p_holm` (corrected for the
        number of conditions). The attribute `kind` says whether one is a `share`, a rate with a rate's interval. And
        along the episodes `[condition, seed]`: edited, agreement, onset, divergence, steps_to_change and, where crashes
        are told, steps_to_crash. Coordinate `never_active[condition]`: the edits were never at work.

    Raises:
        ConfigError: No baseline, or nothing to compare with it.
        RecordingError: The recordings have no seed in common, hold parts of episodes, or are imported.

    Example:
        >>> import gymnasium as gym, torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> env = gym.make("CartPole-v1")
        >>> runs = {
        ...     name: rlm.record(policy, env, seeds=range(4), edits=edits, progress=False)
        ...     for name, edits in {"baseline": [], "no hidden layer": [rlm.zero_ablation("1.hook_out")]}.items()
        ... }
        >>> dict(rlm.episodes.compare_recordings(runs).sizes)
        {'condition': 2, 'seed': 4}
    """
    _check(recordings)
    for name, recording in recordings.items():
        _check_whole(name, recording)
    shared = set.intersection(*(set(recording.episodes["seed"]) for recording in recordings.values()))
    seeds = [seed for seed in recordings[BASELINE].episodes["seed"] if seed in shared]
    if not seeds:
        raise RecordingError(
            "The recordings have no seed in common.",
            given=f"recordings of {', '.join(repr(name) for name in recordings)}",
            expected="episodes of the same seeds, which is what makes them comparable",
            fix="record all of them with the same seeds, or use rlm.compare_rollouts",
        )
    names = [BASELINE, *(name for name in recordings if name != BASELINE)]
    tables = {name: recordings[name].episodes.set_index("seed").loc[seeds] for name in names}
    told = {
        name: attrs
        for name, attrs in _outcomes(recordings).items()
        if all(name in table and not table[name].isna().any() for table in tables.values())
    }
    data: Variables = {}
    controls = np.array([name in control_of for name in names])
    for outcome, attrs in told.items():
        values = np.stack([tables[name][outcome].to_numpy(dtype=float) for name in names])
        data[outcome] = (("condition", "seed"), values, attrs)
        options: JsonObject = {"confidence": confidence, "n_resamples": n_resamples, "seed": seed}
        options["share"] = attrs["kind"] == "share"
        found = _means(outcome, values, **options) | _differences(outcome, values, controls, **options)
        data |= {name: ("condition", value, attrs) for name, value in found.items()}
    along = [along_episodes(recordings[name], recordings[BASELINE], seeds, policy) for name in names]
    for name, (unit, meaning) in (ALONG | ({"steps_to_crash": TO_CRASH} if "crashed" in told else {})).items():
        values = np.stack([table[name].to_numpy(dtype=float) for table in along])
        data[name] = (("condition", "seed"), values, {"units": unit, "long_name": meaning})
    coords = {
        "condition": names,
        "seed": seeds,
        "policy": ("condition", [recordings[name].manifest["policy"].get("fingerprint", "") for name in names]),
        "edits": ("condition", ["; ".join(recordings[name].manifest["edits"]) for name in names]),
        "control_of": ("condition", [control_of.get(name, "") for name in names]),
        "when": ("condition", [recordings[name].manifest["when"] or "" for name in names]),
        "never_active": (
            "condition",
            [
                bool(recordings[name].manifest["edits"]) and not table["edited"].any()
                for name, table in zip(names, along, strict=True)
            ],
        ),
    }
    return storable(xr.Dataset(data, coords=coords), _attrs(recordings, data, confidence, n_resamples, seed))


@explain_misuse
def comparison_table(result: xr.Dataset) -> pd.DataFrame:
    """A comparison as a table to read: a row a condition, each difference with its interval.

    Args:
        result: What `compare_rollouts` returned.

    Returns:
        Texts: means of the baseline, differences of the others as `-0.52 [-0.83, -0.21]`, with a star where Holm's
        corrected p-value is below 0.05; agreement, and the share of episodes that ever differ.

    Example:
        >>> import gymnasium as gym, torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> env = gym.make("CartPole-v1")
        >>> conditions = {"no hidden layer": [rlm.zero_ablation("1.hook_out")]}
        >>> result = rlm.compare_rollouts(policy, env, conditions=conditions, seeds=range(4), progress=False)
        >>> rlm.episodes.comparison_table(result).index.to_list()
        ['baseline', 'no hidden layer']
    """
    rows: dict[str, dict[str, str]] = {}
    told = _compared(result)
    for name in result["condition"].values.tolist():
        one = result.sel(condition=name)
        if name == BASELINE:
            row = {outcome: _text(one, f"mean_{outcome}", plus="") for outcome in told}
        else:
            row = {outcome: _text(one, f"delta_{outcome}", plus="+") for outcome in told}
        row["agreement"] = f"{float(one['agreement'].mean()):.2f}"
        row["episodes changed"] = f"{float(one['divergence'].notnull().mean()):.2f}"
        if one["never_active"]:
            row["episodes changed"] = "never at work"
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


@explain_misuse
def seeds_needed(result: xr.Dataset, variable: str = "return", *, half_width: float) -> xr.DataArray:
    """How many seeds each condition's difference takes to be known as precisely as wanted.

    Approximate: the normal interval, with the upper end of the spread that the seeds so far leave possible, so that few
    seeds, which often show too little of it, ask for more.

    Args:
        result: What `compare_rollouts` returned.
        variable: `return`, `length` or one of the outcomes.
        half_width: Half the width of the interval wanted, in the variable's unit.

    Returns:
        `[condition]`, all seeds together: those run already are `result.sizes["seed"]`. `attrs["spread"]` says which
        spread was taken.

    Raises:
        MetricError: No such variable, a width that is none, or fewer than four seeds.

    Example:
        >>> import gymnasium as gym, torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> env = gym.make("CartPole-v1")
        >>> conditions = {"no hidden layer": [rlm.zero_ablation("1.hook_out")]}
        >>> result = rlm.compare_rollouts(policy, env, conditions=conditions, seeds=range(4), progress=False)
        >>> int(rlm.episodes.seeds_needed(result, half_width=5.0).sel(condition="baseline"))
        2
    """
    if f"delta_{variable}" not in result or half_width <= 0:
        known = _compared(result)
        close = nearest(variable, known)
        raise MetricError(
            "There is no such precision.",
            given=f"variable={variable!r}, half_width={half_width}",
            expected=f"one of {known} and a width above 0",
            fix=f"did you mean {close[0]!r}?" if close and close[0] != variable else "give half_width=0.1, say",
        )
    if result.sizes["seed"] < FEWEST:
        raise MetricError(
            "So few seeds do not tell how much the differences spread.",
            given=f"a comparison over {result.sizes['seed']} of them",
            expected=f"at least {FEWEST}",
            fix="compare over, say, 20 seeds first",
        )
    differences = (result[variable] - result[variable].sel(condition=BASELINE)).values
    confidence = float(result.attrs["confidence"])
    scale = 1.0 if result[variable].attrs["kind"] == "share" else float(np.abs(result[variable].values).max())
    spread = largest_spread(differences, scale=scale, confidence=confidence)
    spread = np.where(result["condition"].values == BASELINE, 0.0, spread)  # it does not differ from itself
    needed = [n_for_half_width(s, half_width=half_width, confidence=confidence) for s in spread]
    attrs = {
        "units": "seeds",
        "variable": variable,
        "half_width": half_width,
        "spread": f"upper {confidence:.0%} end of the standard deviation of {differences.shape[1]} differences",
    }
    return storable(xr.DataArray(needed, dims="condition", coords={"condition": result["condition"].values}), attrs)


def _outcomes(recordings: Mapping[str, Recording]) -> dict[str, dict[str, str]]:
    """What is compared, in order: the return, shares, the length, means; with unit, meaning and kind."""
    told: dict[str, dict[str, str]] = {}
    for recording in recordings.values():
        for one in recording.manifest["outcomes"]:
            unit = one["unit"] or ("share of episodes" if one["kind"] == "share" else "")
            told[one["name"]] = {"units": unit, "long_name": one["meaning"] or one["name"], "kind": one["kind"]}
    shares = {name: attrs for name, attrs in told.items() if attrs["kind"] == "share"}
    return {"return": OWN["return"], **shares, "length": OWN["length"], **told}


def _compared(result: xr.Dataset) -> list[str]:
    """The variables of a comparison that have differences."""
    return [str(name) for name in result.data_vars if f"delta_{name}" in result]


def _check(recordings: Mapping[str, Recording]) -> None:
    if BASELINE not in recordings or len(recordings) < 2:
        raise ConfigError(
            "There is nothing to compare.",
            given=f"recordings of {', '.join(repr(name) for name in recordings) or 'nothing'}",
            expected="a recording named 'baseline' and at least one other",
            fix="e.g. {'baseline': rlm.record(policy, env, ...), 'head 3': rlm.record(policy, env, edits=[...], ...)}",
        )


def _check_whole(name: str, recording: Recording) -> None:
    if not recording.manifest["policy"]:
        raise RecordingError(
            f"The recording {name!r} is not of a policy.",
            given=f"episodes imported from {recording.manifest.get('origin', 'elsewhere')}",
            expected="recordings that rlm.record made, which tell when edits were at work",
            fix="record the policies to be compared",
        )
    if len(recording.steps) != recording.episodes["length"].sum():
        raise RecordingError(
            f"The recording {name!r} is of some steps only.",
            given=f"{len(recording.steps)} of the {recording.episodes['length'].sum()} steps of its episodes",
            expected="whole episodes: what parts them is looked for step by step",
            fix="compare the recordings themselves, or their of_seeds(...), not what where(...) left of them",
        )


def _means(
    outcome: str, values: Float[np.ndarray, "condition seed"], *, share: bool, **options: Any
) -> dict[str, Float[np.ndarray, " condition"]]:
    interval = bootstrap_mean(values, shares="shares" if share else None, **options)
    name = f"mean_{outcome}"
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _differences(
    outcome: str,
    values: Float[np.ndarray, "condition seed"],
    controls: Bool[np.ndarray, " condition"],
    *,
    share: bool,
    **options: Any,
) -> dict[str, Float[np.ndarray, " condition"]]:
    differences = values - values[:1]
    kind: Shares | None = "differences" if share else None
    interval = bootstrap_mean(differences, scale=float(np.abs(values).max()), shares=kind, **options)
    p = np.array([exact_test(own, seed=options["seed"]) for own in differences])
    p, low, high = _agreed(p, interval)
    p[0], low[0], high[0] = 1.0, 0.0, 0.0  # the baseline does not differ from itself
    n = values.shape[1]
    error = differences.std(1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(values), np.nan)
    name = f"delta_{outcome}"
    return {
        name: interval.estimate,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_se": error,
        f"{name}_p": p,
        f"{name}_p_holm": _corrected(p, controls),
    }


def _agreed(
    p: Float[np.ndarray, " condition"], interval: Interval
) -> tuple[Float[np.ndarray, " condition"], Float[np.ndarray, " condition"], Float[np.ndarray, " condition"]]:
    """The exact test and the interval, the more careful of both: a row is significant if its interval leaves zero out.

    Returns:
        The larger of the test's p-value and the interval's own; and the ends, which take zero in where that is not
        below 1 - confidence.
    """
    p = np.where(np.isnan(interval.p), p, np.maximum(p, interval.p))
    not_clear = p >= 1 - interval.confidence
    low = np.where(not_clear, np.minimum(interval.low, 0.0), interval.low)
    high = np.where(not_clear, np.maximum(interval.high, 0.0), interval.high)
    holds = (low <= 0) & (high >= 0)
    return np.where(holds, np.maximum(p, 1 - interval.confidence), p), low, high


def _corrected(
    p: Float[np.ndarray, " condition"], controls: Bool[np.ndarray, " condition"]
) -> Float[np.ndarray, " condition"]:
    """Holm's correction over the conditions asked for, and over their controls; the baseline, the first, is neither."""
    corrected, asked = np.ones_like(p), ~controls & (np.arange(len(p)) > 0)
    for family in (asked, controls):
        corrected[family] = holm(p[family])
    return corrected


def _attrs(
    recordings: Mapping[str, Recording],
    data: Settings,
    confidence: float,
    n_resamples: int,
    seed: int,
) -> JsonObject:
    baseline = recordings[BASELINE].manifest
    return {
        "sign": "positive: more than the baseline on the same seed",
        "env": baseline["env"]["id"] or "",
        "policy": baseline["policy"].get("fingerprint", ""),
        "confidence": confidence,
        "interval": _interval_words(data["return"][1].shape[1]),
        "test": "sign changes of the paired differences, exact, no smaller than the interval's own p-value; _p_holm "
        "corrected over conditions, over controls apart",
        "n_resamples": n_resamples,
        "bootstrap_seed": seed,
        "rlmech": version("rlmech"),
    }


def _interval_words(n_seeds: int) -> str:
    if n_seeds < FEWEST:
        return f"none: {n_seeds} seeds are fewer than the {FEWEST} that an interval takes"
    return "studentised bootstrap over seeds; of rates Wilson's, of their differences Tango's"


def _text(one: xr.Dataset, name: str, *, plus: str) -> str:
    estimate, low, high = (float(one[name + end]) for end in ("", "_low", "_high"))
    star = "*" if f"{name}_p_holm" in one and float(one[f"{name}_p_holm"]) < 0.05 else ""
    if np.isnan(low):
        return f"{estimate:{plus}.2f} (too few seeds for an interval)"
    return f"{estimate:{plus}.2f} [{low:{plus}.2f}, {high:{plus}.2f}]{star}"
