"""What is looked at: recorded episodes, the moments at which the action changes, and the scene in metres."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

import rlmech as rlm

FAST = "highway-fast-v0"
DENSE = ("highway-v0", {"vehicles_count": 50, "lanes_count": 3})
FIRST_SEED = 300_000  # none of them was trained, validated or evaluated on
LAYERS = {
    "hidden_1": "q_net.0.hook_out",
    "hidden_1_relu": "q_net.1.hook_out",
    "hidden_2": "q_net.2.hook_out",
    "hidden_2_relu": "q_net.3.hook_out",
}
LANE = 4.0  # m
BESIDE = 2.0  # m; nearer than that across the road is the same lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Everything that is computed on.

    Attributes:
        policy: The policy.
        fast: Its episodes of the environment that it was trained in.
        dense: One episode of `highway-v0` with 50 vehicles on 3 lanes.
    """

    policy: rlm.HookedPolicy
    fast: rlm.Recording
    dense: rlm.Recording

    @property
    def seen(self) -> np.ndarray:
        """Observations `[step, entity, feature]` of all episodes of `fast`."""
        return np.asarray(self.fast.observations)

    @property
    def episode(self) -> np.ndarray:
        """The episode of each of them."""
        return self.fast.steps["episode"].to_numpy()

    def held_out(self) -> np.ndarray:
        """Which of them belong to the last third of the episodes."""
        return self.episode >= max(1, round(2 * len(self.fast) / 3))

    def place(self, feature: str) -> int:
        """Where a feature stands in a row of the observation."""
        return self.policy.spec.index("feature", feature)

    def physical(self, feature: str) -> np.ndarray:
        """A feature in its own unit, `[step, entity]`; other vehicles' positions and speeds relative to the ego's."""
        place = self.place(feature)
        return np.asarray(self.policy.spec.features[place].physical(self.seen[..., place]))

    def inputs(self) -> list[str]:
        """Names of the 25 inputs, in the order in which the first layer reads them."""
        spec = self.policy.spec
        return [f"{entity} {feature.name}" for entity in spec.entities for feature in spec.features]


def load(folder: Path, *, episodes: int, dense_steps: int) -> Data:
    """The policy and its episodes, recorded once."""
    policy = rlm.load("zoo:highway-dqn-mlp")
    env_id, config = DENSE
    fast = _recorded(policy, folder / f"{FAST}_{episodes}", FAST, policy.spec.env_config, episodes)
    config = config | {"duration": dense_steps}
    dense = _recorded(policy, folder / f"{env_id}_{dense_steps}", env_id, config, 1)
    return Data(policy=policy, fast=fast, dense=dense)


def _recorded(policy: rlm.HookedPolicy, path: Path, env_id: str, config: Mapping[str, object], n: int) -> rlm.Recording:
    if path.exists() and len(kept := rlm.Recording.load(path)) == n:
        if kept.manifest["policy"]["fingerprint"] == policy.fingerprint:
            return kept
        raise SystemExit(f"{path} holds episodes of another policy: remove it, or give --recordings another folder.")
    env = rlm.make_env(env_id, config=dict(config))
    seeds = range(FIRST_SEED, FIRST_SEED + n)
    return rlm.record(policy, env, seeds=seeds, names=list(LAYERS.values()), path=path, progress=False)


def changes(recording: rlm.Recording, spec: rlm.PolicySpec) -> xr.Dataset:
    """The moments at which the action is another than the step before, with what the policy saw and computed then.

    An episode's first step has no last action and is no change. All arrays are of the step at which the new action was
    chosen: `observation[change, entity, feature]`, `last_action[change]`, `new_action[change]`, each hidden layer
    `[change, neuron]`, and `episode`, `step`, `row`, the step's place in the recording.
    """
    steps, taken = recording.steps, np.asarray(recording.actions).astype(int)
    same = steps["episode"].to_numpy()[1:] == steps["episode"].to_numpy()[:-1]
    rows = np.flatnonzero(same & (taken[1:] != taken[:-1])) + 1
    names = np.array(spec.actions)
    data = {
        "observation": (("change", "entity", "feature"), np.asarray(recording.observations)[rows]),
        "last_action": ("change", names[taken[rows - 1]]),
        "new_action": ("change", names[taken[rows]]),
        **{layer: (("change", "neuron"), recording.activation(hook)[rows]) for layer, hook in LAYERS.items()},
        "row": ("change", rows),
        "episode": ("change", steps["episode"].to_numpy()[rows]),
        "step": ("change", steps["step"].to_numpy()[rows]),
    }
    coords = {"entity": list(spec.entities), "feature": [feature.name for feature in spec.features]}
    return xr.Dataset(data, coords=coords, attrs={"policy": recording.manifest["policy"]["fingerprint"]})


def saved(found: xr.Dataset, path: Path) -> xr.Dataset:
    """Write changes as netCDF, in place of an older file, and read them back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found.to_netcdf(path, engine="scipy")
    with xr.open_dataset(path, engine="scipy") as again:
        return again.load()


def scene(policy: rlm.HookedPolicy, seen: np.ndarray) -> dict[str, np.ndarray]:
    """What the observation says of the road, one number a state; NaN where no such vehicle is observed.

    Gaps are from centre to centre in metres, speeds in m/s, `lane` counts from 0 at the left. Another vehicle's
    position and speed are observed relative to the ego's.
    """
    spec = policy.spec
    names = [feature.name for feature in spec.features]
    x, y, vx = (spec.features[names.index(n)].physical(seen[..., names.index(n)]) for n in ("x", "y", "vx"))
    there = seen[:, 1:, names.index("presence")] >= 0.5
    dx, dy, closing = x[:, 1:], y[:, 1:], -vx[:, 1:]

    def nearest(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
        distance = np.where(chosen & there, np.abs(dx), np.inf)
        rows = np.arange(len(seen)), distance.argmin(1)
        return np.where(np.isfinite(distance[rows]), values[rows], np.nan)

    own, ahead = np.abs(dy) < BESIDE, dx > 0
    left, right = np.abs(dy + LANE) < BESIDE, np.abs(dy - LANE) < BESIDE
    return {
        "own speed": vx[:, 0],
        "lane": np.round(y[:, 0] / LANE),
        "gap ahead": nearest(own & ahead, dx),
        "closing speed": nearest(own & ahead, closing),
        "gap ahead, left lane": nearest(left & ahead, dx),
        "gap ahead, right lane": nearest(right & ahead, dx),
    }
