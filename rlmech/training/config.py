"""A training run as a small TOML file: environment, algorithm, policy, seeds and evaluation.

It holds `name`, `about`, `continues`, `seed`, `total_steps`, `n_checkpoints`; tables `[env]` (`id`, `config`),
`[algorithm]` (`class` and the arguments of that class), `[policy_kwargs]` and `[evaluation]` (`first_seed`,
`n_episodes`, `validation_first_seed`, `validation_episodes`, `crash_limit`, `config`); and any number of
`[[evaluation.also_on]]` (`id`, `config`, `n_episodes`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from rlmech.errors import ConfigError, nearest
from rlmech.files import DamagedError, parse_json
from rlmech.untyped import JsonObject, Kwargs, Settings

ALGORITHMS = ("DQN", "PPO", "A2C")
_EVALUATION = ("first_seed", "n_episodes", "validation_first_seed", "validation_episodes", "crash_limit", "config")
_TABLES: dict[str, tuple[str, ...]] = {
    "": (
        *("name", "about", "continues", "seed", "total_steps", "n_checkpoints"),
        *("env", "algorithm", "policy_kwargs", "evaluation"),
    ),
    "env": ("id", "config"),
    "evaluation": (*_EVALUATION, "also_on"),
    "evaluation.also_on": ("id", "config", "n_episodes"),
}
_OPTIONAL = ("about", "continues", "policy_kwargs", "config", "also_on", *_EVALUATION[2:])


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What a training run needs to be made again.

    Attributes:
        name: Name of the policy; the run's directory is called after it.
        about: What the policy is for and why it is trained so, for its card.
        continues: Directory of a finished run whose network and replay buffer this one begins with; None for a new
            network. The algorithm's arguments are this configuration's; steps are counted anew.
        seed: Seed of the network, the exploration and the first episode.
        total_steps: Environment steps to train for.
        n_checkpoints: Checkpoints kept along the way, evenly spaced, the last at `total_steps`; the untrained network
            is kept as well, as step 0.
        env_id: Gymnasium id of the environment.
        env_config: Changes to the environment's own configuration.
        algorithm: Stable-Baselines3 algorithm, one of `ALGORITHMS`.
        algorithm_kwargs: Its arguments, `policy` among them; `learning_rate` is a number or `{start, end}`, linear.
        policy_kwargs: The policy's arguments; extractors are given by name.
        evaluation_first_seed: First of the evaluation's seeds, none of which is met in training or validation.
        evaluation_episodes: Number of evaluation episodes.
        validation_first_seed: First of the seeds on which a checkpoint is chosen.
        validation_episodes: Number of validation episodes per checkpoint.
        crash_limit: Highest crash rate on the validation seeds of a checkpoint that may be chosen; None for any.
        evaluation_config: Configuration of the environment that is evaluated in; None for that of the training.
        also_on: Further environments to evaluate in, each with `id`, `config` and `n_episodes`.

    Raises:
        ConfigError: A value out of its range, or seeds for validation and evaluation that overlap.
    """

    name: str
    about: str = ""
    continues: str | None = None
    seed: int
    total_steps: int
    n_checkpoints: int
    env_id: str
    env_config: JsonObject = field(default_factory=dict)
    algorithm: str
    algorithm_kwargs: Kwargs
    policy_kwargs: Kwargs = field(default_factory=dict)
    evaluation_first_seed: int
    evaluation_episodes: int
    validation_first_seed: int = 50_000
    validation_episodes: int = 100
    crash_limit: float | None = None
    evaluation_config: JsonObject | None = None
    also_on: list[JsonObject] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = ("total_steps", "n_checkpoints", "evaluation_episodes", "validation_episodes")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be at least 1.", given=getattr(self, name), expected=">= 1", fix=f"raise {name}"
                )
        if self.algorithm not in ALGORITHMS:
            raise ConfigError(
                f"rlmech does not train with {self.algorithm!r}.",
                given=repr(self.algorithm),
                expected=f"one of {list(ALGORITHMS)}",
                fix=_did_you_mean(self.algorithm, ALGORITHMS),
            )
        if not set(self.evaluation_seeds).isdisjoint(self.validation_seeds):
            raise ConfigError(
                "Evaluation and validation share seeds, so that the evaluation would flatter the checkpoint chosen.",
                given=f"evaluation {self.evaluation_seeds}, validation {self.validation_seeds}",
                expected="ranges that do not meet",
                fix="set evaluation.validation_first_seed far from evaluation.first_seed",
            )

    @property
    def evaluation_seeds(self) -> range:
        """Seeds of the published evaluation."""
        return range(self.evaluation_first_seed, self.evaluation_first_seed + self.evaluation_episodes)

    @property
    def validation_seeds(self) -> range:
        """Seeds on which a checkpoint is chosen."""
        return range(self.validation_first_seed, self.validation_first_seed + self.validation_episodes)

    @property
    def checkpoint_steps(self) -> list[int]:
        """Environment steps after which a checkpoint is kept, ascending, without step 0."""
        return [round(self.total_steps * (i + 1) / self.n_checkpoints) for i in range(self.n_checkpoints)]

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a configuration from a TOML file.

        Raises:
            ConfigError: The file is missing, no TOML, lacks a key or has one that does not exist.
        """
        try:
            raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                "There is no such training configuration.",
                given=path,
                expected="a TOML file, like those in experiments/00_train_the_zoo",
                fix="check the path",
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                "The training configuration is not TOML.",
                given=path,
                expected="key = value lines in [tables]",
                fix=f"mend the file: {error}",
            ) from None
        return _from_toml(raw)

    @classmethod
    def read_run(cls, run: Path) -> TrainConfig:
        """Read the configuration of a run from its directory.

        Raises:
            ConfigError: The file is missing, or it is damaged.
        """
        try:
            values = parse_json((run / "config.json").read_bytes())
            if not isinstance(values, dict):
                raise DamagedError(f"a {type(values).__name__} where a mapping is expected")
        except (OSError, DamagedError) as error:
            raise ConfigError(
                "The directory is not that of a training run.",
                given=f"{run}: {error}",
                expected="a directory with a config.json, as rlmech train makes it",
                fix="check the path, or train that run first",
            ) from error
        return cls.from_json(values)

    def to_json(self) -> dict[str, object]:
        """The configuration as plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Settings) -> TrainConfig:
        """Read a configuration from the values that `to_json` wrote.

        Raises:
            ConfigError: A value that is not a field of a configuration, or one that is missing.
        """
        _check_keys(values, known=[f.name for f in fields(cls)], where="config.json")
        return cls(**values)


