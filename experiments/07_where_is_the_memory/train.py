"""Train the policy whose memory is looked for, and put it into the zoo with its card: minutes.

    python experiments/07_where_is_the_memory/train.py [--out FOLDER]

A RecurrentPPO of sb3-contrib on `CueRecall-v0`, until it makes no mistake in 100 validation episodes; then 500 others.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

import rlmech as rlm
from rlmech.testbed.cue_env import ENV_ID, SPEC
from rlmech.training.evaluate import baseline_actors, evaluate, paired_difference, summarise

NAME = "cue-recall-lstm"
SEED, MOST_STEPS, PART = 0, 102_400, 5_120
FIRST_SEED, N_EPISODES, VALIDATION_FIRST_SEED, N_VALIDATION = 100_000, 500, 50_000, 100
ARGUMENTS: dict[str, Any] = {
    "policy": "MlpLstmPolicy",
    "n_steps": 64,
    "batch_size": 128,
    "n_epochs": 10,
    "learning_rate": 3e-3,
    "ent_coef": 0.01,
    "gamma": 1.0,
}
POLICY_KWARGS: dict[str, Any] = {
    "lstm_hidden_size": 16,
    "net_arch": [],
    "shared_lstm": True,
    "enable_critic_lstm": False,
}
PACKAGES = ("rlmech", "torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy")
ABOUT = (
    "Remembers a cue of the first step until it is asked for it: an LSTM of 16 units that actor and critic share, and "
    "nothing but a linear layer after it, so that its memory can be looked for unit by unit."
)


def main() -> None:
    """Train, choose, evaluate, write the policy and its card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(rlm.zoo.__file__).parent / NAME.replace("-", "_"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    env = rlm.make_env(ENV_ID)
    many = make_vec_env(f"rlmech.testbed.cue_env:{ENV_ID}", n_envs=8, seed=SEED, env_kwargs={})
    model = RecurrentPPO(env=many, seed=SEED, policy_kwargs=POLICY_KWARGS, **ARGUMENTS)
    actors = {"untrained": opened(model)} | baseline_actors(env, SPEC.actions)
    tables = {
        name: evaluate(actor, env, seeds=range(FIRST_SEED, FIRST_SEED + N_EPISODES)) for name, actor in actors.items()
    }
    ladder, curve = [validated(model, env)], []
    while model.num_timesteps < MOST_STEPS and ladder[-1]["return"]["mean"] < 1:
        model.learn(PART, reset_num_timesteps=False)
        episodes = [episode["r"] for episode in model.ep_info_buffer]
        curve.append({"step": model.num_timesteps, "episodes": len(episodes), "return": sum(episodes) / len(episodes)})
        ladder.append(validated(model, env))
        print(model.num_timesteps, ladder[-1]["return"])
    policy = opened(model)
    tables["policy"] = evaluate(policy, env, seeds=range(FIRST_SEED, FIRST_SEED + N_EPISODES))
    given.out.mkdir(parents=True, exist_ok=True)
    rlm.save_policy(policy, given.out / "policy.safetensors")
    card(policy, model.num_timesteps, tables, ladder, curve).save(given.out / "card.json")


def opened(model: RecurrentPPO) -> rlm.HookedPolicy:
    """The policy as it is now, with names."""
    policy = rlm.HookedPolicy.from_sb3(model)
    policy.spec = replace(SPEC)
    return policy


def validated(model: RecurrentPPO, env: Any) -> dict[str, Any]:
    """What the validation seeds say of the model."""
    seeds = range(VALIDATION_FIRST_SEED, VALIDATION_FIRST_SEED + N_VALIDATION)
    return {"step": model.num_timesteps, **summarise(evaluate(model, env, seeds=seeds))}


def card(policy: rlm.HookedPolicy, step: int, tables: Any, ladder: Any, curve: Any) -> rlm.zoo.Card:
    """The card."""
    constants = [name for name in tables if name.startswith("always ")]
    best = max(constants, key=lambda name: tables[name]["return"].mean())
    evaluation = rlm.zoo.Evaluation(
        env_id=ENV_ID,
        env_config={},
        first_seed=FIRST_SEED,
        drivers={name: summarise(table) for name, table in tables.items()},
        best_constant=best,
        difference={"return": paired_difference(tables["policy"], tables[best], "return")},
    )
    config = {
        "name": NAME,
        "seed": SEED,
        "env_id": ENV_ID,
        "algorithm": "RecurrentPPO",
        "algorithm_kwargs": ARGUMENTS,
        "policy_kwargs": POLICY_KWARGS,
        "evaluation_first_seed": FIRST_SEED,
        "evaluation_episodes": N_EPISODES,
        "validation_first_seed": VALIDATION_FIRST_SEED,
        "validation_episodes": N_VALIDATION,
    }
    home, constant = evaluation.drivers["policy"]["return"], evaluation.drivers[best]["return"]
    about = (
        f"{ABOUT} Trained with RecurrentPPO for {step} environment steps. Over {N_EPISODES} unseen seeds of {ENV_ID} "
        f"its mean return is {home['mean']:.3f} [{home['low']:.3f}, {home['high']:.3f}] of 1 at best; {best} returns "
        f"{constant['mean']:.3f} [{constant['low']:.3f}, {constant['high']:.3f}]. Brackets are 95 % intervals."
    )
    return rlm.zoo.Card(
        name=NAME,
        about=about,
        step=step,
        chosen_by=f"the first without a mistake in {N_VALIDATION} validation episodes, asked every {PART} steps",
        config=config,
        continued=[],
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        n_parameters=sum(parameter.numel() for parameter in policy.module.parameters()),
        curve=curve,
        evaluations=[evaluation],
        ladder=ladder,
    )


if __name__ == "__main__":
    main()
