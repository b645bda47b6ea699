"""A first look at the shipped ego-attention policy: whom does it attend to, and which head carries that to the action?

    python experiments/01_first_look/run.py [--smoke] [--episodes N] [--policy P] [--out PAGE]

Only what `import rlmech` shows. About a minute for 20 episodes; `--smoke` takes two of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import rlmech as rlm

PATCH = "rlm.plot.sweep(rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites={}, direction={!r}))"
ABLATE = (
    "rlm.plot.sweep(rlm.ablation_sweep(policy, observations, sites=heads, kind='mean', "
    "metric=rlm.metrics.action_flip()))"
)
CIRCUIT = "rlm.plot.circuit(rlm.circuits.{}_circuit(policy, space='feature', obs=observations), entity='vehicle_1')"


def take_away(policy: rlm.HookedPolicy, recording: rlm.Recording) -> tuple[np.ndarray, np.ndarray]:
    """Pair each observation with one that lacks the vehicle most attended to; keep those that change the action."""
    weights = rlm.plot.recorded_pattern(recording).isel(query=0).sum("head").transpose("step", "key").values[:, 1:]
    there = recording.observations[:, 1:, policy.spec.presence_index] >= 0.5
    traffic = there.any(axis=1)
    clean, row = recording.observations[traffic], np.where(there, weights, -np.inf)[traffic].argmax(axis=1) + 1
    corrupt = clean.copy()
    corrupt[np.arange(len(row)), row] = 0  # an absent vehicle's row is all zeros; the simulator is left alone
    flips = policy.predict(clean)[0] != policy.predict(corrupt)[0]
    return (clean[flips], corrupt[flips]) if flips.any() else (clean, corrupt)


def main() -> None:
    """Record, patch, ablate, read the circuits, write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
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
    observations = torch.as_tensor(recording.observations)
    clean, corrupt = take_away(policy, recording)

    # Is a head's output enough to bring the decision back? Is a vehicle's embedding needed for it?
    heads = policy.sites(block.names["z"], over=("head",))
    vehicles = policy.sites("*others_embedding.relu_1.hook_out", over=("entity",))
    enough = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=heads, direction="denoise")
    needed = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=vehicles, direction="noise")
    ablated = rlm.ablation_sweep(policy, observations, sites=heads, kind="mean", metric=rlm.metrics.action_flip())
    qk = rlm.plot.circuit(rlm.circuits.qk_circuit(policy, space="feature", obs=observations), entity="vehicle_1")
    ov = rlm.plot.circuit(rlm.circuits.ov_circuit(policy, space="feature", obs=observations), entity="vehicle_1")

    def panel(title: str, meaning: str, figure: rlm.plot.Figure | rlm.plot.Steps, code: str) -> rlm.plot.Panel:
        return rlm.plot.Panel(title=title, meaning=meaning, figure=figure, code=code)

    steps = rlm.plot.episodes(recording)
    did = panel("Step by step", "Buttons jump to changes of action.", steps, "rlm.plot.episodes(recording)")
    parts = (
        panel("Each head's output: enough?", "Share of the action gap that it brings back into the run without "
              "the vehicle.", rlm.plot.sweep(enough), PATCH.format("heads", "denoise")),
        panel("Each vehicle's embedding: needed?", "Share of the gap lost when it is that of an absent vehicle.",
              rlm.plot.sweep(needed), PATCH.format("vehicles", "noise")),
        panel("Each head, mean-ablated", "Share of states in which the action changes, offline.",
              rlm.plot.sweep(ablated), ABLATE),
    )  # fmt: skip
    weights = (
        panel("QK", "What moves a head's attention to the vehicle in the first row.", qk, CIRCUIT.format("qk")),
        panel("OV", "What it then adds to each action's score.", ov, CIRCUIT.format("ov")),
    )
    named = {"What it did": (did,), "Which parts carry the decision": parts, "What its weights say": weights}
    sections = [rlm.plot.Section(title=title, panels=panels) for title, panels in named.items()]
    facts = [("policy", given.policy), ("episodes", str(len(recording))), ("pairs", str(len(clean)))]
    page = rlm.plot.page(sections, given.out, title="A first look", facts=facts)
    best = enough.isel(site=int(enough["effect"].values.argmax()))
    effect, low, high = (float(best[name]) for name in ("effect", "effect_low", "effect_high"))
    print(f"head {int(best['head'])} brings back {effect:.2f} [{low:.2f}, {high:.2f}] of the action gap")
    print(f"the page is at {page}")


if __name__ == "__main__":
    main()
