"""An SB3 PPO policy whose features extractor is hand-written attention, as in highway-env's transformer example."""

from __future__ import annotations

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from rlmech.adapters.load import load
from rlmech.adapters.native import save_policy
from rlmech.adapters.sb3 import from_sb3
from rlmech.adapters.sb3.extractor_class import extractor_class
from rlmech.cli import app
from rlmech.errors import CheckpointError, ConfigError

SCENES = spaces.Box(-np.inf, np.inf, (10, 7), np.float32)
ACTIONS = spaces.Discrete(5)
BLOCK = "features_extractor.extractor.attention_layer"


class SpacesOnlyEnv(gym.Env):
    observation_space, action_space = SCENES, ACTIONS


class Embedding(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x.float()))
        return x


class Attention(nn.Module):
    """Returns a tuple, makes its dropout inside forward, and takes the root with numpy."""

    def __init__(self, width, heads):
        super().__init__()
        self.width, self.heads = width, heads
        self.value_all, self.key_all, self.query_ego, self.attention_combine = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def _split(self, x):
        return x.view(x.shape[0], -1, self.heads, self.width // self.heads).permute(0, 2, 1, 3)

    def forward(self, ego, others, mask):
        n = others.shape[1] + 1
        everyone = torch.cat((ego.view(others.shape[0], 1, self.width), others), dim=1)
        q, k, v = (
            self._split(self.query_ego(ego)),
            self._split(self.key_all(everyone)),
            self._split(self.value_all(everyone)),
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) / np.sqrt(q.size(-1))
        scores = scores.masked_fill(mask.view(-1, 1, 1, n).repeat(1, self.heads, 1, 1), -1e9)
        pattern = nn.Dropout(0)(F.softmax(scores, dim=-1))
        z = torch.matmul(pattern, v)
        return (self.attention_combine(z.reshape(-1, self.width)) + ego.squeeze(1)) / 2, pattern


class Network(nn.Module):
    def __init__(self, embedding_layer_kwargs, attention_layer_kwargs):
        super().__init__()
        self.ego_embedding, self.embedding = (Embedding(embedding_layer_kwargs["sizes"]) for _ in range(2))
        self.attention_layer = Attention(attention_layer_kwargs["feature_size"], attention_layer_kwargs["heads"])

    def forward(self, x):
        if len(x.shape) == 2:
            x = x.unsqueeze(0)
        mask = x[:, :, 0:1] < 0.5
        features, _ = self.attention_layer(self.ego_embedding(x[:, 0:1]), self.embedding(x[:, 1:]), mask)
        return features


class TransformerExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space, **kwargs):
        super().__init__(observation_space, features_dim=kwargs["attention_layer_kwargs"]["feature_size"])
        self.extractor = Network(**kwargs)

    def forward(self, observations):
        return self.extractor(observations)


@pytest.fixture
def model(make_model):
    kwargs = {
        "features_extractor_class": TransformerExtractor,
        "features_extractor_kwargs": {
            "embedding_layer_kwargs": {"sizes": [7, 16, 16]},
            "attention_layer_kwargs": {"feature_size": 16, "heads": 2},
        },
    }
    return make_model(PPO, obs=SCENES, actions=ACTIONS, policy_kwargs=kwargs)


@pytest.fixture
def scenes():
    obs = np.random.default_rng(0).normal(size=(1000, 10, 7)).astype(np.float32)
    obs[:, :, 0] = np.random.default_rng(1).random((1000, 10)) < 0.6
    obs[:, 0, 0] = 1
    return obs


@pytest.mark.parametrize("source", ["live", "zip"])
def test_its_attention_is_found_and_its_actions_are_sb3s(model, scenes, tmp_path, source):
    model.save(tmp_path / "transformer.zip")
    zipped = source == "zip"
    policy = (
        load(tmp_path / "transformer.zip", features_extractor_class=TransformerExtractor) if zipped else from_sb3(model)
    )

    _, cache = policy.run_with_cache(scenes)

    assert policy.engine == "graph"
    np.testing.assert_array_equal(policy.predict(scenes)[0], model.predict(scenes, deterministic=True)[0])
    block = policy.attention[BLOCK]
    assert (block.n_heads, block.d_head) == (2, 8)
    obs = torch.as_tensor(scenes)
    network = model.policy.features_extractor.extractor
    _, pattern = network.attention_layer(
        network.ego_embedding(obs[:, :1]), network.embedding(obs[:, 1:]), obs[:, :, :1] < 0.5
    )
    torch.testing.assert_close(cache[f"{BLOCK}.hook_pattern"], pattern)
    assert cache.axes(f"{BLOCK}.hook_z") == ("batch", "query", "head", "d_head")


