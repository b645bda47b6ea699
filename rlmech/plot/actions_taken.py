"""What was done at each step of a recording, in words: one action, several choices, or continuous actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from rlmech.plot.style import MINUS

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording


@dataclass(frozen=True, slots=True)
class Taken:
    """What was done at each step.

    Attributes:
        words: The action of each step in words.
        numbers: Which action, where one of several is chosen; None for several choices and continuous actions.
        names: Names of the actions, or of the dimensions of a continuous one.
    """

    words: tuple[str, ...]
    numbers: Int[np.ndarray, " step"] | None
    names: tuple[str, ...]

    def number(self, step: int) -> int | None:
        """Which action was taken at a step; None where there are no numbers."""
        return None if self.numbers is None else int(self.numbers[step])


def taken(recording: Recording) -> Taken:
    """What a recording's policy did at each step."""
    names = action_names(recording, recording.scores.shape[-1])
    actions = np.asarray(recording.actions)
    if recording.manifest["policy"]["output_kind"] == "mean_action":
        flat = actions.reshape(len(actions), -1)
        short = names if len(names) > 1 else ("",)
        words = tuple(
            ", ".join(
                f"{name} {value:+.2f}".replace("-", MINUS).strip() for name, value in zip(short, row, strict=False)
            )
            for row in flat
        )
        return Taken(words, None, names)
    if actions.ndim > 1:
        return Taken(tuple(", ".join(str(int(part)) for part in row) for row in actions), None, names)
    numbers = actions.astype(int)
    return Taken(tuple(names[number] for number in numbers), numbers, names)


def action_names(recording: Recording, n_actions: int) -> tuple[str, ...]:
    """The actions' names, or their numbers where the recording's spec has none."""
    names = recording.spec.actions
    return names if len(names) == n_actions else tuple(f"action {action}" for action in range(n_actions))
