"""From a finished run to its card: choose a checkpoint, evaluate it beside baselines, write down what came out.

The checkpoint of the highest mean return on the validation seeds is chosen, among those that crash no more often than
the configuration allows; what is published is measured on the
evaluation seeds, which neither training nor the choice has met. Episodes are kept as CSV files under `validation/` and
`evaluation/` in the run's directory, so that an assessment that was killed goes on where it stopped. Steps count from
the untrained network, through all runs that were continued.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import stable_baselines3
from rich.console import Console
from stable_baselines3.common.base_class import BaseAlgorithm

from rlmech.simulators.env import make_env, spec_of
from rlmech.training.config import TrainConfig
from rlmech.training.evaluate import Actor, Predicts, baseline_actors, evaluate, paired_difference, summarise
from rlmech.untyped import JsonObject
from rlmech.zoo.cards import POLICY, Card, Evaluation

PACKAGES = ("rlmech", "torch", "stable-baselines3", "gymnasium", "highway-env", "numpy")
CURVE_BINS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A policy along a training.

    Attributes:
        step: Environment steps from the untrained network to it.
        path: The Stable-Baselines3 zip.
        algorithm: Name of the algorithm.
        validation: CSV file of its validation episodes.
    """

    step: int
    path: Path
    algorithm: str
    validation: Path

    def load(self) -> BaseAlgorithm:
        """Open it with Stable-Baselines3 itself."""
        algorithm: type[BaseAlgorithm] = getattr(stable_baselines3, self.algorithm)
        return algorithm.load(self.path, device="cpu")


def assess(config: TrainConfig, run: str | Path, *, progress: bool = True) -> Card:
    """Choose a checkpoint of a run, evaluate it and write `card.json`.

    Args:
        config: The run's configuration.
        run: The run's directory, with its checkpoints and its curve.
        progress: Whether to tell what is evaluated and draw progress bars.

    Returns:
        The card.
    """
    run = Path(run)
    rungs = checkpoints(config, run)
    env = make_env(config.env_id, config=_home_config(config))
    ladder = [_validated(rung, config, env, progress=progress) for rung in rungs]
    best, chosen_by = _choose(ladder[1:], config)
    chosen = next(rung for rung in rungs if rung.step == best)
    evaluations = _evaluate_everywhere(config, run, chosen, rungs[0], progress=progress)
    card = Card(
        name=config.name,
        about=_about(config, chosen.step, evaluations),
        step=chosen.step,
        chosen_by=chosen_by,
        config=config.to_json(),
        continued=[earlier.to_json() for earlier, _, _ in history(config, run)[:-1]],
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        n_parameters=_n_parameters(chosen.load()),
        curve=_binned_curve(_curve(config, run)),
        evaluations=evaluations,
        ladder=ladder,
    )
    card.save(run / "card.json")
    return card


def history(config: TrainConfig, run: Path) -> list[tuple[TrainConfig, Path, int]]:
    """A run and those that it continues, the earliest first: configuration, directory, and steps trained before it."""
    if config.continues is None:
        return [(config, run, 0)]
    earlier = Path(config.continues)
    before = history(TrainConfig.read_run(earlier), earlier)
    last, _, offset = before[-1]
    return [*before, (config, run, offset + last.total_steps)]


def checkpoints(config: TrainConfig, run: Path) -> list[Checkpoint]:
    """All checkpoints from the untrained network to the end of a run, through the runs that it continues."""
    found: list[Checkpoint] = []
    for part, folder, offset in history(config, run):
        for step in part.checkpoint_steps if offset else (0, *part.checkpoint_steps):
            name = f"step_{step:07d}"
            found.append(
                Checkpoint(
                    step=offset + step,
                    path=folder / "checkpoints" / f"{name}.zip",
                    algorithm=part.algorithm,
                    validation=folder / "validation" / f"{name}.csv",
                )
            )
    return found


def _validated(rung: Checkpoint, config: TrainConfig, env: gym.Env, *, progress: bool) -> dict[str, object]:
    """What the validation seeds say of a checkpoint."""
    _tell(f"validation: step {rung.step}", progress=progress)
    table = evaluate(rung.load(), env, seeds=config.validation_seeds, path=rung.validation, progress=progress)
    return {"step": rung.step, **summarise(table)}


def _choose(ladder: list[JsonObject], config: TrainConfig) -> tuple[int, str]:
    """Step of the best checkpoint, and how it was found."""
    limit, allowed, among = config.crash_limit, ladder, f"{len(ladder)} checkpoints"
    careful = [rung for rung in ladder if limit is None or rung["crashed"]["mean"] <= limit]
    if limit is not None and careful:
        allowed, among = careful, f"those {len(careful)} of {among} that crash in at most {limit:.0%} of episodes,"
    best = max(allowed, key=lambda rung: rung["return"]["mean"])
    seeds = f"{config.validation_episodes} validation seeds from {config.validation_first_seed}"
    return best["step"], f"highest mean return of {among} over {seeds}"