def test_its_class_is_asked_for_by_name(model, tmp_path):
    model.save(tmp_path / "transformer.zip")

    with pytest.raises(CheckpointError, match=r"TransformerExtractor' is a class of its own") as error:
        load(tmp_path / "transformer.zip")

    assert error.value.fix == "import it: load(..., features_extractor_class=TransformerExtractor)"


PUBLISHED = {
    "in_size": 5 * 15,
    "embedding_layer_kwargs": {"in_size": 7, "layer_sizes": [16, 16], "reshape": False},
    "attention_layer_kwargs": {"feature_size": 16, "heads": 2},
}


class CustomExtractor(TransformerExtractor):
    """With the keywords of highway-env's script."""

    def __init__(self, observation_space, **kwargs):
        BaseFeaturesExtractor.__init__(self, observation_space, features_dim=16)
        self.extractor = Network({"sizes": [7, 16, 16]}, {"feature_size": 16, "heads": 2})


def saved(make_model, path, **changed):
    kwargs = {"features_extractor_class": CustomExtractor, "features_extractor_kwargs": PUBLISHED | changed}
    model = make_model(PPO, obs=SCENES, actions=ACTIONS, policy_kwargs=kwargs)
    model.save(path)
    return model


def test_the_published_extractor_opens_by_its_keywords_alone(make_model, scenes, tmp_path):
    model = saved(make_model, tmp_path / "model.zip")

    with pytest.warns(UserWarning, match=r"is taken for that of highway-env's sb3_highway_ppo_transformer\.py"):
        policy = load(tmp_path / "model.zip")
    again = load(save_policy(policy, tmp_path / "own.safetensors"))

    with torch.no_grad():
        own = model.policy.get_distribution(torch.as_tensor(scenes)).distribution.logits
    torch.testing.assert_close(policy(scenes).log_softmax(-1), own)
    assert torch.equal(again(scenes), policy(scenes))
    np.testing.assert_array_equal(policy.predict(scenes)[0], model.predict(scenes, deterministic=True)[0])
    assert policy.attention[BLOCK].n_heads == 2
    assert policy(scenes[:, :6]).shape == (1000, 5)


@pytest.mark.parametrize(
    "changed",
    [
        {"attention_layer_kwargs": {"feature_size": 16, "heads": 2, "dropout_factor": 0.2}},
        {"embedding_layer_kwargs": {"in_size": 7, "layer_sizes": [16, 16], "reshape": False, "activation": "ELU"}},
        {"embedding_layer_kwargs": {"in_size": 7, "layer_sizes": [16], "reshape": False}},
        {"num_layers": 3},
    ],
    ids=["dropout", "another activation", "other weights", "a keyword of its own"],
)
def test_an_extractor_of_that_name_that_is_not_the_published_one_is_asked_for(make_model, tmp_path, changed):
    saved(make_model, tmp_path / "model.zip", **changed)

    with pytest.raises(CheckpointError, match="CustomExtractor' is a class of its own"):
        load(tmp_path / "model.zip")


def test_the_class_of_an_extractor_may_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_extractors.py").write_text("HALF = 2\n")
    source = tmp_path / "own_extractors.py"
    source.write_text(
        "import torch\nfrom beside_extractors import HALF\n"
        "from stable_baselines3.common.torch_layers import BaseFeaturesExtractor\n\n\n"
        "class Halves(BaseFeaturesExtractor):\n"
        "    def __init__(self, space):\n"
        "        super().__init__(space, 70)\n"
        "        self.layer = torch.nn.Linear(70, 70)\n\n"
        "    def forward(self, obs):\n"
        "        return self.layer(obs.flatten(1)) / HALF\n"
    )
    named = f"{source}:Halves"
    kwargs = {"features_extractor_class": extractor_class(named)}
    model = PPO("MlpPolicy", SpacesOnlyEnv(), policy_kwargs=kwargs, n_steps=8, batch_size=8, device="cpu")
    model.save(tmp_path / "model.zip")
    obs = SCENES.sample()[None]

    with pytest.raises(CheckpointError, match="is a class of its own"):
        load(tmp_path / "model.zip")
    policy = load(tmp_path / "model.zip", features_extractor_class=named)

    assert policy.predict(obs)[0] == model.predict(obs, deterministic=True)[0]
    typed = CliRunner().invoke(app, ["inspect", "model.zip", "--features-extractor-class", "own_extractors:Halves"])
    assert typed.exit_code == 0, typed.output
    assert "features_extractor.layer.hook_out" in typed.output
    with pytest.raises(ConfigError, match="has no features extractor 'Halve'") as error:
        load(tmp_path / "model.zip", features_extractor_class=f"{source}:Halve")
    assert error.value.fix == "did you mean 'Halves'?"
    with pytest.raises(ConfigError, match="as module:Class or"):
        load(tmp_path / "model.zip", features_extractor_class="Halves")
