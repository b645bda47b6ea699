"""The page of any policy: `rlm.report` on policies that are on no road."""

from __future__ import annotations

import re
from html import unescape

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError
from rlmech.first_look import first_look, pictures
from rlmech.first_look.neurons import acting_layers, rank_neurons


class ActorCritic(nn.Module):
    """A critic that is larger than the actor, and runs after it."""

    def __init__(self, n_actions=2):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, n_actions))
        self.critic = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 1))

    def forward(self, obs):
        return self.actor(obs), self.critic(obs)[:, 0]


class Short(gym.Env):
    """Episodes of a given length, with or without pictures."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # Gymnasium's own form

    def __init__(self, actions, *, length=1, shape=(4,), render_mode=None):
        self.observation_space, self.action_space = spaces.Box(-1, 1, shape, np.float32), actions
        self.length, self.render_mode = length, render_mode

    def _observation(self):
        return self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        return self._observation(), float(self.steps), self.steps >= self.length, False, {}

    def render(self):
        return np.full((20, 30, 3), self.steps, np.uint8)


def hooked(module=None, shape=(4,), **more):
    torch.manual_seed(0)
    return rlm.HookedPolicy(module or ActorCritic(), torch.rand(2, *shape), **more)


def written(policy, env, folder, **more):
    options = {"seeds": range(2), "n_driven": 2, "progress": False} | more
    return rlm.report(policy, env, path=folder / "page.html", **options).read_text(encoding="utf-8")


def test_neurons_are_those_of_the_acting_network_and_ranked_by_what_brute_force_finds():
    policy = hooked()
    recording = rlm.record(policy, Short(spaces.Discrete(2), length=20), seeds=range(2), progress=False)
    ranked = rank_neurons(policy, recording)
    assert acting_layers(policy) == ["actor.1.hook_out"]
    assert ranked is not None
    _, cache = policy.run_with_cache(recording.observations)
    for place, neuron in enumerate(ranked["neuron"].values):
        edit = rlm.mean_ablation(rlm.Site("actor.1.hook_out", neuron=int(neuron)), reference=cache)
        with policy.edited([edit]):
            changed = policy(recording.observations).argmax(-1).numpy() != recording.actions
        assert ranked["effect"].values[place] == pytest.approx(changed.mean())
    assert (np.diff(ranked["effect"].values) <= 0).all()


def test_a_bend_of_the_action_itself_is_no_neuron():
    policy = hooked(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1), nn.Tanh()), output_kind="mean_action")
    assert acting_layers(policy) == ["1.hook_out"]


def test_the_page_of_continuous_actions_measures_how_far_they_move(tmp_path):
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    env = Short(spaces.Box(-1, 1, (2,), np.float32), length=5)
    page = written(hooked(network, output_kind="mean_action"), env, tmp_path)
    assert "how far does the action move?" in page
    assert "The same episode twice" in page
    assert "road" not in page.split("<script", 1)[0]
    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize("n_actions", [1, 2])
def test_an_episode_of_one_step_has_a_page(n_actions, tmp_path):
    page = written(hooked(ActorCritic(n_actions), scores=0, value=1), Short(spaces.Discrete(n_actions)), tmp_path)
    assert "The scores, step by step" in page


def test_a_policy_of_images_ranks_channels(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    env = Short(spaces.Discrete(2), length=3, shape=(3, 8, 8))
    look = first_look(hooked(network, shape=(3, 8, 8)), env, seeds=[0], n_driven=0, progress=False)
    assert look.neurons is not None
    assert look.neurons.sizes["site"] == 4
    assert "channel" in look.neurons.coords


def test_pictures_are_those_of_the_recorded_steps_and_end_where_the_environment_goes_on_otherwise():
    policy, env = hooked(), Short(spaces.Discrete(2), length=4, render_mode="rgb_array")
    recording = rlm.record(policy, env, seeds=range(2), progress=False)
    assert sorted(pictures(env, recording)) == list(range(8))
    assert sorted(pictures(env, recording, most=3)) == [0, 1, 2]
    env.step = lambda action: (env.observation_space.sample(), -1.0, False, False, {})
    assert sorted(pictures(env, recording)) == [0]
    assert pictures(Short(spaces.Discrete(2)), recording) == {}


def test_the_code_of_a_page_without_a_road_runs_when_pasted(tmp_path, capsys):
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "ppo.zip")
    page = written(tmp_path / "ppo.zip", "CartPole-v1", tmp_path)
    assert "value_net" not in page
    snippets = [unescape(re.sub(r"<[^>]+>", "", code)) for code in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)]
    assert len(snippets) == 1 + page.count("<article")
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert "render_mode='rgb_array'" in snippets[0]
    capsys.readouterr()


def test_what_is_no_report_is_answered_in_words(tmp_path):
    with pytest.raises(ConfigError, match="A report is of a policy") as error:
        rlm.report([], tmp_path / "x.html")
    assert "rlm.plot.page" in error.value.fix
    with pytest.raises(ConfigError, match="does not say which environment"):
        rlm.report(hooked())
    with pytest.raises(ConfigError, match="HTML file"):
        rlm.report(hooked(), "CartPole-v1", path=tmp_path / "x.pdf")
