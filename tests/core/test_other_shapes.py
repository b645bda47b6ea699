"""Networks whose weights fit any number of entities take any; those that flatten rows take them flat or not."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import EditError, EnvironmentFitError, ObservationError
from rlmech.nets import EgoAttentionNetwork, MultiLayerPerceptron
from rlmech.spec import FeatureSpec, PolicySpec

FEATURES = tuple(FeatureSpec(name=name) for name in ("presence", "x", "y"))
SPEC = PolicySpec(
    entities=("ego", "vehicle_1", "vehicle_2", "vehicle_3"),
    features=FEATURES,
    actions=("a", "b"),
    presence="presence",
    env_id="highway-fast-v0",
)
Z, PATTERN = "attention_layer.hook_z", "attention_layer.hook_pattern"


def scenes(n, *, rows=6, seed=0):
    x = torch.rand(rows, n, 3, generator=torch.Generator().manual_seed(seed))
    x[:, :, 0] = 1.0
    x[0, n // 2 + 1 :, 0] = 0.0
    return x


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    network = EgoAttentionNetwork(3, 2, d_model=8, n_heads=2, embedding=(8,), output=(8,))
    return rlm.HookedPolicy(network, scenes(4), spec=SPEC)


@pytest.fixture(scope="module")
def perceptron():
    torch.manual_seed(0)
    return rlm.HookedPolicy(MultiLayerPerceptron(12, (8,), d_out=2, flatten=True), scenes(4), spec=SPEC)


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_a_network_of_any_number_of_entities_gives_its_own_scores_for_any(policy, n):
    obs = scenes(n)

    scores, cache = policy.run_with_cache(obs)

    assert torch.equal(scores, policy.module(obs)) or torch.allclose(scores, policy.module(obs), rtol=1e-5)
    assert torch.equal(policy(obs), scores)
    assert cache[PATTERN].shape == (6, 2, 1, n)
    assert policy.predict(obs[0].numpy())[0] == int(policy.predict(obs.numpy())[0][0])


def test_names_of_entities_go_on_as_they_are_numbered(policy):
    assert policy.fitting(scenes(6)).hook_dict[PATTERN].labels["key"] == (*SPEC.entities, "vehicle_4", "vehicle_5")
    assert policy.fitting(scenes(2)).hook_dict[PATTERN].labels["key"] == ("ego", "vehicle_1")


def test_an_edit_of_the_policy_acts_on_any_number_of_entities(policy):
    obs, head = scenes(7), rlm.Site(Z, head=1)

    with policy.edited([rlm.zero_ablation(head)]):
        edited = policy(obs)
    by_hook = policy.run_with_hooks(obs, fwd_hooks=[(Z, lambda z, hook: z.index_fill(2, torch.tensor(1), 0.0))])

    assert not torch.equal(edited, policy(obs))
    assert torch.equal(edited, by_hook)


def test_a_mean_over_another_number_of_entities_is_refused(policy):
    mean = rlm.mean_ablation("attention_layer.hook_v", reference=scenes(4))

    with pytest.raises(EditError, match="does not fit"), policy.edited([mean]):
        policy(scenes(7))


def test_sweeps_and_attributions_name_the_entities_that_are_there(policy):
    obs, other = scenes(6), scenes(6, seed=1)

    swept = rlm.activation_patching(policy, clean=obs, corrupt=other, sites="auto")
    terms = rlm.attribute_actions(policy, obs)
    shares = rlm.attribution.shapley_values(policy, obs)["value"]

    assert "vehicle_5" in swept["entity"].values
    assert terms["entity"].values.tolist() == shares_of_all(terms)
    assert shares.sizes["entity"] == 5
    again = terms.ov.sum(("entity", "head", "feature")) + terms.skip.sum("feature") + terms.bias.sum("source")
    np.testing.assert_allclose(again, terms.total, atol=1e-5)
    np.testing.assert_allclose(terms.total, policy(obs).detach().numpy(), atol=1e-5)


def shares_of_all(terms):
    return ["ego", *(f"vehicle_{i}" for i in range(1, terms.sizes["entity"]))]


def test_patching_with_more_entities_is_patching_a_policy_wrapped_for_them(policy):
    obs, other = scenes(6), scenes(6, seed=1)
    wrapped = rlm.HookedPolicy(policy.module, obs, spec=policy.fitting(obs).spec)

    found, own = (rlm.activation_patching(p, clean=obs, corrupt=other, sites="auto") for p in (policy, wrapped))

    np.testing.assert_array_equal(found["patched"], own["patched"])


def test_a_network_of_one_number_of_entities_says_so_in_its_own_words(perceptron):
    with pytest.raises(ObservationError, match="observations of its own shape alone") as error:
        perceptron(scenes(5))

    assert error.value.given.startswith("[batch 5 3]; it says: mat1 and mat2")
    assert error.value.expected == "[batch 4 3]"


class Positions(nn.Module):
    """Adds something of its own to each of four entities, and sums over them."""

    def __init__(self):
        super().__init__()
        self.own, self.head = nn.Parameter(torch.rand(4, 3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.relu(x + self.own).sum(1))


def test_one_entity_is_not_stretched_to_as_many_as_the_weights_are_for():
    policy = rlm.HookedPolicy(Positions(), scenes(4))

    with pytest.raises(ObservationError, match="its own shape alone"):
        policy(scenes(1))


def test_flat_rows_are_the_entities_that_they_hold(perceptron):
    obs = scenes(4)

    _, cache = perceptron.run_with_cache(obs.flatten(1))
    found = rlm.attribution.saliency(perceptron, obs.flatten(1)).attribution

    assert torch.equal(perceptron(obs.flatten(1)), perceptron(obs))
    assert torch.equal(cache["hook_obs"], obs)
    assert found.dims == ("batch", "action", "entity", "feature")
    assert perceptron.predict(obs[2].flatten().numpy())[0] == perceptron.predict(obs.flatten(1).numpy())[0][2]


def test_a_policy_of_flat_rows_takes_entities_and_names_them():
    torch.manual_seed(0)
    network = MultiLayerPerceptron(12, (8,), d_out=2, flatten=True)
    policy, obs = rlm.HookedPolicy(network, scenes(4).flatten(1), spec=SPEC), scenes(4)

    found = rlm.attribution.saliency(policy, obs).attribution

    assert torch.equal(policy(obs), policy(obs.flatten(1)))
    assert found["entity"].values.tolist() == list(SPEC.entities)
    assert found["feature"].values.tolist() == ["presence", "x", "y"]
    with pytest.raises(ObservationError, match="not what the policy takes"):
        policy(obs.reshape(6, 3, 4))  # the spec says 4 entities of 3 features


def test_flat_rows_are_refused_where_the_network_keeps_entities_apart(policy):
    with pytest.raises(ObservationError, match="not what the policy takes"):
        policy(scenes(4).flatten(1))


def test_another_number_of_entities_is_forgotten_when_the_precision_changes():
    network = EgoAttentionNetwork(3, 2, d_model=8, n_heads=2, embedding=(8,), output=(8,))
    policy = rlm.HookedPolicy(network, scenes(4))
    policy(scenes(6))

    policy.double()

    assert policy(scenes(6).double()).dtype == torch.float64


def test_the_policy_of_more_entities_is_pickled_as_itself(policy):
    more = policy.fitting(scenes(6))

    again = pickle.loads(pickle.dumps(more))

    assert torch.equal(again(scenes(6)), policy(scenes(6)))
    assert again.spec.entities == more.spec.entities


class Rows(gym.Env):
    """An environment that shows some rows of three numbers."""

    def __init__(self, n):
        self.n = n
        self.observation_space = gym.spaces.Box(0, 1, (n, 3), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._observed(), {}

    def _observed(self):
        seen = self.np_random.random((self.n, 3), dtype=np.float32)
        seen[:, 0] = 1
        return seen

    def step(self, action):
        self.t += 1
        return self._observed(), float(action), self.t == 4, False, {}


def test_episodes_of_more_entities_are_driven_by_the_networks_own_actions(policy, perceptron):
    env = Rows(6)

    recording = rlm.record(policy, env, seeds=[0, 1], names=PATTERN, progress=False)
    head = rlm.zero_ablation(rlm.Site(Z, head=0))
    compared = rlm.compare_rollouts(policy, env, conditions={"h": [head], "p": policy}, seeds=[0, 1], progress=False)

    actions = policy.module(torch.as_tensor(recording.observations)).argmax(-1)
    assert recording.steps["action"].tolist() == actions.tolist()
    assert recording.activation(PATTERN).shape[-1] == 6
    assert compared["delta_return"].sel(condition="p") == 0
    with pytest.raises(EnvironmentFitError, match="do not fit") as error:
        rlm.record(perceptron, env, seeds=[0], progress=False)
    assert "the network says: mat1 and mat2" in error.value.given
