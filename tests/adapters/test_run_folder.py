"""What stands beside a zip of the RL Zoo goes into the spec, and `make_env` of the spec makes the run's environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

import rlmech as rlm
from rlmech.adapters.sb3.run_folder import with_training
from rlmech.errors import ConfigError, EnvironmentFitError
from rlmech.simulators.training_env import StackedFrames, wrapped
from rlmech.spec import PolicySpec

RUN = {"policy": "MlpPolicy", "n_timesteps": 1000}


def run_folder(folder, env_id="Pendulum-v1", *, arguments=None, **config):
    """A run's folder as RL Zoo writes it; returns where its zip would be."""
    inside = folder / env_id
    inside.mkdir()
    (inside / "config.yml").write_text(yaml.dump(RUN | config))
    (inside / "args.yml").write_text(yaml.dump({"env": env_id, "env_kwargs": None} | (arguments or {})))
    return folder / f"{env_id}.zip"


def test_the_runs_environment_keywords_and_wrappers_are_in_the_spec(tmp_path):
    path = run_folder(
        tmp_path,
        arguments={"env_kwargs": {"g": 9.0}},
        env_wrapper=[
            "sb3_contrib.common.wrappers.TimeFeatureWrapper",
            {"gym.wrappers.TimeAwareObservation": {"flatten": True}},
        ],
        frame_stack=2,
        env_kwargs="dict(render_mode='rgb_array')",
    )

    spec = with_training(PolicySpec(), path)

    assert spec.env_id == "Pendulum-v1"
    assert spec.env_kwargs == {"g": 9.0, "render_mode": "rgb_array"}
    assert spec.env_wrappers == (
        "sb3_contrib.common.wrappers.TimeFeatureWrapper",
        'gym.wrappers.TimeAwareObservation({"flatten": true})',
        "frame_stack(2)",
    )
    assert PolicySpec.from_json(spec.to_json()) == spec


def test_a_policy_trained_behind_wrappers_drives_in_the_environment_of_its_spec(tmp_path):
    path = run_folder(tmp_path, env_wrapper="sb3_contrib.common.wrappers.TimeFeatureWrapper", frame_stack=2)
    training = StackedFrames(wrapped(gym.make("Pendulum-v1"), ("sb3_contrib.common.wrappers.TimeFeatureWrapper",)), 2)
    PPO("MlpPolicy", training, n_steps=8, batch_size=8, device="cpu").save(path)

    policy = rlm.load(path)
    with pytest.raises(EnvironmentFitError) as error:
        rlm.record(policy, rlm.make_env("Pendulum-v1"), seeds=[0], progress=False)
    assert "TimeFeatureWrapper, frame_stack(2): rlm.make_env(policy.spec)" in error.value.fix

    recording = rlm.record(policy, rlm.make_env(policy.spec), seeds=[0], names=(), progress=False)
    assert recording.observations.shape == (200, 8)


def test_a_wrapper_of_no_installed_library_is_named_and_not_imported(tmp_path):
    path = run_folder(tmp_path, env_wrapper="os.system")
    spec = with_training(PolicySpec(), path)

    with pytest.raises(ConfigError, match=r"a wrapper that cannot be made here: os\.system") as error:
        rlm.make_env(spec)

    assert "with all of its wrappers in this order: os.system" in error.value.fix


@pytest.mark.parametrize("shape", [(4,), (16, 12, 1), (1, 16, 12)])
def test_frames_are_stacked_as_sb3_stacks_them(shape):
    image = len(shape) == 3

    class Env(gym.Env):
        observation_space = spaces.Box(0, 255, shape, np.uint8) if image else spaces.Box(-1, 1, shape, np.float32)
        action_space = spaces.Discrete(2)

        def __init__(self):
            self.rng = np.random.default_rng(0)

        def _see(self):
            return self.rng.integers(1, 200, shape).astype(np.uint8) if image else self.rng.random(shape, np.float32)

        def reset(self, *, seed=None, options=None):
            return self._see(), {}

        def step(self, action):
            return self._see(), 0.0, False, False, {}

    ours, theirs = StackedFrames(Env(), 3), VecFrameStack(DummyVecEnv([Env]), 3)

    assert ours.observation_space.shape == theirs.observation_space.shape
    seen, _ = ours.reset()
    expected = theirs.reset()[0]
    for _ in range(5):
        np.testing.assert_array_equal(seen, expected)
        seen, expected = ours.step(0)[0], theirs.step([0])[0][0]


def test_a_renamed_environment_is_made_under_its_name_of_today():
    pytest.importorskip("Box2D")
    env = rlm.make_env(PolicySpec(env_id="LunarLander-v2"))

    assert env.spec.id == "LunarLander-v3"


def test_a_spec_that_names_no_environment_is_an_error():
    with pytest.raises(ConfigError, match="does not say which environment"):
        rlm.make_env(PolicySpec())
