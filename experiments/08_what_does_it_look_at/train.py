"""Train the policy that is asked what it looks at, and put it into the zoo with its card: half an hour.

    python experiments/08_what_does_it_look_at/train.py [--out FOLDER]

A PPO of Stable-Baselines3 on `MiniGrid-DoorKey-6x6-v0`, then 500 episodes that it has not seen.
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import rlmech as rlm
from rlmech.training.evaluate import baseline_actors, evaluate, paired_difference, summarise

NAME = "minigrid-doorkey-mlp"
ENV_ID = "MiniGrid-DoorKey-6x6-v0"
WRAPPERS = ("minigrid.wrappers.OneHotPartialObsWrapper", "minigrid.wrappers.ImgObsWrapper")
SPEC = rlm.PolicySpec(env_id=ENV_ID, env_wrappers=WRAPPERS)
SEED, N_ENVS, PART, STEPS = 0, 16, 10_240, 583_680
FIRST_SEED, N_EPISODES, VALIDATION_FIRST_SEED, N_VALIDATION = 100_000, 500, 50_000, 100
SEEDS = range(FIRST_SEED, FIRST_SEED + N_EPISODES)
FEW = SEEDS[:60]  # for those who run into the limit of 360 steps in every episode
ARGUMENTS: dict[str, Any] = {
    "policy": "MlpPolicy",
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": 1e-3,
    "ent_coef": 0.01,
    "gamma": 0.99,
    "gae_lambda": 0.95,
}
POLICY_KWARGS: dict[str, Any] = {
    "net_arch": [64, 64],
    "activation_fn": torch.nn.ReLU,
    "normalize_images": False,
}
PACKAGES = ("rlmech", "torch", "stable-baselines3", "minigrid", "gymnasium", "numpy")
ABOUT = (
    "Fetches a key, opens a door and goes to the goal, by the agent's own view of 7 x 7 cells, one bit for each kind "
    "of object, colour and state: two layers of 64 ReLUs after it, so that exact maps apply to every decision."
)


def main() -> None:
    """Train, evaluate, write the policy and its card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(rlm.zoo.__file__).parent / NAME.replace("-", "_"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    many = make_vec_env(lambda: rlm.make_env(SPEC), n_envs=N_ENVS, seed=SEED)
    model = PPO(env=many, seed=SEED, policy_kwargs=POLICY_KWARGS, device="cpu", **ARGUMENTS)
    tables, curve = {"untrained": driven(opened(model), FEW)}, []
    while model.num_timesteps < STEPS:
        model.learn(PART, reset_num_timesteps=False)
        episodes = [episode["r"] for episode in model.ep_info_buffer]
        curve.append({"step": model.num_timesteps, "episodes": len(episodes), "return": sum(episodes) / len(episodes)})
        print(curve[-1], flush=True)
    ship(model, tables, curve, given.out)


def ship(model: PPO, tables: dict[str, Any], curve: list[dict[str, float]], out: Path) -> None:
    """Evaluate a trained model beside what any must beat, and write it with its card."""
    policy = opened(model)
    tables |= {"policy": driven(policy), **baselines()}
    seeds = range(VALIDATION_FIRST_SEED, VALIDATION_FIRST_SEED + N_VALIDATION)
    ladder = [{"step": model.num_timesteps, **summarise(driven(policy, seeds))}]
    out.mkdir(parents=True, exist_ok=True)
    rlm.save_policy(policy, out / "policy.safetensors")
    card(policy, model.num_timesteps, tables, ladder, curve).save(out / "card.json")


def driven(policy: rlm.HookedPolicy, seeds: range = SEEDS) -> Any:
    """Episodes of a policy; what it does in an observation that it has seen before is not computed again."""
    known: dict[bytes, int] = {}

    def decide(seen: Any) -> int:
        key = seen.tobytes()
        if key not in known:
            known[key] = int(policy.predict(seen)[0])
        return known[key]

    return evaluate(lambda _: decide, rlm.make_env(SPEC), seeds=seeds)


def baselines() -> dict[str, Any]:
    """Random, and the constant action that returns most over some validation episodes; they look at nothing."""
    env = rlm.make_env(ENV_ID)
    actors = baseline_actors(env, rlm.simulators.spec_of(env).actions)
    few = range(VALIDATION_FIRST_SEED, VALIDATION_FIRST_SEED + 5)
    returns = {name: evaluate(actor, env, seeds=few)["return"].mean() for name, actor in actors.items()}
    best = max((name for name in actors if name != "random"), key=lambda name: returns[name])
    return {name: evaluate(actors[name], env, seeds=FEW) for name in ("random", best)}


def opened(model: PPO) -> rlm.HookedPolicy:
    """The policy as it is now, with the names that its environment gives."""
    return rlm.HookedPolicy.from_sb3(model)


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
        difference={
            column: paired_difference(tables["policy"], tables[best], column) for column in ("return", "success")
        },
    )
    config = {
        "name": NAME,
        "seed": SEED,
        "env_id": ENV_ID,
        "env_wrappers": list(WRAPPERS),
        "algorithm": "PPO",
        "algorithm_kwargs": ARGUMENTS | {"n_envs": N_ENVS},
        "policy_kwargs": POLICY_KWARGS | {"activation_fn": "torch.nn.ReLU"},
        "evaluation_first_seed": FIRST_SEED,
        "evaluation_episodes": N_EPISODES,
        "validation_first_seed": VALIDATION_FIRST_SEED,
        "validation_episodes": N_VALIDATION,
    }
    home, constant = evaluation.drivers["policy"], evaluation.drivers[best]
    about = (
        f"{ABOUT} Trained with PPO for {step} environment steps. Over {N_EPISODES} unseen seeds of {ENV_ID} its mean "
        f"return is {written(home['return'])} of 1 at best and it reaches the goal in {written(home['success'])} of "
        f"them, in the others it gets stuck; {best} returns {constant['return']['mean']:.3f}. Brackets are 95 % "
        "intervals."
    )
    return rlm.zoo.Card(
        name=NAME,
        about=about,
        step=step,
        chosen_by="the last of its training",
        config=config,
        continued=[],
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        n_parameters=sum(parameter.numel() for parameter in policy.module.parameters()),
        curve=curve,
        evaluations=[evaluation],
        ladder=ladder,
    )


def written(value: dict[str, float]) -> str:
    """A mean with its interval."""
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
