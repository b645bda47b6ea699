"""Training configurations: what is read, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlmech.errors import ConfigError
from rlmech.training.config import TrainConfig

TOML = """
name = "tiny"
seed = 3
total_steps = 100
n_checkpoints = 4
[env]
id = "CartPole-v1"
[evaluation]
first_seed = 1000
n_episodes = 10
validation_first_seed = 500
[algorithm]
class = "DQN"
policy = "MlpPolicy"
learning_starts = 10
[policy_kwargs]
net_arch = [8]
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_configuration_is_read_and_survives_json(tmp_path: Path) -> None:
    config = TrainConfig.load(write(tmp_path / "a.toml", TOML))
    assert (config.name, config.seed, config.env_id, config.algorithm) == ("tiny", 3, "CartPole-v1", "DQN")
    assert config.algorithm_kwargs == {"policy": "MlpPolicy", "learning_starts": 10}
    assert config.policy_kwargs == {"net_arch": [8]}
    assert config.checkpoint_steps == [25, 50, 75, 100]
    assert (config.evaluation_seeds, config.validation_seeds) == (range(1000, 1010), range(500, 600))
    assert TrainConfig.from_json(config.to_json()) == config


def test_the_shipped_configurations_are_read() -> None:
    shipped = sorted((Path(__file__).parents[2] / "experiments" / "00_train_the_zoo").glob("*.toml"))
    assert shipped
    for path in shipped:
        assert TrainConfig.load(path).evaluation_episodes >= 500


@pytest.mark.parametrize(
    ("old", "new", "problem", "fix"),
    [
        ("total_steps", "total_step", "no setting 'total_step' in the file's top level", "did you mean 'total_steps'?"),
        ("n_episodes", "episodes", r"no setting 'episodes' in \[evaluation\]", "did you mean 'n_episodes'?"),
        ('class = "DQN"', 'class = "DNQ"', "does not train with 'DNQ'", "did you mean 'DQN'?"),
        ('class = "DQN"', "", r"\[algorithm\] lacks 'class'", "add class"),
        ("seed = 3\n", "", "top level lacks 'seed'", "add seed"),
        ("[env]\n", "[[env]]\n", "'env' must be a table", "write a [env]"),
        ("total_steps = 100", "total_steps = 0", "total_steps must be at least 1", "raise total_steps"),
        ("first_seed = 500", "first_seed = 1005", "share seeds", "set evaluation.validation_first_seed"),
        ("name =", "name", "is not TOML", "mend the file"),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(tmp_path: Path, old: str, new: str, problem: str, fix: str) -> None:
    assert old in TOML
    with pytest.raises(ConfigError, match=problem) as caught:
        TrainConfig.load(write(tmp_path / "a.toml", TOML.replace(old, new, 1)))
    assert fix in caught.value.fix


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such training configuration"):
        TrainConfig.load(tmp_path / "none.toml")
