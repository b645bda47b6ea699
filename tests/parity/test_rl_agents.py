"""rl-agents checkpoints: the published one against its true outputs, and any architecture against its equations."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlmech.adapters.load import load

Q_TOLERANCE, ATTENTION_TOLERANCE = 1e-5, 1e-6  # twice the original's own distance from float64
FEATURES, ACTIONS, ENTITIES = 7, 3, 6


@pytest.fixture(scope="module")
def published(seed_policy_dir):
    config = seed_policy_dir / "config"
    return load(
        seed_policy_dir / "model_4h.tar",
        config=config / "agents/DQNAgent/ego_attention_4h.json",
        env_config=config / "env.json",
    )


def test_the_published_policy_gives_its_true_q_values_and_attention(published, seed_policy_dir):
    obs = np.load(seed_policy_dir / "observations.npy")

    scores, cache = published.run_with_cache(obs)

    pattern = cache["attention_layer.hook_pattern"]
    assert tuple(pattern.shape) == (203, 4, 1, 15)
    np.testing.assert_allclose(scores.detach(), np.load(seed_policy_dir / "q_values.npy"), rtol=0, atol=Q_TOLERANCE)
    true_pattern = np.load(seed_policy_dir / "attention.npy")
    np.testing.assert_allclose(pattern.detach()[:, :, 0], true_pattern, rtol=0, atol=ATTENTION_TOLERANCE)


def test_the_published_policy_takes_its_true_actions(published, seed_policy_dir):
    actions, _ = published.predict(np.load(seed_policy_dir / "observations.npy"))

    np.testing.assert_array_equal(actions, np.load(seed_policy_dir / "episode.npy")[:, 2])


def test_the_published_policy_knows_its_vehicles_and_features(published):
    assert published.spec.entities[:2] == ("ego", "vehicle_1")
    assert len(published.spec.entities) == 15
    assert [feature.label for feature in published.spec.features][:3] == ["presence", "x [m]", "y [m]"]
    assert published.spec.env_id == "intersection-v0"
    assert published.output_kind == "q_values"
    assert published.engine == "graph"


# ---- any architecture, against the equations evaluated here in float64


def _random_weights(shapes):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / (shape[-1] ** 0.5) for name, shape in shapes.items()}


def _perceptron_shapes(prefix, sizes, out=None):
    shapes = {}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"{prefix}layers.{i}.weight": (b, a), f"{prefix}layers.{i}.bias": (b,)}
    if out is not None:
        shapes |= {f"{prefix}predict.weight": (out, sizes[-1]), f"{prefix}predict.bias": (out,)}
    return shapes


def _perceptron(weights, prefix, x, activation):
    phi = {"RELU": lambda v: np.maximum(v, 0), "TANH": np.tanh}[activation]
    i = 0
    while f"{prefix}layers.{i}.weight" in weights:
        x = phi(x @ weights[f"{prefix}layers.{i}.weight"].T + weights[f"{prefix}layers.{i}.bias"])
        i += 1
    if f"{prefix}predict.weight" in weights:
        x = x @ weights[f"{prefix}predict.weight"].T + weights[f"{prefix}predict.bias"]
    return x


def _attention(weights, prefix, query, entities, absent, heads):
    """z [batch head query d_head] of softmax(q k / sqrt(d_head)), absent entities at -1e9."""
    batch, _, width = entities.shape
    d_head = width // heads

    def split(x, name):
        return (x @ weights[prefix + name].T).reshape(batch, -1, heads, d_head).transpose(0, 2, 1, 3)

    k, v = split(entities, "key_all.weight"), split(entities, "value_all.weight")
    q = split(query, "query_ego.weight" if f"{prefix}query_ego.weight" in weights else "query_all.weight")
    scores = np.where(absent[:, None, None, :], -1e9, q @ k.transpose(0, 1, 3, 2) / d_head**0.5)
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    return (pattern / pattern.sum(-1, keepdims=True)) @ v


def _ego_attention(weights, x, *, heads, self_heads, activation, presence):
    absent = x[:, :, presence] < 0.5
    ego = _perceptron(weights, "ego_embedding.", x[:, :1], activation)
    others = _perceptron(weights, "others_embedding.", x[:, 1:], activation)
    entities = np.concatenate([ego, others], axis=1)
    if self_heads:
        z = _attention(weights, "self_attention_layer.", entities, entities, absent, self_heads)
        scrambled = z.reshape(entities.shape)  # heads and entities are not swapped first: upstream's flaw
        entities = (scrambled @ weights["self_attention_layer.attention_combine.weight"].T + entities) / 2
    z = _attention(weights, "attention_layer.", entities[:, :1], entities, absent, heads)
    together = z.reshape(len(x), -1) @ weights["attention_layer.attention_combine.weight"].T
    return _perceptron(weights, "output_layer.", (together + entities[:, 0]) / 2, activation)


@pytest.mark.parametrize(
    ("width", "heads", "self_heads", "hidden", "activation", "presence"),
    [
        (16, 1, 0, (), "RELU", 0),
        (16, 4, 0, (8,), "RELU", 0),
        (12, 3, 0, (8, 9), "TANH", 2),
        (16, 2, 1, (8,), "RELU", 0),
        (16, 4, 4, (), "RELU", 0),
        (24, 8, 3, (5,), "TANH", 1),
    ],
)
def test_an_ego_attention_network_computes_its_equations(
    tmp_path, width, heads, self_heads, hidden, activation, presence
):
    attention = {
        f"attention_layer.{m}.weight": (width, width)
        for m in ("value_all", "key_all", "query_ego", "attention_combine")
    }
    inner = ("value_all", "key_all", "query_all", "attention_combine") if self_heads else ()
    shapes = attention | {f"self_attention_layer.{m}.weight": (width, width) for m in inner}
    for prefix in ("ego_embedding.", "others_embedding."):
        shapes |= _perceptron_shapes(prefix, (FEATURES, *hidden, width))
    shapes |= _perceptron_shapes("output_layer.", (width, *hidden), ACTIONS)
    weights = _random_weights(shapes)
    torch.save({"state_dict": weights, "optimizer": {}}, tmp_path / "latest.tar")
    embedding = {"type": "MultiLayerPerceptron", "layers": [*hidden, width], "reshape": False, "activation": activation}
    config = {
        "__class__": "<class 'no.such.module.Agent'>",
        "model": {
            "type": "EgoAttentionNetwork",
            "presence_feature_idx": presence,
            "embedding_layer": embedding,
            "others_embedding_layer": embedding,
            "self_attention_layer": {"feature_size": width, "heads": self_heads} if self_heads else None,
            "attention_layer": {"feature_size": width, "heads": heads},
            "output_layer": embedding | {"layers": list(hidden)},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    space = spaces.Box(-1, 1, (ENTITIES, FEATURES))

    policy = load(tmp_path / "latest.tar", config=tmp_path / "config.json", observation_space=space)

    obs = np.random.default_rng(0).normal(size=(9, ENTITIES, FEATURES)).astype(np.float32)
    obs[:, 0, presence] = 1
    exact = {name: value.double().numpy() for name, value in weights.items()}
    settings = {"heads": heads, "self_heads": self_heads, "activation": activation, "presence": presence}
    expected = _ego_attention(exact, obs.astype(np.float64), **settings)
    np.testing.assert_allclose(policy(obs).detach(), expected, rtol=1e-5, atol=1e-5)
    assert policy.attention["attention_layer"].n_heads == heads


@pytest.mark.parametrize("activation", ["RELU", "TANH"])
def test_a_perceptron_flattens_its_observation_and_computes_its_equation(tmp_path, activation):
    weights = _random_weights(_perceptron_shapes("", (ENTITIES * FEATURES, 8, 9), ACTIONS))
    torch.save({"state_dict": weights, "optimizer": {}}, tmp_path / "latest.tar")
    model = {"type": "MultiLayerPerceptron", "layers": [8, 9], "activation": activation}
    space = spaces.Box(-1, 1, (ENTITIES, FEATURES))

    policy = load(tmp_path / "latest.tar", config={"model": model}, observation_space=space)

    obs = np.random.default_rng(0).normal(size=(9, ENTITIES, FEATURES)).astype(np.float32)
    exact = {name: value.double().numpy() for name, value in weights.items()}
    expected = _perceptron(exact, "", obs.reshape(9, -1), activation)
    np.testing.assert_allclose(policy(obs).detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("streams", [(), (4,)])
def test_a_dueling_network_computes_its_equation(tmp_path, streams):
    weights = _random_weights(
        _perceptron_shapes("base_module.", (10, 8))
        | _perceptron_shapes("value.", (8, *streams), 1)
        | _perceptron_shapes("advantage.", (8, *streams), ACTIONS)
    )
    torch.save({"state_dict": weights, "optimizer": {}}, tmp_path / "latest.tar")
    model = {"base_module": {"layers": [8]}, "value": {"layers": list(streams)}, "advantage": {"layers": list(streams)}}

    policy = load(tmp_path / "latest.tar", config={"model": {"type": "DuelingNetwork", **model}})

    obs = np.random.default_rng(0).normal(size=(9, 10)).astype(np.float32)
    exact = {name: value.double().numpy() for name, value in weights.items()}
    base = _perceptron(exact, "base_module.", obs, "RELU")
    value, advantage = (_perceptron(exact, part, base, "RELU") for part in ("value.", "advantage."))
    expected = value + advantage - advantage.mean(1, keepdims=True)
    np.testing.assert_allclose(policy(obs).detach(), expected, rtol=1e-5, atol=1e-5)


def test_a_convolutional_network_computes_its_equation(tmp_path):
    shapes = {}
    for name, a, b in (("conv1", 4, 16), ("conv2", 16, 32), ("conv3", 32, 64)):
        shapes |= {f"{name}.weight": (b, a, 2, 2), f"{name}.bias": (b,)}
    weights = _random_weights(shapes | _perceptron_shapes("head.", (2 * 64, 20), ACTIONS))
    torch.save({"state_dict": weights, "optimizer": {}}, tmp_path / "latest.tar")
    model = {"type": "ConvolutionalNetwork", "head_mlp": {"layers": [20]}}
    grid = {"observation": {"type": "OccupancyGrid", "grid_size": [[-45, 45], [-27.5, 27.5]], "grid_step": [5, 5]}}

    policy = load(tmp_path / "latest.tar", config={"model": model}, env_config=grid)

    obs = np.random.default_rng(0).normal(size=(3, 4, 18, 11)).astype(np.float32)
    exact = {name: value.double().numpy() for name, value in weights.items()}
    x = obs.astype(np.float64)
    for name in ("conv1", "conv2", "conv3"):
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        blocks = x[:, :, : rows * 2, : columns * 2].reshape(3, -1, rows, 2, columns, 2)
        x = np.einsum("bcrsut,ocst->boru", blocks, exact[f"{name}.weight"]) + exact[f"{name}.bias"][:, None, None]
        x = np.maximum(x, 0)
    expected = _perceptron(exact, "head.", x.reshape(3, -1), "RELU")
    np.testing.assert_allclose(policy(obs).detach(), expected, rtol=1e-5, atol=1e-5)
