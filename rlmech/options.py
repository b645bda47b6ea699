"""What many analyses can be told beside their question: how intervals are drawn, and how a long run goes on.

Both are frozen values that a caller makes once and gives to every call of a study. What is asked for most, `clusters=`
and `progress=`, stays a keyword of each function.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlmech.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How what is random is drawn, and how intervals over pairs are made from it.

    Attributes:
        seed: Of whatever the function draws: bootstrap resamples, reference rows, splits, random controls.
        n_resamples: Bootstrap resamples, at least 100.
        confidence: Nominal coverage of the intervals, between 0 and 1.

    Raises:
        ConfigError: A value is outside its range.

    Example:
        >>> from rlmech.options import Sampling
        >>> Sampling(seed=1).n_resamples
        2000
    """

    seed: int = 0
    n_resamples: int = 2000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError("A seed is not negative.", given=self.seed, expected="an integer from 0", fix="seed=0")
        if self.n_resamples < 100:
            raise ConfigError(
                "So few bootstrap resamples give no interval.",
                given=f"n_resamples={self.n_resamples}",
                expected="at least 100",
                fix="n_resamples=2000",
            )
        if not 0 < self.confidence < 1:
            raise ConfigError(
                "A confidence is a share.",
                given=f"confidence={self.confidence}",
                expected="a number between 0 and 1",
                fix="confidence=0.95",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How a long run is carried out; nothing here changes a number of its result.

    Attributes:
        journal: A directory that keeps what is finished; the same call goes on from there after an interruption.
        workers: Processes that share the work, where the function can use more than one.

    Raises:
        ConfigError: There are fewer workers than one.

    Example:
        >>> from rlmech.options import Running
        >>> Running(journal="journals/heads").workers
        1
    """

    journal: str | Path | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(
                "At least one process does the work.",
                given=f"workers={self.workers}",
                expected="an integer from 1",
                fix="workers=1",
            )