def _from_toml(raw: JsonObject) -> TrainConfig:
    _check_table(raw, "")
    for table in ("env", "algorithm", "evaluation"):
        if not isinstance(raw[table], dict):
            raise ConfigError(
                f"{table!r} must be a table.", given=repr(raw[table]), expected=f"[{table}]", fix=f"write a [{table}]"
            )
    _check_table(raw["env"], "env")
    _check_table(raw["evaluation"], "evaluation")
    for other in raw["evaluation"].get("also_on", []):
        _check_table(other, "evaluation.also_on")
    algorithm = dict(raw["algorithm"])
    if "class" not in algorithm:
        raise _missing("class", "[algorithm]")
    evaluation = dict(raw["evaluation"])
    return TrainConfig(
        name=raw["name"],
        about=raw.get("about", ""),
        continues=raw.get("continues"),
        seed=raw["seed"],
        total_steps=raw["total_steps"],
        n_checkpoints=raw["n_checkpoints"],
        env_id=raw["env"]["id"],
        env_config=raw["env"].get("config", {}),
        algorithm=algorithm.pop("class"),
        algorithm_kwargs=algorithm,
        policy_kwargs=raw.get("policy_kwargs", {}),
        evaluation_first_seed=evaluation.pop("first_seed"),
        evaluation_episodes=evaluation.pop("n_episodes"),
        evaluation_config=evaluation.pop("config", None),
        **evaluation,
    )


def _check_table(table: Settings, name: str) -> None:
    known, where = _TABLES[name], f"[{name}]" if name else "the file's top level"
    _check_keys(table, known=known, where=where)
    for key in known:
        if key not in table and key not in _OPTIONAL:
            raise _missing(key, where)


def _check_keys(table: Mapping[str, object], *, known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in table:
        if key not in known:
            raise ConfigError(
                f"There is no setting {key!r} in {where}.",
                given=repr(key),
                expected=f"one of {known}",
                fix=_did_you_mean(key, known),
            )


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    close = nearest(given, known)
    return f"did you mean {close[0]!r}?" if close else "take one of those expected"


def _missing(key: str, where: str) -> ConfigError:
    return ConfigError(f"{where} lacks {key!r}.", given="no such key", expected=f"{key} = ...", fix=f"add {key}")
