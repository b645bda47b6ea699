"""A first look at any policy: record it, take away whom it attends to most, patch, ablate, read its circuits.

The pairs are observation edits: in the corrupt observation the row of one vehicle is absent, all zeros, while the
simulator knows nothing of it. Kept are the pairs in which that changes the action. Intervals resample whole episodes,
since states of one resemble each other. Cost: the episodes, mostly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int

from rlmech.circuits import ov_circuit, qk_circuit
from rlmech.core.masked import is_masked
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.episodes import Recording, moments, record
from rlmech.errors import ObservationError
from rlmech.first_look.driven import Driven, drive
from rlmech.first_look.neurons import acting_layers, decision_change, rank_neurons
from rlmech.first_look.own_pictures import pictures
from rlmech.metrics.score_metrics import action_gap
from rlmech.patching.ablation import ablation_sweep
from rlmech.patching.activations import activation_patching
from rlmech.plot import SvgFigure, recorded_pattern
from rlmech.plot.drawn_scene import is_drawable

if TYPE_CHECKING:
    import gymnasium as gym

FEWEST_PAIRS = 8
N_DRIVEN = 8
HEAD_PARTS = ("k", "v", "mask", "pattern", "z")
ABLATIONS: tuple[Literal["mean", "resample", "zero"], ...] = ("mean", "resample", "zero")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Observations with a vehicle, and without it.

    Attributes:
        clean: Observations as recorded.
        corrupt: The same with one row set to zero.
        removed: The row taken away.
        rows: Which steps of the recording they are.
        n_states: Steps that were tried: those in which a vehicle is observed.
        n_flips: Steps of those in which the action changes.
        chosen_by: How the vehicle was chosen.
    """

    clean: Float[np.ndarray, "pair entity feature"]
    corrupt: Float[np.ndarray, "pair entity feature"]
    removed: Int[np.ndarray, " pair"]
    rows: Int[np.ndarray, " pair"]
    n_states: int
    n_flips: int
    chosen_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstLook:
    """What a first look found; entries are absent where the policy has no such thing.

    Attributes:
        policy: The policy.
        recording: Its episodes.
        block: Path of the attention block looked at, or None.
        pairs: Clean and corrupt observations, or None for observations that are not made of entities.
        patching: Sweeps by name: `heads`, `vehicles`, `values`; or `features`, for policies without attention.
        ablation: Sweeps of the heads (or layers) by kind of ablation: how often the action changes.
        circuits: `qk` and `ov`.
        driven: Ablations that drove, beside the same episodes untouched.
        neurons: Without attention, each neuron of the acting network at its mean, the strongest first.
        pictures: The environment's own pictures, by row of the recording, where its scenes are not drawn.
    """

    policy: HookedPolicy
    recording: Recording
    block: str | None
    pairs: Pairs | None
    patching: dict[str, xr.Dataset]
    ablation: dict[str, xr.Dataset]
    circuits: dict[str, xr.Dataset]
    driven: Driven | None = None
    neurons: xr.Dataset | None = None
    pictures: dict[int, SvgFigure] = field(default_factory=dict[int, SvgFigure])


def first_look(
    policy: HookedPolicy,
    env: gym.Env[Any, Any],
    *,
    seeds: Iterable[int] = range(20),
    n_driven: int = N_DRIVEN,
    path: str | Path | None = None,
    workers: int = 1,
    progress: bool = True,
    say: Say = lambda what: None,
) -> FirstLook:
    """Record a policy and run the first analyses on it.

    Args:
        policy: The policy.
        env: An environment that fits it.
        seeds: Seeds of the episodes.
        n_driven: On how many of them, from the first, ablations drive; 0: none do.
        path: Where to keep the recording; None for a temporary place.
        workers: Processes to record in.
        progress: Whether to draw a progress bar while recording.
        say: Told what is being done, before each part.

    Returns:
        Recording, pairs, sweeps, circuits and driven ablations.

    Raises:
        EnvironmentFitError: The environment does not fit the policy.
        RecordingError: The path is taken.
    """
    block = next(iter(policy.attention), None)
    names = [policy.attention[block].names["pattern"]] if block is not None else []
    say("recording episodes")
    recording = record(policy, env, seeds=seeds, names=names, path=path, workers=workers, progress=progress)
    pairs = None
    if _has_entities(policy):
        say("making clean/corrupt pairs")
        pairs = take_away(policy, recording)
    say("patching")
    patching = {} if pairs is None else _patch(policy, recording, pairs, block)
    say("ablating")
    ablation = _ablate(policy, recording, block)
    neurons = None if block is not None else rank_neurons(policy, recording)
    say("reading circuits")
    circuits = _circuits(policy, recording, block)
    driven = None
    if n_driven:
        say("driving with parts ablated")
        shared: dict[str, Any] = {"workers": workers, "progress": progress}
        driven = drive(policy, env, recording, block=block, neurons=neurons, n_seeds=n_driven, names=names, **shared)
    return FirstLook(
        policy=policy,
        recording=recording,
        block=block,
        pairs=pairs,
        patching=patching,
        ablation=ablation,
        circuits=circuits,
        driven=driven,
        neurons=neurons,
        pictures={} if is_drawable(recording) else pictures(env, recording),
    )


