"""Turn a run that has its card into a policy of the zoo: safetensors with the network's weights, and the card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from rlmech.adapters.native import save_policy
from rlmech.adapters.sb3 import from_sb3
from rlmech.rollouts.env import make_env
from rlmech.training.assess import load_checkpoint
from rlmech.training.config import TrainConfig
from rlmech.zoo.card import Card


def publish(
    config: TrainConfig, run: str | Path, folder: str | Path, *, name: str | None = None, ladder: Iterable[int] = ()
) -> Path:
    """Write a run's chosen checkpoint, its card and, if wanted, checkpoints along the way.

    Args:
        config: The run's configuration.
        run: The run's directory, with `card.json`.
        folder: Folder of the zoo; the policy's own is made in it.
        name: Name in the zoo; the configuration's by default.
        ladder: Steps of further checkpoints to ship.

    Returns:
        The policy's folder.
    """
    run = Path(run)
    card = Card.load(run / "card.json")
    name = name or config.name
    home = Path(folder) / name.replace("-", "_")
    (home / "ladder").mkdir(parents=True, exist_ok=True)
    steps = {card.step: home / "policy.safetensors"}
    _write(config, run, steps)
    _write(config, run, {step: home / "ladder" / f"step_{step:07d}.safetensors" for step in ladder})
    if not any((home / "ladder").iterdir()):
        (home / "ladder").rmdir()
    replace(card, name=name).save(home / "card.json")
    return home


def _write(config: TrainConfig, run: Path, files: dict[int, Path]) -> None:
    env = make_env(config.env_id, config=config.env_config)
    for step, path in files.items():
        save_policy(from_sb3(load_checkpoint(config, run, step), env=env), path)
