"""Exact Shapley values of 14 vehicles, beside shap's enumeration and its converged kernel estimate of the same game.

    python -m benchmarks.shapley

The shipped intersection policy, states that it met with the free rows filled with vehicles of other states, so that 14
are there. shap is given the game as a function of who is there, answered by batches of the policy. Interleaved, CPU
time; shap's on one state, ours on 64. shap is a peer (`requirements-peers.txt`): it compiles with numba.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rlmech as rlm
from benchmarks import tables
from benchmarks.clock import interleave, ratios

N_STATES, N_VEHICLES = 64, 14


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapley", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=tables.RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(rounds=given.rounds)
    table = tables.plain_table(rows)
    print(table)
    print("written:", *tables.save("shapley", rows=rows, table=table, where=given.out))


def measure(*, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds a state, the ratio to shap's exact enumeration, and the largest difference of values."""
    import shap

    policy = rlm.load("zoo:intersection-ego-attention")
    obs = full_states(policy)
    game, empty, everyone = who_is_there(policy, obs[0]), np.zeros((1, N_VEHICLES)), np.ones((1, N_VEHICLES))
    ours = rlm.attribution.shapley_values(policy, obs)
    wanted = ours["value"].values[0]

    def exact() -> np.ndarray:
        return shap.explainers.Exact(game, empty)(everyone, max_evals=1 << 16, silent=True).values[0]

    def kernel() -> np.ndarray:
        explainer = shap.KernelExplainer(game, empty)
        return explainer.shap_values(everyone, nsamples=1 << N_VEHICLES, l1_reg=False, silent=True)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        difference = {
            "shap, all coalitions": float(np.abs(exact() - wanted).max()),
            "shap, kernel, all coalitions": float(np.abs(kernel() - wanted).max()),
        }
        timed: dict[str, Callable[[], object]] = {
            "shap, all coalitions": exact,
            "shap, kernel, all coalitions": kernel,
            f"rlmech, {N_STATES} states": lambda: rlm.attribution.shapley_values(policy, obs),
        }
        seconds = interleave(timed, rounds=rounds)
    own = f"rlmech, {N_STATES} states"
    seconds[own] = [value / N_STATES for value in seconds[own]]
    found: list[dict[str, Any]] = []
    for name, ratio in ratios(seconds, reference=own).items():
        found.append(
            {
                "method": name,
                "milliseconds_a_state": ratio.microseconds / 1e3,
                "times_rlmech": ratio.median,
                "times_low": ratio.low,
                "times_high": ratio.high,
                "largest_difference": difference.get(name, 0.0),
            }
        )
    return found


def full_states(policy: rlm.HookedPolicy) -> torch.Tensor:
    """States of a drive in which all 14 vehicles are there."""
    recording = rlm.record(policy, rlm.make_env("intersection-v2"), seeds=range(12), progress=False)
    obs = torch.as_tensor(recording.observations)
    obs = obs[(obs[..., 0] > 0.5).sum(1).argsort(descending=True, stable=True)[:N_STATES]].clone()
    generator = torch.Generator().manual_seed(0)
    for row in obs:
        pool = obs[torch.randperm(len(obs), generator=generator)[:20]][:, 1:].flatten(0, 1)
        pool = pool[pool[:, 0] > 0.5]
        free = (row[:, 0] < 0.5).nonzero()[:, 0]
        row[free] = pool[torch.randperm(len(pool), generator=generator)[: len(free)]]
    return obs


def who_is_there(policy: rlm.HookedPolicy, state: torch.Tensor) -> Callable[[np.ndarray], np.ndarray]:
    """The action gap of a state as a function of which vehicles are there, `[coalition vehicle]`."""
    with torch.no_grad():
        better, worse = policy(state[None])[0].topk(2).indices.tolist()

    def gap(present: np.ndarray) -> np.ndarray:
        obs = state.expand(len(present), *state.shape).clone()
        obs[:, 1:] *= torch.from_numpy(np.asarray(present, dtype=np.float32))[..., None]
        with torch.no_grad():
            scores = policy(obs)
        return (scores[:, better] - scores[:, worse]).numpy()

    return gap


if __name__ == "__main__":
    main()
