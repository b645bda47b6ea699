"""The same episodes under several conditions, paired by seed: what an intervention does to the drive.

The unedited policy drives every seed, and so does each condition, in the same traffic; as long as a condition does what
the baseline does it costs no simulation (`rlmech.episodes.simulation`). What is compared and how stands in
`rlmech.episodes.comparison`, the controls in `rlmech.episodes.controls`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
import xarray as xr

from rlmech.arguments import explain_misuse
from rlmech.core.edit import Edit
from rlmech.core.interventions import steer
from rlmech.core.site import Site
from rlmech.episodes.comparison import BASELINE, compare_recordings
from rlmech.episodes.controls import Control, with_controls
from rlmech.episodes.driving import Condition, Names
from rlmech.episodes.recorder import record_conditions
from rlmech.episodes.when import Moment, When, when_of
from rlmech.episodes.workers import Backend
from rlmech.errors import ConfigError
from rlmech.results import storable
from rlmech.simulators.env import acting_in, environment

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy
    from rlmech.simulators.protocol import Outcome


@explain_misuse
def compare_rollouts(
    policy: HookedPolicy,
    env: gym.Env | str,
    *,
    conditions: Mapping[str, Any],
    seeds: Iterable[int],
    when: When | Callable[[Moment], bool] | int | Iterable[int] | None = None,
    controls: Sequence[Control] = (),
    n_controls: int = 3,
    names: Names = (),
    deterministic: bool = True,
    outcomes: Sequence[Outcome] = (),
    workers: int = 1,
    backend: Backend = "processes",
    path: str | Path | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Drive the same seeds under every condition and without, and compare.

    Args:
        policy: The baseline's policy, which drives all conditions that name no other.
        env: An environment that fits it, or the id of one, as for `rlm.record`.
        conditions: By name: edits, a `Condition` (edits, when, another policy), or another policy.
        seeds: Seeds of the episodes, the same for all.
        when: When the edits of conditions that do not say so act; None for always.
        controls: `random_site` (each condition's edits at other positions of the same hook points) and
            `random_direction` (a random direction instead, as long as what the edits change there), besides.
        n_controls: Of each kind, for each condition.
        names: Hook points to record.
        deterministic: Whether the best action is done; else logits are sampled, with common random numbers: one number
            decides in a step of a seed under every condition, so that pairs stay pairs.
        outcomes: What to compare beside what the environment's simulator tells of an episode, read from `info`: e.g.
            `rlm.simulators.Outcome(name="is_success", kind="share")`.
        workers: Processes.
        backend: Where they run: `processes` of this machine, or those of a `ray` or `dask` cluster.
        path: Directory to keep the recordings in, one for each condition; a comparison that was interrupted, or one of
            more seeds or conditions, goes on from what is there. None: they are not kept.
        confidence: Nominal coverage of the intervals.
        n_resamples: Bootstrap draws.
        seed: Of the draws, and of the controls.
        progress: Whether to draw a progress bar.

    Returns:
        As `compare_recordings`: dimensions `condition` (the first is `baseline`) and `seed`, `return`, `crashed`…,
        `delta_return[condition]` with `_low`, `_high`, `_se`, `_p`, `_p_holm`. Coordinate `control_of[condition]` names
        the condition that a control belongs to, `never_active[condition]` tells whose edits were never at work. The
        attribute `simulated_share` is how much of the drive had to be simulated.

    Raises:
        ConfigError: No conditions, one named `baseline`, one that is none, or controls that cannot be made.
        SiteError, EditError, EngineError: An edit does not fit the policy; no episode was run.
        EnvironmentFitError: The environment does not fit a policy, or takes no seed.
        RecordingError: The path holds recordings made otherwise.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> push = rlm.steer("hook_q_values", torch.tensor([1.0, 0.0]), 100.0)
        >>> result = rlm.compare_rollouts(
        ...     policy, rlm.make_env("CartPole-v1"), conditions={"left": [push]}, seeds=range(3), progress=False
        ... )
        >>> result["return"].dims, bool((result["delta_return"].sel(condition="baseline") == 0).all())
        (('condition', 'seed'), True)
    """
    env = environment(env, policy=policy)
    policy = acting_in(policy, env)
    when = when_of(when)  # once: it may be an iterator
    chosen = {name: _condition(name, given, when) for name, given in conditions.items()}
    own = {name: one.policy for name, one in chosen.items() if one.policy is not None}
    chosen |= {name: replace(chosen[name], policy=acting_in(other, env)) for name, other in own.items()}
    if not chosen or BASELINE in chosen:
        raise ConfigError(
            "A comparison needs conditions other than the baseline.",
            given=f"conditions named {list(chosen)}",
            expected="at least one, none named 'baseline': the unedited policy is run besides",
            fix="e.g. conditions={'head 3': [rlm.zero_ablation(site)]}",
        )
    seeds = list(seeds)
    chosen, control_of = with_controls(
        policy, env, chosen, kinds=controls, n=n_controls, seeds=seeds, generator_seed=seed
    )
    everything = {BASELINE: Condition()} | chosen
    recordings, cost = record_conditions(
        policy,
        env,
        everything,
        seeds=seeds,
        names=names,
        deterministic=deterministic,
        frames=False,
        outcomes=outcomes,
        workers=workers,
        backend=backend,
        paths=None if path is None else _paths(Path(path), list(everything)),
        progress=progress,
    )
    result = compare_recordings(
        recordings,
        policy=policy,
        control_of=control_of,
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )
    n_steps = sum(len(recording.steps) for recording in recordings.values())
    cost_attrs = {
        "shared_simulation": cost["sharing"],
        "simulated_share": cost["n_simulated"] / n_steps,
        "path": "" if path is None else str(path),
    }
    return storable(result, cost_attrs)