def take_away(policy: HookedPolicy, recording: Recording) -> Pairs:
    """Pair each recorded observation with one that lacks a vehicle: the most attended, or else the first row's.

    Args:
        policy: The policy.
        recording: Its episodes; with a recorded pattern the vehicle is the one that all heads together attend to most.

    Returns:
        The pairs in which the action changes; where those are fewer than 8, those in which the gap between the best
        and the second action changes most, 32 at most.

    Raises:
        ObservationError: The observations are not made of entities with a presence feature.
    """
    presence = policy.spec.presence_index
    observations = recording.observations
    if presence is None or isinstance(observations, dict) or observations.ndim != 3:
        raise ObservationError(
            "No vehicle can be taken away from these observations.",
            given="observations without rows for entities, or without a presence feature",
            expected="a Kinematics observation with the feature 'presence'",
            fix="give pairs of your own to rlm.activation_patching",
        )
    there = observations[:, 1:, presence] >= 0.5
    rows = np.flatnonzero(there.any(axis=1))
    if len(rows) == 0:
        raise ObservationError(
            "No recorded observation has another vehicle in it.",
            given=f"{len(observations)} observations",
            expected="traffic in some of them",
            fix="record more episodes",
        )
    attended = bool(recording.manifest["activations"])
    if attended:
        weights = recorded_pattern(recording).isel(query=0).sum("head").transpose("step", "key").values[:, 1:]
    else:
        weights = -np.broadcast_to(np.arange(there.shape[1], dtype=float), there.shape)
    removed = np.where(there, weights, -np.inf)[rows].argmax(axis=1) + 1
    clean = observations[rows]
    corrupt = clean.copy()
    corrupt[np.arange(len(rows)), removed] = 0
    with torch.no_grad():
        before, after = policy(clean).cpu().numpy(), policy(corrupt).cpu().numpy()
    flips = before.argmax(-1) != after.argmax(-1)
    kept = np.flatnonzero(flips)
    if len(kept) < FEWEST_PAIRS:
        kept = np.sort(np.argsort(-np.abs(_lead(before, before) - _lead(after, before)))[:32])
    return Pairs(
        clean=clean[kept],
        corrupt=corrupt[kept],
        removed=removed[kept],
        rows=rows[kept],
        n_states=len(rows),
        n_flips=int(flips.sum()),
        chosen_by="most attended, all heads together" if attended else "first row that is there",
    )


def _lead(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The reference's best action's score less its second's; 0 where one of them is masked in either."""
    order, rows = reference.argsort(-1), np.arange(len(scores))
    best, second = (scores[rows, order[:, -place]] for place in (1, 2))
    shown = np.stack(
        [
            ~is_masked(torch.as_tensor(each)).numpy()[rows, order[:, -place]]
            for each in (scores, reference)
            for place in (1, 2)
        ]
    ).all(0)
    return np.where(shown, best, 0) - np.where(shown, second, 0)


def _has_entities(policy: HookedPolicy) -> bool:
    return policy.spec.presence is not None and policy.hook_dict["hook_obs"].axes == ("batch", "entity", "feature")


def clusters(recording: Recording, rows: Int[np.ndarray, " row"] | None = None) -> Int[np.ndarray, " row"] | None:
    """The episode of each step, or of some; None where they are all of one, which tells nothing of how others vary."""
    episodes = recording.steps["episode"].to_numpy()
    chosen = episodes if rows is None else episodes[rows]
    return chosen if len(np.unique(chosen)) > 1 else None


def _patch(policy: HookedPolicy, recording: Recording, pairs: Pairs, block: str | None) -> dict[str, xr.Dataset]:
    """Denoise what reads the scene (is it enough?), and noise the vehicle's own path (is it needed?)."""
    episodes = clusters(recording, pairs.rows)

    def sweep(sites: Sequence[Site], direction: Literal["denoise", "noise"]) -> xr.Dataset:
        return activation_patching(
            policy,
            clean=pairs.clean,
            corrupt=pairs.corrupt,
            sites=sites,
            metric=action_gap(),
            direction=direction,
            clusters=episodes,
        )

    if block is None:
        return {"features": sweep(policy.sites("hook_obs", over=("entity", "feature")), "denoise")}
    names = policy.attention[block].names
    heads = [names[part] for part in HEAD_PARTS if part in names]
    embedding = vehicle_embedding(policy, block)
    sweeps = {"heads": sweep(policy.sites(heads, over=("head",)), "denoise")}
    if embedding is not None:
        sweeps["vehicles"] = sweep(policy.sites(embedding, over=("entity",)), "noise")
    if "v" in names:
        sweeps["values"] = sweep(policy.sites(names["v"], over=("head", "entity")), "noise")
    return sweeps


def vehicle_embedding(policy: HookedPolicy, block: str) -> str | None:
    """The last hook point before an attention block that holds every other vehicle's embedding, or None."""
    names = policy.attention[block].names
    first = next(names[role] for role in ("k", "v", "attn_scores") if role in names)
    before = list(policy.hook_dict)[: list(policy.hook_dict).index(first)]
    others = policy.spec.entities[1:]
    found = [
        name
        for name in before
        if policy.hook_dict[name].kind == "activation" and policy.hook_dict[name].labels.get("entity") == others
    ]
    return found[-1] if found else None


def _ablate(policy: HookedPolicy, recording: Recording, block: str | None) -> dict[str, xr.Dataset]:
    if block is None:
        sites = [Site(name) for name in acting_layers(policy)]
    else:
        sites = policy.sites(policy.attention[block].names["z"], over=("head",))
    if not sites:
        return {}
    observations, episodes = moments(recording, policy), clusters(recording)
    return {
        f"{kind} ablation": ablation_sweep(
            policy, observations, sites=sites, kind=kind, metric=decision_change(policy), clusters=episodes
        )
        for kind in ABLATIONS
    }


def _circuits(policy: HookedPolicy, recording: Recording, block: str | None) -> dict[str, xr.Dataset]:
    if block is None or not _has_entities(policy):
        return {}
    states = torch.as_tensor(recording.observations)
    return {
        "qk": qk_circuit(policy, block, space="feature", obs=states),
        "ov": ov_circuit(policy, block, space="feature", obs=states),
    }
