"""What is known of a trained policy: how it was made, how well it drives, beside what any driver must beat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlmech.errors import CheckpointError
from rlmech.files import DamagedError, parse_json

POLICY = "policy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Drivers in one environment, on the same seeds.

    Attributes:
        env_id: Gymnasium id.
        env_config: Changes to the environment's own configuration.
        first_seed: The first seed; the others follow it.
        drivers: By name, `policy` among them: `n` episodes and, for return, length (steps), crashed and arrived (rates)
            and speed (m/s), `mean`, `low` and `high` (95 % interval).
        best_constant: Name of the constant action of the highest mean return.
        difference: Policy minus best constant action, paired by seed: for return and crashed, `n`, `mean`, `low` and
            `high`.

    Example:
        >>> import rlmech as rlm
        >>> rlm.zoo.card("highway-dqn-mlp").evaluations[0].table().index.to_list()[:3]
        ['policy', 'untrained', 'random']
    """

    env_id: str
    env_config: dict[str, Any]
    first_seed: int
    drivers: dict[str, dict[str, Any]]
    best_constant: str
    difference: dict[str, dict[str, float]]

    def table(self) -> pd.DataFrame:
        """One row a driver: n, then mean, low and high of each quantity; NaN where no interval is known.

        None is where all episodes gave the same number, as an untrained policy's zero return.
        """
        rows = {
            name: {"n": row["n"]} | {_column(q, end): v for q, s in row.items() if q != "n" for end, v in s.items()}
            for name, row in self.drivers.items()
        }
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("driver")
        return table.replace([np.inf, -np.inf], np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """The card of a trained policy.

    Attributes:
        name: The policy's name in the zoo.
        about: What it is, how good it is and how it came about, in words.
        step: Environment steps of training behind the weights.
        chosen_by: How that checkpoint was chosen.
        config: The training configuration, see `rlmech.training.TrainConfig`.
        continued: Configurations of the runs that this one continued, the earliest first.
        versions: Versions of the libraries that trained it.
        n_parameters: Number of weights.
        curve: Training curve in bins: `step` (the bin's end), `episodes`, and means of `return`, `length`, `crashed`.
        evaluations: On seeds seen neither in training nor in the choice.
        ladder: Each kept checkpoint on the validation seeds: `step` and what an evaluation says of a driver.

    Example:
        >>> import rlmech as rlm
        >>> card = rlm.zoo.card("highway-dqn-mlp")
        >>> card.config["algorithm"], card.n_parameters
        ('DQN', 73733)
    """

    name: str
    about: str
    step: int
    chosen_by: str
    config: dict[str, Any]
    continued: list[dict[str, Any]]
    versions: dict[str, str]
    n_parameters: int
    curve: list[dict[str, float]]
    evaluations: list[Evaluation]
    ladder: list[dict[str, Any]]

    def save(self, path: Path) -> None:
        """Write the card as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Card:
        """Read a card that `save` wrote.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        try:
            values: Mapping[str, Any] = parse_json(path.read_bytes())
            known: dict[str, Any] = {field.name: values[field.name] for field in fields(cls)}
            known["evaluations"] = [Evaluation(**evaluation) for evaluation in known["evaluations"]]
        except (OSError, DamagedError, KeyError, TypeError) as error:
            raise CheckpointError(
                "The policy's card cannot be read.",
                given=f"{path}: {error!r}",
                expected="JSON as Card.save writes it",
                fix="install the package again, or make the card again: rlmech train CONFIG",
            ) from error
        return cls(**known)


def _column(quantity: str, end: str) -> str:
    return quantity if end == "mean" else f"{quantity}_{end}"
