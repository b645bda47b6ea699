"""Turn a run that has its card into a policy of the zoo: safetensors with the network's weights, and the card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rlmech.adapters.native import save_policy
from rlmech.adapters.sb3 import from_sb3
from rlmech.simulators.env import make_env
from rlmech.training.assess import checkpoints
from rlmech.training.config import TrainConfig
from rlmech.zoo.cards import Card


def publish(
    config: TrainConfig, run: str | Path, folder: str | Path, *, name: str | None = None, ladder: Iterable[int] = ()
) -> Path:
    """Write a run's chosen checkpoint, its card and, if wanted, checkpoints along the way.

    Args:
        config: The run's configuration.
        run: The run's directory, with `card.json`.
        folder: Folder of the zoo; the policy's own is made in it.
        name: Name in the zoo; the configuration's by default.
        ladder: Steps of checkpoints to ship beside it.

    Returns:
        The policy's folder.
    """
    run = Path(run)
    card = Card.load(run / "card.json")
    name = name or config.name
    home = Path(folder) / name.replace("-", "_")
    env = make_env(card.evaluations[0].env_id, config=card.evaluations[0].env_config)
    rungs = {rung.step: rung for rung in checkpoints(config, run)}
    files = [(card.step, home / "policy.safetensors")]
    files += [(step, home / "ladder" / f"step_{step:07d}.safetensors") for step in ladder]
    for step, path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_policy(from_sb3(rungs[step].load(), env=env), path)
    replace(card, name=name).save(home / "card.json")
    return home