def _evaluate_everywhere(
    config: TrainConfig, run: Path, chosen: Checkpoint, untrained: Checkpoint, *, progress: bool
) -> list[Evaluation]:
    """In the environment of the training beside all baselines, elsewhere beside its best constant action."""
    home_config, seeds = _home_config(config), config.evaluation_seeds
    home = make_env(config.env_id, config=home_config)
    policy = chosen.load()
    drivers: dict[str, Actor | Predicts] = {f"{POLICY} {chosen.step}": policy, "untrained": untrained.load()}
    drivers |= baseline_actors(home, spec_of(home).actions)
    places = [(config.env_id, home_config, len(seeds))]
    places += [(place["id"], place.get("config", {}), place["n_episodes"]) for place in config.also_on]
    evaluations: list[Evaluation] = []
    for i, (env_id, env_config, n) in enumerate(places):
        env = make_env(env_id, config=env_config)
        folder = run / "evaluation" / f"{i}_{env_id}"
        tables: dict[str, pd.DataFrame] = {}
        for name, actor in drivers.items():
            _tell(f"evaluation on {env_id}: {name}", progress=progress)
            path = folder / f"{name.replace(' ', '_')}.csv"
            tables[POLICY if actor is policy else name] = evaluate(
                actor, env, seeds=seeds[:n], path=path, progress=progress
            )
        evaluations.append(_evaluation(env_id, env_config, seeds.start, tables))
        best = evaluations[0].best_constant
        drivers = {name: actor for name, actor in drivers.items() if actor is policy or name == best}
    return evaluations


def _evaluation(env_id: str, env_config: JsonObject, first: int, tables: dict[str, pd.DataFrame]) -> Evaluation:
    constants = [name for name in tables if name.startswith("always ")]
    best = max(constants, key=lambda name: tables[name]["return"].mean())
    columns = [c for c in ("return", "crashed") if bool(tables[POLICY][c].notna().all())]
    return Evaluation(
        env_id=env_id,
        env_config=env_config,
        first_seed=first,
        drivers={name: summarise(table) for name, table in tables.items()},
        best_constant=best,
        difference={column: paired_difference(tables[POLICY], tables[best], column) for column in columns},
    )


def _about(config: TrainConfig, step: int, evaluations: list[Evaluation]) -> str:
    """The configuration's own words, and what the evaluations say."""
    sentences = [
        config.about.strip(),
        f"Trained with {config.algorithm} for {step} environment steps.",
        *(_verdict(evaluation) for evaluation in evaluations),
        "Brackets are 95 % intervals.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _verdict(evaluation: Evaluation) -> str:
    """How the policy does in one environment, beside the best constant action."""
    policy, by = evaluation.drivers[POLICY], evaluation.difference["return"]
    constant = evaluation.drivers[evaluation.best_constant]
    verdict = "clearly better" if by["low"] > 0 else "worse" if by["high"] < 0 else "not distinguishable"
    changed = ", ".join(f"{key} {value}" for key, value in evaluation.env_config.items())
    place = f"{evaluation.env_id} ({changed})" if changed else evaluation.env_id
    measured = f"Over {policy['n']} unseen seeds of {place} its mean return is {_interval(policy['return'])}"
    if "crashed" in policy:
        measured += f", its crash rate {_interval(policy['crashed'])}"
    if "arrived" in policy:
        measured += f", its arrival rate {_interval(policy['arrived'])}"
    return (
        f"{measured}; {evaluation.best_constant} returns {_interval(constant['return'])}, and paired by seed the "
        f"policy returns {_interval(by)} more: {verdict}."
    )


def _interval(value: dict[str, float]) -> str:
    return f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _home_config(config: TrainConfig) -> dict[str, object]:
    return config.env_config if config.evaluation_config is None else config.evaluation_config


def _n_parameters(model: Any) -> int:
    network = getattr(model, "q_net", model.policy)
    return sum(parameter.numel() for parameter in network.parameters())


def _curve(config: TrainConfig, run: Path) -> pd.DataFrame:
    """The training curve through all runs: a row an episode, `step` counted from the untrained network."""
    parts: list[pd.DataFrame] = []
    for _, folder, offset in history(config, run):
        part = pd.read_csv(folder / "curve.csv")
        parts.append(part.assign(step=part["step"] + offset))
    return pd.concat(parts, ignore_index=True)


def _binned_curve(curve: pd.DataFrame) -> list[dict[str, float]]:
    """Means over the episodes that ended in each of `CURVE_BINS` equal spans of steps."""
    ends = np.linspace(0, curve["step"].max(), CURVE_BINS + 1)[1:]
    places = np.minimum(np.searchsorted(ends, curve["step"]), CURVE_BINS - 1)
    bins: list[dict[str, float]] = []
    for place, group in curve.groupby(places):
        means = {
            name: round(float(group[name].to_numpy(dtype=float).mean()), 4) for name in ("return", "length", "crashed")
        }
        bins.append({"step": float(ends[int(str(place))]), "episodes": len(group), **means})
    return bins


def _tell(what: str, *, progress: bool) -> None:
    if progress:
        Console().print(what)
