"""Faithfulness where the truth is known: the exact attribution is perfect, a random one is not, and it shows."""

import gymnasium as gym
import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import rlmech as rlm
from rlmech.attribution import driven_removal, faithfulness, saliency, shapley_values
from rlmech.errors import ConfigError, ObservationError
from rlmech.metrics import action_score
from tests.attribution.test_shapley import attention, states

LINEAR = {"players": "features", "metric": action_score(1)}


def linear():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nn.Linear(6, 2).double(), torch.rand(2, 6, dtype=torch.float64))
    return policy, torch.randn(12, 6, dtype=torch.float64)


def exact_shares(policy, obs):
    return shapley_values(policy, obs, **LINEAR)["value"]


def test_on_a_linear_policy_the_exact_attribution_is_perfect_and_so_is_leaving_one_out():
    policy, obs = linear()
    found = faithfulness(policy, obs, attributions={"exact": exact_shares}, **LINEAR)
    for name in ("exact", "leave one out"):
        own = found.sel(condition=name)
        np.testing.assert_allclose(own["sensitivity"], 1, atol=1e-9)
        np.testing.assert_allclose(own["infidelity"], 0, atol=1e-12)
    assert abs(found["sensitivity_mean"].sel(condition="random")) < 0.4
    assert (found["infidelity_mean"].sel(condition="random") > 0.01).all()


def test_no_order_deletes_lower_or_inserts_higher_than_the_exact_one_of_a_linear_policy():
    policy, obs = linear()
    given = {f"order {k}": xr.DataArray(torch.randn(12, 6).numpy(), dims=("batch", "feature")) for k in range(8)}
    found = faithfulness(policy, obs, attributions={"exact": exact_shares} | given, **LINEAR)
    exact = found.sel(condition="exact")
    assert (exact["deletion"] <= found["deletion"] + 1e-12).all()
    assert (exact["insertion"] >= found["insertion"] - 1e-12).all()


def test_the_area_of_a_known_curve():
    policy = rlm.HookedPolicy(nn.Linear(2, 1, bias=False).double(), torch.rand(2, 2, dtype=torch.float64))
    with torch.no_grad():
        policy.module.weight.copy_(torch.tensor([[3.0, 1.0]]))
    given = {"mine": xr.DataArray([[1.0, 0.0]], dims=("batch", "feature"))}
    obs, reference = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    options = {"players": "features", "metric": action_score(0), "reference": reference}
    found = faithfulness(policy, obs, attributions=given, **options).sel(condition="mine")
    np.testing.assert_allclose(found["deletion"], (4 + 1) / 4 + (1 + 0) / 4)  # 4, 1, 0
    np.testing.assert_allclose(found["insertion"], (0 + 3) / 4 + (3 + 4) / 4)  # 0, 3, 4


def test_an_attribution_that_does_not_look_at_the_weights_fails_the_randomisation_test():
    policy, obs = linear()

    def the_input(policy, obs):
        return xr.DataArray(np.asarray(obs), dims=("batch", "feature"))

    found = faithfulness(policy, obs, attributions={"input": the_input, "exact": exact_shares}, **LINEAR)
    np.testing.assert_allclose(found["randomisation"].sel(condition="input"), 1)
    assert abs(found["randomisation_mean"].sel(condition="exact")) < 0.9
    assert np.isnan(found["randomisation_mean"].sel(condition="random"))


def test_features_of_vehicles_are_summed_and_vehicles_that_are_not_there_are_not_ranked():
    policy, obs = attention(), states(6)
    given = {"saliency": lambda policy, obs: saliency(policy, obs, better=0, worse=1)["attribution"]}
    found = faithfulness(policy, obs, attributions=given, metric=rlm.metrics.action_gap(0, 1), n_subsets=4)
    assert list(found["condition"].values) == ["saliency", "random", "leave one out"]
    np.testing.assert_array_less(found["deletion_low"], found["deletion_high"] + 1e-12)


def test_what_does_not_fit_is_refused_in_words():
    policy, obs = attention(), states(3)
    every = lambda policy, obs: saliency(policy, obs)["attribution"]  # noqa: E731
    with pytest.raises(ObservationError, match="does not fit"):
        faithfulness(policy, obs, attributions={"saliency": every})
    with pytest.raises(ObservationError, match="does not fit"):
        faithfulness(policy, obs, attributions={"mine": xr.DataArray(np.zeros((3, 2)), dims=("batch", "entity"))})
    with pytest.raises(ObservationError, match="does not fit"):
        faithfulness(policy, obs, attributions={"mine": xr.DataArray(np.zeros((2, 5)), dims=("batch", "entity"))})
    with pytest.raises(ConfigError, match="nothing to measure"):
        faithfulness(policy, obs, attributions={})
    with pytest.raises(ConfigError, match="name is taken"):
        faithfulness(policy, obs, attributions={"random": every})
    with pytest.raises(ConfigError, match="nothing to take away"):
        driven_removal(policy, "intersection-v2", attributions={}, seeds=[0])


class Traffic(gym.Env):
    """Two vehicles, of which the first alone is worth looking at: a reward for the action that it asks for."""

    observation_space = gym.spaces.Box(-10, 10, (3, 2), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 4
        return self._see(), {}

    def _see(self):
        self.wanted = int(self.np_random.integers(2))
        return np.array([[1, 0], [1, 2.0 * self.wanted - 1], [1, self.np_random.normal()]], dtype=np.float32)

    def step(self, action):
        reward = float(action == self.wanted)
        self.left -= 1
        return self._see(), reward, self.left == 0, False, {}


class LooksAtTheFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, obs):
        asks = self.weight * obs[:, 1, 1]
        return torch.stack([-asks, asks], 1)


def test_driving_without_what_matters_costs_return_and_without_what_does_not_costs_none():
    features = (rlm.FeatureSpec(name="presence"), rlm.FeatureSpec(name="asks"))
    spec = rlm.PolicySpec(entities=("ego", "first", "second"), features=features, presence="presence")
    policy = rlm.HookedPolicy(LooksAtTheFirst(), torch.ones(2, 3, 2), spec=spec)

    def second(policy, obs):
        return xr.DataArray(np.tile([0.0, 1.0], (len(obs), 1)), dims=("batch", "entity"))

    given = {"second": second, "Shapley": lambda policy, obs: shapley_values(policy, obs)["value"]}
    found = driven_removal(policy, Traffic(), attributions=given, seeds=range(12), progress=False)
    change = found["delta_return"]
    assert float(change.sel(condition="second")) == 0
    assert float(change.sel(condition="Shapley")) < -0.5
    np.testing.assert_array_equal(
        found["return"].sel(condition="Shapley"), found["return"].sel(condition=["leave one out"])[0]
    )
    assert float(change.sel(condition="Shapley")) < float(change.sel(condition="random")) < 0
