"""A first look at the shipped ego-attention policy: whom does it attend to, and which head carries that to the action?

    python experiments/01_first_look/run.py [--smoke] [--episodes N] [--out DIR]

Only what `import rlmech` shows. About a minute for 20 episodes; `--smoke` takes two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import rlmech as rlm


def take_away(policy: rlm.HookedPolicy, recording: rlm.Recording) -> tuple[np.ndarray, np.ndarray]:
    """Pair each observation with one that lacks the vehicle most attended to; keep those that change the action."""
    weights = rlm.plot.recorded_pattern(recording).isel(query=0).sum("head").transpose("step", "key").values[:, 1:]
    there = recording.observations[:, 1:, policy.spec.presence_index] >= 0.5
    clean = recording.observations[there.any(axis=1)]
    row = np.where(there, weights, -np.inf)[there.any(axis=1)].argmax(axis=1) + 1
    corrupt = clean.copy()
    corrupt[np.arange(len(row)), row] = 0  # an absent vehicle's row is all zeros; the simulator is left alone
    flips = policy.predict(clean)[0] != policy.predict(corrupt)[0]
    return (clean[flips], corrupt[flips]) if flips.any() else (clean, corrupt)


def main() -> None:
    """Record, patch, ablate, read the circuits, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="zoo:intersection-ego-attention")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("report/first_look.html"))
    parser.add_argument("--smoke", action="store_true", help="two episodes: does it run?")
    given = parser.parse_args()

    policy = rlm.load(given.policy)
    block = next(iter(policy.attention.values()))
    env = rlm.make_env("intersection-v2", config=policy.spec.env_config or None)
    seeds = range(2 if given.smoke else given.episodes)
    recording = rlm.record(policy, env, seeds=seeds, names=[block.names["pattern"]])
    clean, corrupt = take_away(policy, recording)

    # Is a head's output enough to bring the decision back? Is a vehicle's embedding needed for it?
    heads = policy.sites(block.names["z"], over=("head",))
    enough = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=heads, direction="denoise")
    vehicles = policy.sites("*others_embedding.relu_1.hook_out", over=("entity",))
    needed = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=vehicles, direction="noise")
    ablated = rlm.ablation_sweep(policy, recording.observations, sites=heads, kind="mean", metric=rlm.action_flip())

    # What the nearest vehicle's features do to its attention score, and to the scores of the actions.
    states = torch.as_tensor(recording.observations)
    qk = rlm.qk_circuit(policy, space="feature", obs=states)
    ov = rlm.ov_circuit(policy, space="feature", obs=states)

    show = rlm.plot
    panels = [
        (
            "Step by step",
            "Road, scores and attention; the buttons jump to changes of action.",
            show.episodes(recording),
        ),
        ("Heads: enough?", "Share of the action gap that one head's clean output brings back.", show.sweep(enough)),
        ("Vehicles: needed?", "Share of it lost when a vehicle's embedding is an absent one's.", show.sweep(needed)),
        ("Heads, mean-ablated", "Share of states in which the action changes (offline).", show.sweep(ablated)),
        (
            "QK of the nearest vehicle",
            "Ego feature by its feature, to its score.",
            show.circuit(qk, entity="vehicle_1"),
        ),
        ("OV of the nearest vehicle", "Its feature, to each action's score.", show.circuit(ov, entity="vehicle_1")),
    ]
    page = rlm.report(
        [show.Section(title=title, panels=(show.Panel(title=title, meaning=meaning, figure=figure),))
         for title, meaning, figure in panels],
        given.out,
        title="A first look",
        facts=[("episodes", str(len(recording))), ("pairs", str(len(clean)))],
    )  # fmt: skip
    best = enough.isel(site=int(enough["effect"].values.argmax()))
    effect, low, high = (float(best[name]) for name in ("effect", "effect_low", "effect_high"))
    print(f"head {int(best['head'])} brings back {effect:.2f} [{low:.2f}, {high:.2f}] of the action gap")
    print(f"the page is at {page}")


if __name__ == "__main__":
    main()