@explain_misuse
def dose_response(
    policy: HookedPolicy,
    env: gym.Env | str,
    *,
    site: Site | str,
    vector: torch.Tensor,
    coefficients: Sequence[float],
    seeds: Iterable[int],
    **options: Any,
) -> xr.Dataset:
    """Steer along a vector, a little and a lot: return, crashes and speed against the coefficient.

    Args:
        policy: The policy.
        env: An environment that fits it, or the id of one.
        site: Where the vector is added.
        vector: Of the site's selected shape: e.g. the weights of a linear probe, or a difference of means.
        coefficients: Factors of the vector; 0 is the baseline and need not be given.
        seeds: Seeds of the episodes.
        **options: Those of `compare_rollouts`: when, workers, backend, path, confidence…

    Returns:
        As `compare_rollouts`, with the coordinate `coefficient[condition]`, sorted by it.

    Raises:
        ConfigError: No coefficient but 0, or one twice.
        EditError: The vector does not fit the site.

    Example:
        >>> import gymnasium as gym, torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> env = gym.make("CartPole-v1")
        >>> given = {"site": "1.hook_out", "vector": torch.ones(8), "coefficients": [0.0, 1.0]}
        >>> result = rlm.episodes.dose_response(policy, env, **given, seeds=range(4), progress=False)
        >>> dict(result.sizes)
        {'condition': 2, 'seed': 4}
    """
    doses = sorted({float(coefficient) for coefficient in coefficients} - {0.0})
    if not doses or len(doses) < len([c for c in coefficients if c != 0]):
        raise ConfigError(
            "A dose-response needs doses.",
            given=f"coefficients={list(coefficients)}",
            expected="at least one that is not 0, none twice",
            fix="e.g. coefficients=(-2, -1, 1, 2)",
        )
    conditions = {f"{dose:+g}": [steer(site, vector, dose)] for dose in doses}
    result = compare_rollouts(policy, env, conditions=conditions, seeds=seeds, **options)
    doses_of = {f"{dose:+g}": dose for dose in doses} | {BASELINE: 0.0}
    given = [doses_of.get(name, np.nan) for name in result["condition"].values.tolist()]
    return result.assign_coords(coefficient=("condition", given)).sortby("coefficient")


def _condition(name: str, given: Any, when: Any) -> Condition:
    from rlmech.core.policy import HookedPolicy

    if isinstance(given, Condition):
        return given if given.when is not None or not given.edits else replace(given, when=when)
    if isinstance(given, HookedPolicy):
        return Condition(policy=given)
    if isinstance(given, Edit):
        return Condition(edits=(given,), when=when)
    if isinstance(given, Sequence) and not isinstance(given, str):
        return Condition(edits=tuple(given), when=when if given else None)
    raise ConfigError(
        f"The condition {name!r} holds nothing that can be driven.",
        given=repr(given),
        expected="edits, a rlm.Condition, or a policy",
        fix="e.g. conditions={'head 3': [rlm.zero_ablation(site)]}",
    )


def _paths(path: Path, names: list[str]) -> dict[str, Path]:
    """A directory for each condition, told by its name."""
    folders = {name: re.sub(r"[^\w.+-]+", "_", name) for name in names}
    if len(set(folders.values())) < len(names):
        raise ConfigError(
            "The conditions cannot be told apart on disk.",
            given=f"conditions named {names}",
            expected="names that differ in letters or digits",
            fix="rename one of them",
        )
    return {name: path / folder for name, folder in folders.items()}
