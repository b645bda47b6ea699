"""Train the policies of the zoo again, from nothing, and publish them beside their cards.

A few hours of one core. Every part can be stopped and taken up again; what is done is not done twice.
`--smoke` trains for a few hundred steps and evaluates a handful of episodes, to see that it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rlmech.training import TrainConfig, assess, publish
from rlmech.training.train import learn

HERE = Path(__file__).parent
PARTS = {
    "intersection-ego-attention": (
        "intersection_ego_attention",
        "intersection_ego_attention_annealed",
        "intersection_ego_attention_careful",
    ),
    "highway-dqn-mlp": ("highway_dqn_mlp", "highway_dqn_mlp_annealed"),
}
LADDERS = {"intersection-ego-attention": True, "highway-dqn-mlp": False}


def smoke(config: TrainConfig, runs: Path) -> TrainConfig:
    """The same configuration, hardly trained and hardly evaluated."""
    return dataclasses.replace(
        config,
        total_steps=600,
        n_checkpoints=2,
        evaluation_episodes=4,
        validation_episodes=3,
        also_on=[place | {"n_episodes": 1} for place in config.also_on],
        continues=config.continues and str(runs / Path(config.continues).name),
    )


def main() -> None:
    """Train, assess, publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a quick try, into runs/smoke")
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"), help="folder to publish into")
    arguments = parser.parse_args()
    runs = Path("runs/smoke") if arguments.smoke else Path("runs")
    for name, parts in PARTS.items():
        for part in parts:
            config = TrainConfig.load(HERE / f"{part}.toml")
            config = smoke(config, runs) if arguments.smoke else config
            run = runs / config.name.replace("-", "_")
            learn(config, run)
        card = assess(config, run)
        rungs = [rung["step"] for rung in card.ladder] if LADDERS[name] else []
        print(card.about)
        print(card.evaluations[0].table().round(2))
        print(f"published: {publish(config, run, arguments.zoo, ladder=rungs)}")


if __name__ == "__main__":
    main()
