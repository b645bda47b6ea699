"""Closed loops: every unit of a 2 x 64 actor-critic on CartPole, ablated through whole episodes.

`compare_rollouts` is timed whole: driving, writing, reading, intervals. Beside it the same conditions in a plain loop
(one environment, `policy.edited`, one forward pass and one step at a time, nothing written), on a few of them, and the
environment's own steps alone. CPU time of one thread, per step of an episode, interleaved in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import rlmech as rlm
from benchmarks.clock import summary

ENV, N_SEEDS, N_LOOPED = "CartPole-v1", 20, 2


class ActorCritic(nn.Module):
    """Scores and state value by one body of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.actor, self.critic = nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run it."""
        hidden = self.body(obs)
        return self.actor(hidden), self.critic(hidden)[:, 0]


def _agent() -> tuple[rlm.HookedPolicy, torch.Tensor]:
    """An agent that balances the pole, taught what a linear controller does, and states."""
    torch.manual_seed(0)
    net = ActorCritic()
    states = torch.randn(4096, 4) * torch.tensor([1.0, 1.0, 0.15, 1.0])
    wanted = (states @ torch.tensor([0.1, 0.3, 3.0, 1.0]) > 0).long()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(states)[0], wanted).backward()
        optimiser.step()
    return rlm.HookedPolicy(net, torch.rand(2, 4), output_kind="logits"), states[:64]


def _conditions(policy: rlm.HookedPolicy, reference: torch.Tensor) -> dict[str, list[rlm.Edit]]:
    return {
        f"layer {layer}, unit {unit}": [rlm.mean_ablation(rlm.Site(name, neuron=unit), reference=reference)]
        for layer, name in enumerate(("body.1.hook_out", "body.3.hook_out"))
        for unit in range(64)
    }


def measure(*, rounds: int) -> Iterator[dict[str, object]]:
    """Microseconds of CPU a step, and ratios."""
    policy, reference = _agent()
    conditions = _conditions(policy, reference)
    looped = dict(list(conditions.items())[:N_LOOPED])
    rlm.compare_rollouts(policy, ENV, conditions=looped, seeds=range(4), progress=False)  # imports, warms up
    seconds: dict[str, list[float]] = {}
    whole: list[float] = []
    simulated = 0.0
    for turn in range(rounds):
        seeds = range(turn * N_SEEDS, (turn + 1) * N_SEEDS)
        start = time.thread_time()
        result = rlm.compare_rollouts(policy, ENV, conditions=conditions, seeds=seeds, progress=False)
        whole.append(time.thread_time() - start)
        simulated = float(result.attrs["simulated_share"])
        for name, took, n_steps in (
            ("compare_rollouts", whole[-1], float(result["length"].sum())),
            ("plain loop", *_timed(lambda s=seeds[:2]: _plain_loop(policy, looped, s))),
            ("environment alone", *_timed(lambda s=seeds[:2]: _bare(s))),
        ):
            seconds.setdefault(name, []).append(took / n_steps)
    label = f"{len(conditions)} units x {N_SEEDS} seeds, whole compare_rollouts"
    yield summary(f"{label}: seconds", whole, aim="<= 15")
    for name, own in seconds.items():
        yield summary(f"{name}: microseconds a step", [1e6 * each for each in own])
    for name in ("plain loop", "environment alone"):
        yield summary(
            f"{name} / compare_rollouts",
            [a / b for a, b in zip(seconds[name], seconds["compare_rollouts"], strict=True)],
        )
    yield summary("share of the steps that was simulated", [simulated])


def _timed(call: Callable[[], int]) -> tuple[float, int]:
    start = time.thread_time()
    n_steps = call()
    return time.thread_time() - start, n_steps


def _plain_loop(policy: rlm.HookedPolicy, conditions: dict[str, list[rlm.Edit]], seeds: Any) -> int:
    env, n_steps = rlm.make_env(ENV), 0
    for edits in ([], *conditions.values()):
        with policy.edited(edits) if edits else policy.hooks():
            for seed in seeds:
                observation, done = env.reset(seed=seed)[0], False
                while not done:
                    observation, _, terminated, truncated, _ = env.step(int(policy.predict(observation)[0]))
                    done = terminated or truncated
                    n_steps += 1
    return n_steps


def _bare(seeds: Any) -> int:
    env, n_steps = rlm.make_env(ENV), 0
    for seed in seeds:
        env.reset(seed=seed)
        for t in range(20000 // len(seeds)):
            _, _, terminated, _, _ = env.step(t & 1)
            n_steps += 1
            if terminated:
                env.reset()
    return n_steps
