"""Table D: why is one policy's single unit needed and another's not? Students of one behaviour, taught differently.

All students of a teacher see the same states: its own episodes, and episodes in which a fifth of its decisions are
drawn. They differ in the activation (ReLU or tanh), in the target (the teacher's actions, by cross-entropy, or its
action values, by least squares) and in the seed.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import rlmech as rlm

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
TARGETS = ("actions", "values")
DRAWN = 0.2
COLUMNS = (
    *("return", "worst", "worst_share", "worst_share_low", "worst_share_high", "n_units", "n_large", "n_half"),
    *("reliability", "flips_and_loss", "gain", "gain_low", "gain_high"),
)


def lessons(teacher: rlm.HookedPolicy, env: Any, *, n_episodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States, and the teacher's action values there."""
    rng = np.random.default_rng(0)

    def draw(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        return torch.as_tensor(rng.random(scores.shape), dtype=scores.dtype) if rng.random() < DRAWN else scores

    fresh = range(1000, 1000 + n_episodes)
    output = f"hook_{teacher.output_kind}"
    own = rlm.record(teacher, env, seeds=fresh, progress=False).observations
    astray = rlm.record(teacher, env, seeds=fresh, edits=[(output, draw)], progress=False).observations
    states = torch.as_tensor(np.concatenate([own, astray])).float()
    with torch.no_grad():
        return states, teacher(states)


def student(
    states: torch.Tensor, scores: torch.Tensor, *, target: str, activation: str, seed: int, width: int, n_steps: int
) -> nn.Module:
    """A perceptron of two hidden layers, taught."""
    torch.manual_seed(seed)
    bend = ACTIVATIONS[activation]
    net = nn.Sequential(
        nn.Linear(states.shape[1], width), bend(), nn.Linear(width, width), bend(), nn.Linear(width, scores.shape[1])
    )
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=n_steps)
    actions, values = scores.argmax(1), (scores - scores.mean()) / scores.std()
    for _ in range(n_steps):
        rows = torch.randint(len(states), (512,))
        said = net(states[rows])
        loss = (
            nn.functional.cross_entropy(said, actions[rows])
            if target == "actions"
            else nn.functional.mse_loss(said, values[rows])
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def table(
    teachers: dict[str, rlm.HookedPolicy],
    *,
    sizes: Any,
    out: Path,
    n_seeds: int,
    n_episodes: int,
    n_steps: int,
    width: int,
) -> pd.DataFrame:
    """A row a student, written as soon as it is measured; goes on from what is there."""
    file = out / "students.csv"
    there = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["teacher", "activation", "target", "seed"])
    rows: list[dict[str, Any]] = there.to_dict("records")
    done = {(row["teacher"], int(row["seed"]), row["activation"], row["target"]) for row in rows}
    for name, teacher in teachers.items():
        jobs = [job for job in product(range(n_seeds), ACTIVATIONS, TARGETS) if (name, *job) not in done]
        if not jobs:
            continue
        env = rlm.make_env(teacher.spec)
        states, scores = lessons(teacher, env, n_episodes=n_episodes)
        unseen = rlm.record(teacher, env, seeds=range(2000, 2000 + max(4, n_episodes // 4)), progress=False)
        for seed, activation, target in jobs:
            net = student(states, scores, target=target, activation=activation, seed=seed, width=width, n_steps=n_steps)
            policy = rlm.HookedPolicy(
                net,
                states[:2],
                output_kind="logits" if target == "actions" else "q_values",
                action_space=teacher.action_space,
            )
            found = rlm.atlas.drive_units(policy, env, sizes=sizes)
            fidelity = float((policy.predict(unseen.observations)[0] == unseen.actions).mean())
            rows.append(
                {"teacher": name, "activation": activation, "target": target, "seed": seed, "fidelity": fidelity}
                | {column: found.get(column) for column in COLUMNS}
            )
            result = pd.DataFrame(rows)
            result.to_csv(file, index=False, float_format="%.6g")
            result.to_parquet(out / "students.parquet", index=False)
    return pd.DataFrame(rows)
